"""One sweep instead of two: a maximum and the sum of exponentials relative to it, a mean and the sum of squared
deviations from it, computed together.

A softmax's ``m = max(x)`` and ``s = sum(exp(x - m))`` need two sweeps over a row as they stand. Kept as a pair that is
rescaled whenever the maximum rises (Milakov and Gimelshein, 2018), they need one. Where the exponentials are wanted
again the pair computes each twice, so it pays where a sweep goes to memory and not where the row is held on chip.

A variance's ``m = mean(x)`` and ``s = sum((x - m)²)`` need two sweeps as well, and one where each place of a tile keeps
the mean and the deviations of what it has met (Welford, 1962) until these are put together (Chan, Golub and LeVeque,
1979). That is as exact as two sweeps, unlike a difference of sums of squares.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

import torch

from .ir import Compute, Const, Kernel, Nest, Reduce, Stmt, Store, needed_statements

_WIDE = (torch.float32, torch.float64)
#: A sum over the rows of a nest, given all that the nest makes, as other statements, of which the last has its name.
_Rule = Callable[[Reduce, Mapping[str, Stmt], Nest], list[Stmt]]


def merge_online(kernel: Kernel, worthwhile: Callable[[Kernel, Nest], bool]) -> Kernel:
    """``kernel`` with ``sum(exp(x - max(x)))`` as one "expsum" reduction of ``x`` in nests where that is worthwhile."""
    return _merged(kernel, worthwhile, _online)


def merge_deviations(kernel: Kernel, worthwhile: Callable[[Kernel, Nest], bool]) -> Kernel:
    """``kernel`` with ``sum((x - mean(x))²)`` as one "devsum" reduction of ``x`` in nests where that is worthwhile."""
    return _merged(kernel, worthwhile, _deviations)


def _merged(kernel: Kernel, worthwhile: Callable[[Kernel, Nest], bool], rule: _Rule) -> Kernel:
    nests = tuple(_rewritten(n, rule) if n.reduction and not n.segmented and worthwhile(kernel, n) else n
                  for n in kernel.nests)
    return replace(kernel, nests=nests) if nests != kernel.nests else kernel


def _rewritten(nest: Nest, rule: _Rule) -> Nest:
    made = {s.name: s for s in nest.body if not isinstance(s, Store)}
    body: list[Stmt] = []
    for stmt in nest.body:
        sums = isinstance(stmt, Reduce) and stmt.op == "sum" and not stmt.strip and stmt.fold == 1
        body += rule(stmt, made, nest) if sums else [stmt]  # type: ignore[arg-type]
    return Nest(nest.axes, needed_statements(body))


def _deviations(total: Reduce, made: Mapping[str, Stmt], nest: Nest) -> list[Stmt]:
    """``sum(mul(d, d))`` where ``d`` is ``sub(x, div(sum(x), row size))`` as a reduction of ``x``, anything else as it
    is."""
    square = _operands(made, total.value, "mul")
    x, mean = (_operands(made, square[0], "sub") if square and square[0] == square[1] else ()) or ("", "")
    whole, size = _operands(made, mean, "div") or ("", "")
    count = made.get(size)
    if not (isinstance(count, Const) and count.value == prod(a.size for a in nest.reduction)):
        return [total]
    same = made.get(whole) == replace(total, name=whole, value=x) and total.dtype in _WIDE
    return [replace(total, op="devsum", value=x)] if same else [total]


def _online(total: Reduce, made: Mapping[str, Stmt], nest: Nest) -> list[Stmt]:
    """``sum(exp(sub(x, max(x))))`` as a reduction of ``x``, anything else as it is.

    Where an infinite maximum is replaced by zero, as in the logarithm of a sum of exponentials, the sum is infinite or
    zero with it.
    """
    difference = _operands(made, total.value, "exp")
    value, shift = (_operands(made, difference[0], "sub") if difference else ()) or ("", "")
    infinite, zero, largest = _operands(made, shift, "where") or ("", "", shift)
    top = made.get(largest)
    if not (isinstance(top, Reduce) and top.op == "max" and top.value == value):
        return [total]
    if largest == shift:
        return [replace(total, op="expsum", value=value)]
    floor = made[zero]
    if _operands(made, infinite, "isinf") != (largest,) or not (isinstance(floor, Const) and floor.value == 0):
        return [total]
    finite, whole = f"{total.name}f", f"{total.name}w"
    return [replace(total, name=finite, op="expsum", value=value), Compute(whole, total.dtype, "max", (largest, zero)),
            Compute(total.name, total.dtype, "where", (infinite, whole, finite))]


def _operands(made: Mapping[str, Stmt], name: str, op: str) -> tuple[str, ...]:
    """The operands of the value ``name`` if it is computed by ``op``; none otherwise."""
    stmt = made.get(name)
    return stmt.args if isinstance(stmt, Compute) and stmt.op == op else ()


def exponentials_down_strip(body: Sequence[Stmt], value: str) -> tuple[str, str, bool] | None:
    """What the exponentials ``value`` of a column of a strip are of, if they are relative to the column's own maximum,
    or zero where there is none: the names of ``x`` and ``max(x)``, and whether zero stands for infinity, too. None for
    anything else. A column's maximum is known only at the strip's end, by when their sum is, too, if it is kept
    relative to what the maximum has come to."""
    made = {s.name: s for s in body if not isinstance(s, Store)}
    difference = _operands(made, value, "exp")
    x, shift = (_operands(made, difference[0], "sub") if difference else ()) or ("", "")
    replaced = set()
    while chosen := _operands(made, shift, "where"):
        condition, zero, rest = chosen
        compared, limit = _operands(made, condition, "eq") or ("", "")
        if compared != rest or _constant(made, zero) != 0:
            return None
        replaced.add(_constant(made, limit))
        shift = rest
    top = made.get(shift)
    if not (isinstance(top, Reduce) and top.op == "max" and top.strip and top.value == x and top.dtype in _WIDE):
        return None
    endless = replaced == {float("inf"), float("-inf")}
    return (x, top.name, endless) if endless or replaced == {float("-inf")} else None


def _constant(made: Mapping[str, Stmt], name: str) -> float | None:
    """The number that a value is, also in another type."""
    stmt = made[name]
    while isinstance(stmt, Compute) and stmt.op == "cast":
        stmt = made[stmt.args[0]]
    return stmt.value if isinstance(stmt, Const) else None
