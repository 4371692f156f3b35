"""What a function costs as formulas in its sizes: ``2·B·S·d`` beside the number, evaluated for any sizes."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy
import torch
from rooffuse.cost_model import Cost, Device, estimate

from .csv_rows import rows_to_csv
from .formula_trace import FormulaError, Traced, named_symbol
from .report_summary import layer_pattern

if TYPE_CHECKING:
    from rooffuse.cost_model.cost import Unit


@dataclass(frozen=True)
class FormulaRow:
    """Equal calls of one operator: ``count`` of them, each costing ``cost``, whose FLOPs and bytes are numbers or sympy
    expressions in the named sizes.

    ``module`` has ``*`` for layers' numbers; ``source`` and ``code`` are the user's line; ``backward`` says that the
    call is in a backward pass, where both are those of its forward. ``known`` is False for an operator without a
    formula of its own, which is priced by its tensors.
    """

    module: str
    op: str
    kind: str
    count: int
    cost: Cost
    dtype: torch.dtype
    unit: Unit
    known: bool
    backward: bool
    source: str
    code: str

    def evaluate(self, **sizes: int) -> Cost:
        """The cost of one call with numbers in place of names; what isn't given stays a name."""
        return self.cost.subs({named_symbol(name): value for name, value in sizes.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data; formulas as Python spells them, which sympy reads again."""
        return {"module": self.module, "op": self.op, "kind": self.kind, "count": self.count,
                "flops": str(self.cost.flops), "bytes_read": str(self.cost.bytes_read),
                "bytes_written": str(self.cost.bytes_written), "known": self.known, "backward": self.backward,
                "source": self.source}


@dataclass(frozen=True)
class Evaluation:
    """All calls at given sizes: FLOPs, bytes, and microseconds on the device, each call a kernel of its own.
    ``holds`` is False where the code would take another path than the traced one."""

    sizes: Mapping[str, int]
    flops: int
    bytes_read: int
    bytes_written: int
    time_us: float
    holds: bool

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float:
        """FLOP/byte; 0.0 where nothing moves."""
        return self.flops / self.bytes if self.bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"sizes": dict(self.sizes), "flops": self.flops, "bytes_read": self.bytes_read,
                "bytes_written": self.bytes_written, "intensity": round(self.intensity, 4),
                "alone_us": round(self.time_us, 4), "holds": self.holds}


@dataclass(frozen=True)
class Formulas:
    """What `rooffuse.formulas` found. ``sizes`` are the named sizes and their values in the arguments, ``conditions``
    what must hold of them for the code to take the traced path."""

    device: Device
    sizes: Mapping[str, int]
    rows: tuple[FormulaRow, ...]
    conditions: tuple[sympy.Basic, ...]

    @property
    def total(self) -> Cost:
        """All calls together, expanded."""
        return total_cost(self.rows)

    def evaluate(self, **sizes: int) -> Evaluation:
        """Totals at ``sizes``, as ``evaluate(B=8, S=4096)``; a size that isn't given is that of the arguments.

        Raises FormulaError for a name that there isn't and a size below 1.
        """
        for name, value in sizes.items():
            if name not in self.sizes:
                raise FormulaError(f"there is no size {name!r}; the sizes are {', '.join(self.sizes)}")
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise FormulaError(f"{name} is {value!r}; a size is a whole number, 1 or more")
        chosen = {**self.sizes, **sizes}
        numbers = {named_symbol(name): value for name, value in chosen.items()}
        found, time_us = Cost.zero(), 0.0
        for row in self.rows:
            cost = row.cost.subs(numbers) if row.cost.is_symbolic else row.cost
            found += times(cost, row.count)
            time_us += 1e6 * row.count * estimate(cost, self.device, row.dtype, row.unit).seconds
        holds = all(bool(c.subs(numbers)) for c in self.conditions)
        return Evaluation(chosen, int(found.flops), int(found.bytes_read), int(found.bytes_written), time_us, holds)

    def to_dict(self, several: Iterable[Mapping[str, int]] = ()) -> dict[str, Any]:
        """Plain data, valid JSON, with `evaluate` for each of ``several`` sizes, or for those of the arguments."""
        total = self.total
        return {"device": self.device.name, "sizes": dict(self.sizes),
                "conditions": [str(c) for c in self.conditions], "nodes": [r.to_dict() for r in self.rows],
                "total": {"flops": str(total.flops), "bytes_read": str(total.bytes_read),
                          "bytes_written": str(total.bytes_written)},
                "evaluations": [self.evaluate(**sizes).to_dict() for sizes in list(several) or [{}]]}

    def csv(self) -> str:
        """One line for each row, with a head line and the FLOPs and bytes at the arguments' sizes."""
        rows = []
        for row in self.rows:
            cost = row.evaluate(**self.sizes)
            rows.append({**row.to_dict(), "flops_here": cost.flops, "bytes_here": cost.bytes})
        return rows_to_csv(rows)

    def to_pandas(self) -> Any:
        """``rows`` as a pandas DataFrame. Raises ImportError without pandas."""
        import pandas

        return pandas.DataFrame([row.to_dict() for row in self.rows])

    def text(self, sort: str | None = None, top: int | None = None,
             several: Iterable[Mapping[str, int]] = ()) -> str:
        """As tables: each operator, totals by kind, and totals for ``several`` sizes; ``sort`` and ``top`` as for
        `Report.text`."""
        from .formula_text import formulas_text

        return formulas_text(self, sort, top, list(several))

    def __str__(self) -> str:
        return self.text()


def times(cost: Cost, count: int) -> Cost:
    """The cost of ``count`` equal calls."""
    return Cost(count * cost.flops, count * cost.bytes_read, count * cost.bytes_written)


def total_cost(rows: Iterable[FormulaRow]) -> Cost:
    """The sum over all calls of some rows, with equal terms put together."""
    whole = sum((times(row.cost, row.count) for row in rows), Cost.zero())
    return Cost(*(sympy.expand(value) if isinstance(value, sympy.Expr) else value
                  for value in (whole.flops, whole.bytes_read, whole.bytes_written)))


def formula_rows(traced: Traced) -> tuple[FormulaRow, ...]:
    """The calls in their order, equal ones of equal layers once."""
    counts: dict[Any, int] = {}
    for call in traced.calls:
        key = (layer_pattern(call.module), call.op, call.price, call.backward, call.line)
        counts[key] = counts.get(key, 0) + 1
    return tuple(FormulaRow(module, op, priced.kind, count, priced.cost, priced.dtype, priced.unit, priced.known,
                            backward, line.place, line.code)
                 for (module, op, priced, backward, line), count in counts.items())


def formulas(fn: Callable[..., Any], /, *args: Any, symbols: Mapping[str, int] | None = None,
             device: str | Device | None = None, **kwargs: Any) -> Formulas:
    """What the operators of ``fn(*args, **kwargs)`` cost, as formulas in sizes of its tensors.

    Nothing is run: ``fn`` is traced on copies without values, with names for some sizes. Rows are the operators that
    torch.compile meets, before decomposition and fusion, and those of the backward pass if gradients are wanted.

    Args:
        fn: a function or ``torch.nn.Module``.
        symbols: names and values of sizes, as ``{"B": 8, "S": 1024}``: every dimension of that size, of arguments,
            weights and buffers, gets the name, so the values must differ from other sizes. By default the first
            dimension of the arguments is B, and the second of three-dimensional ones and of token ids S.
        device: what times are predicted for; as for `rooffuse.explain`.

    Raises FormulaError for names or sizes that can't be, and where the code allows one value only of a named size or
    needs a tensor's value; UnknownDevice; and what ``fn`` raises.
    """
    from .explanation import chosen_device
    from .formula_target import function_formulas
    from .report_target import ReportTarget

    target = ReportTarget(fn, args, kwargs)
    return function_formulas(target, chosen_device(device, (fn, args, kwargs)), symbols)
