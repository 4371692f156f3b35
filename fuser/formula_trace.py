"""Runs a function on fake tensors whose sizes have names, and prices what it calls in those names."""
from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import sympy
import torch
from rooffuse.cost_model import Cost, Price, price
from rooffuse.cost_model.spec import size_of
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .provenance import Line, calling_line


class FormulaError(ValueError):
    """A function whose costs have no formula in the sizes that were named; the message says which and why."""


class FixedSize(FormulaError):
    """The code allows one value only of a named size."""


@dataclass(frozen=True)
class PricedCall:
    """One operator call. ``op`` is its name, ``price`` has costs in the named sizes, ``module`` is the path of the
    module around it and ``line`` the user's; of a call in a backward pass both are those of the forward."""

    op: str
    price: Price
    module: str
    line: Line
    backward: bool


@dataclass(frozen=True)
class Traced:
    """The calls of one run, and the conditions on the named sizes under which the run is the same."""

    calls: tuple[PricedCall, ...]
    conditions: tuple[sympy.Basic, ...]


@dataclass(frozen=True)
class Ready:
    """What is run: ``function(*args, **kwargs)``, all fakes of one mode; ``modules`` are its modules by name."""

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    modules: Mapping[str, nn.Module]


def named_symbol(name: str) -> sympy.Symbol:
    """The symbol of a named size: a positive integer."""
    return sympy.Symbol(name, integer=True, positive=True)


@lru_cache(maxsize=4096)
def _shaped_by(op: Any) -> Callable[..., Any]:
    """What finds the results' sizes: the operator, or its decomposition if its own kernel takes sizes for numbers."""
    if isinstance(op, torch._ops.OpOverload) and not op._schema.is_mutable and op in decomposition_table and \
            torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeExplicitAutograd"):
        return decomposition_table[op]
    return op


def _of_whole(op: Any, args: Sequence[Any]) -> bool:
    """Whether ``op`` is the gradient of ``x[:]``. Where the size is a number there is no such slice."""
    return op is torch.ops.aten.slice_backward.default and tuple(map(size_of, args[0].shape)) == tuple(
        map(size_of, args[1]))


@dataclass
class _Recorder(TorchDispatchMode):
    """Prices each call. ``places`` finds the forward call of a backward one by autograd's sequence numbers; ``fixing``
    is where the first size was found to have one value only."""

    env: ShapeEnv
    modules: list[str]
    fixing: str = ""
    calls: list[PricedCall] = field(default_factory=list)
    places: dict[int, tuple[str, Line]] = field(default_factory=dict)
    backward: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = _shaped_by(func)(*args, **kwargs)
        priced = price(func, args, kwargs, result)
        if self.backward:
            node = torch._C._current_autograd_node()
            module, line = self.places.get(node._sequence_nr() if node is not None else -1, ("", Line()))
        else:
            module, line = self.modules[-1] if self.modules else "", calling_line(sys._getframe(1))
            # Calls that autograd has no node for come after the one with this number.
            self.places.setdefault(torch.autograd._get_sequence_nr() - 1, (module, line))
        if self.env.replacements and not self.fixing:
            self.fixing = f"{func}{f' ({line.place})' if line.place else ''}"
        if priced.kind != "view" and not _of_whole(func, args) and (priced.cost.flops != 0 or priced.cost.bytes != 0):
            self.calls.append(PricedCall(str(func), priced, module, line, self.backward))
        return result


@contextmanager
def _module_stack(modules: Mapping[str, nn.Module], stack: list[str]) -> Iterator[None]:
    names = {id(m): ".".join(part for part in (root, inner) if part)
             for root, top in modules.items() for inner, m in top.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(names.get(id(module), stack[-1] if stack else type(module).__name__))

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        stack.pop()

    before = hooks.register_module_forward_pre_hook(enter)
    after = hooks.register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _check_free(env: ShapeEnv, symbols: Mapping[str, sympy.Symbol], place: str) -> None:
    named = {symbol: name for name, symbol in symbols.items()}
    for name, symbol in symbols.items():
        fixed = env.replacements.get(symbol)
        if fixed is None:
            continue
        value = fixed.subs(named)
        what = f"to {value}" if value.is_number else f"to be {value}"
        raise FixedSize(f"the code fixes {name} {what}{' at ' if place else ''}{place}, "
                        f"so that there is no formula in {name}")


def _renamed(cost: Cost, names: Mapping[sympy.Symbol, sympy.Symbol], op: str) -> Cost:
    renamed = cost.subs(names) if cost.is_symbolic else cost
    for value in (renamed.flops, renamed.bytes_read, renamed.bytes_written):
        if getattr(value, "free_symbols", set()) - set(names.values()):
            raise FormulaError(f"a size of {op} depends on a tensor's values, and nothing is run: it has no formula")
    return renamed


def _backward(results: Any) -> None:
    wanted = [t for t in tree_leaves(results) if isinstance(t, Tensor) and t.requires_grad]
    if wanted:
        torch.autograd.backward(wanted, [torch.ones_like(t) for t in wanted])


def trace_formulas(make: Callable[[FakeTensorMode, Mapping[str, torch.SymInt]], Ready],
                   sizes: Mapping[str, int]) -> Traced:
    """Run what ``make`` makes for a fake mode and named symbolic sizes, forward and, if gradients are wanted of the
    results, backward, and price each call.

    ``sizes`` are the values that decide where the code asks, as in ``if s > 512``; the answers are conditions of the
    result. Formulas are of sizes from 2 on; at 1 they may count sums and copies that a dimension of 1 does without.
    Operators are those that torch.compile would meet, before any decomposition; what torch makes one library call of,
    as scaled-dot-product attention, is one call. Tensors are taken as the CPU's.

    Raises FixedSize if the code allows one value only of a named size, and FormulaError if sizes depend on tensors'
    values.
    """
    env = ShapeEnv(duck_shape=False)
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    dynamic: Any = [DimDynamic.DYNAMIC] * len(sizes)
    probe = mode.from_tensor(torch.empty(tuple(sizes.values()), device="meta"),
                             symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic))
    dims = dict(zip(sizes, probe.shape))
    symbols = {name: dim.node.expr for name, dim in dims.items()}
    stack: list[str] = []
    recorder = _Recorder(env, stack)
    ready = make(mode, dims)
    with ExitStack() as scope:
        scope.enter_context(_module_stack(ready.modules, stack))
        # Models leave out checks of values when they are compiled, which can't be answered here either.
        scope.enter_context(patch.object(torch.compiler, "_is_compiling_flag", True))
        # It logs whole tracebacks of what is raised below anyhow.
        scope.enter_context(patch.object(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True))
        scope.enter_context(mode)
        try:
            with recorder:
                results = ready.function(*ready.args, **ready.kwargs)
                recorder.backward = True
                _backward(results)
        except (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode) as error:
            raise FormulaError("a tensor's value is needed, and nothing is run: it has no formula") from error
        except Exception as error:
            _check_free(env, symbols, recorder.fixing)  # a size that was taken for fixed is the likelier cause
            if "on tensor with symbolic sizes" in str(error):
                raise FormulaError(f"an operator of torch {torch.__version__} takes sizes for numbers, and there is no "
                                   "formula of it; newer versions of torch may have one") from error
            raise
    _check_free(env, symbols, recorder.fixing)
    names = {symbol: named_symbol(name) for name, symbol in symbols.items()}
    calls = tuple(PricedCall(c.op, Price(_renamed(c.price.cost, names, c.op), c.price.kind, c.price.dtype, c.price.unit,
                                         c.price.known), c.module, c.line, c.backward) for c in recorder.calls)
    return Traced(calls, tuple(dict.fromkeys(g.expr.subs(names) for g in env.guards)))
