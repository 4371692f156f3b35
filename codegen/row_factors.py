"""Divisions and exponentials taken out of a row where a factor that is the same for all of the row does as well.

A softmax divides each element by its row's sum: one division a row and a multiplication an element give the same to a
unit in the last place. ``exp(log_softmax(x))`` is ``exp(x - max) / sum``, whose exponential the sum has computed. Both
hold because such a sum is at least 1, its largest term, so that neither its inverse nor the product leaves the range of
floats; other quotients are left as they are.
"""
from __future__ import annotations

from dataclasses import replace

from .ir import Compute, Const, Kernel, Nest, Reduce, Stmt, Store, needed_statements
from .sweeps import inner_values


def take_out_row_factors(kernel: Kernel) -> Kernel:
    """``kernel`` with divisions by, and exponentials less the logarithm of, a row's sum of exponentials as products."""
    nests = tuple(_rewritten(n) if n.reduction and not n.strip else n for n in kernel.nests)
    return replace(kernel, nests=nests) if nests != kernel.nests else kernel


class _Body:
    """The statements of a nest while they are being rewritten, and what is known of them."""

    def __init__(self, nest: Nest) -> None:
        self.inner = inner_values(nest)
        self.made: dict[str, Stmt] = {s.name: s for s in nest.body if not isinstance(s, Store)}
        self.exponentials = {s.args[0]: s.name for s in nest.body
                             if isinstance(s, Compute) and s.op == "exp" and s.name in self.inner}
        self.statements: list[Stmt] = []
        self.inverses: dict[str, str] = {}

    def op(self, name: str) -> str:
        stmt = self.made[name]
        return stmt.op if isinstance(stmt, Compute) else ""

    def is_sum_of_exponentials(self, name: str) -> bool:
        """Whether a value is ``sum(exp(x - max(x)))`` over a row."""
        total = self.made[name]
        if not isinstance(total, Reduce) or total.strip or total.along:
            return False
        if total.op == "expsum":
            return True
        return total.op == "sum" and self.op(total.value) == "exp" and self._is_below_maximum(
            self.made[total.value].args[0])  # type: ignore[union-attr]

    def _is_below_maximum(self, name: str) -> bool:
        difference = self.made[name]
        if not (isinstance(difference, Compute) and difference.op == "sub"):
            return False
        largest = self.made[difference.args[1]]
        return isinstance(largest, Reduce) and largest.op == "max" and largest.value == difference.args[0]

    def inverse(self, total: str) -> str:
        """One over a row's sum, computed once."""
        if total not in self.inverses:
            dtype = self.made[total].dtype  # type: ignore[union-attr]
            one = Const(f"{total}_one", dtype, 1.0)
            self.inverses[total] = f"{total}_inverse"
            self.statements += [one, Compute(self.inverses[total], dtype, "div", (one.name, total))]
        return self.inverses[total]


def _rewritten(nest: Nest) -> Nest:
    body = _Body(nest)
    # An element that is looked up is divided once a row, and has to equal the one that it was looked up in.
    totals = {s.args[1] for s in nest.body if isinstance(s, Compute) and s.op == "div" and s.name in body.inner
              and body.is_sum_of_exponentials(s.args[1])}
    for stmt in nest.body:
        found = _product(body, stmt) if isinstance(stmt, Compute) and (
            stmt.name in body.inner or (stmt.op == "div" and stmt.args[1] in totals)) else None
        body.statements.append(found or stmt)
    return nest if tuple(body.statements) == nest.body else Nest(nest.axes, needed_statements(body.statements))


def _product(body: _Body, stmt: Compute) -> Compute | None:
    if stmt.op == "div" and body.is_sum_of_exponentials(stmt.args[1]):
        return replace(stmt, op="mul", args=(stmt.args[0], body.inverse(stmt.args[1])))
    if stmt.op != "exp" or body.op(stmt.args[0]) != "sub":
        return None
    shifted, logarithm = body.made[stmt.args[0]].args  # type: ignore[union-attr]
    if body.op(logarithm) != "log":
        return None
    total = body.made[logarithm].args[0]  # type: ignore[union-attr]
    summed = body.made[total].value if isinstance(body.made[total], Reduce) else ""  # type: ignore[union-attr]
    if not body.is_sum_of_exponentials(total) or body.exponentials.get(shifted) != summed:
        return None
    return replace(stmt, op="mul", args=(summed, body.inverse(total)))
