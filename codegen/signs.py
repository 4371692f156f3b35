"""Values that are never above zero, whatever is computed: their exponentials needn't look out for infinity."""
from __future__ import annotations

from .ir import Compute, Const, Nest, Reduce, Store

#: Operations whose results are never below zero.
_UPWARDS = frozenset({"abs", "exp", "exp2", "sqrt", "sigmoid"})


def never_positive(nest: Nest) -> frozenset[str]:
    """Names of the floating-point values in ``nest`` that are at most zero, or NaN: differences from a maximum, squares
    and magnitudes with a minus sign. Products are rounded before anything is subtracted (summed_products), so that
    nothing is above its own maximum."""
    largest_of: dict[str, frozenset[str]] = {}  # what each maximum isn't below
    below: set[str] = set()
    above: set[str] = set()
    for stmt in nest.body:
        if isinstance(stmt, Store) or not stmt.dtype.is_floating_point:
            continue
        if isinstance(stmt, Reduce) and stmt.op == "max":
            largest_of[stmt.name] = frozenset([stmt.value])
        if isinstance(stmt, Const):
            below |= {stmt.name} if stmt.value <= 0 else set()
            above |= {stmt.name} if stmt.value >= 0 else set()
        elif isinstance(stmt, Compute):
            first, last = stmt.args[0], stmt.args[-1]
            sides = [(first in side, last in side) for side in (below, above)]
            if _is_below(stmt.op, *sides) or (stmt.op == "sub" and first in largest_of.get(last, ())):
                below.add(stmt.name)
            if stmt.op == "max":
                largest_of[stmt.name] = frozenset(stmt.args).union(*(largest_of.get(a, ()) for a in stmt.args))
            if _is_above(stmt.op, *sides) or (stmt.op == "mul" and first == last):
                above.add(stmt.name)
    return frozenset(below)


def _is_below(op: str, below: tuple[bool, bool], above: tuple[bool, bool]) -> bool:
    """Whether a result is at most zero, given which operands, the first and the last, are below or above it."""
    if op in ("mul", "div"):
        return (below[0] and above[1]) or (above[0] and below[1])
    if op == "neg":
        return above[0]
    return any(below) if op == "min" else op in ("add", "max") and all(below)


def _is_above(op: str, below: tuple[bool, bool], above: tuple[bool, bool]) -> bool:
    if op in ("mul", "div"):
        return all(above) or all(below)
    if op == "neg":
        return below[0]
    return any(above) if op == "max" else op in _UPWARDS or (op in ("add", "min") and all(above))
