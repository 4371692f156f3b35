"""One sweep instead of two: a maximum and the sum of exponentials relative to it, computed together.

A softmax's ``m = max(x)`` and ``s = sum(exp(x - m))`` need two sweeps over a row as they stand. Kept as a pair that is
rescaled whenever the maximum rises (Milakov and Gimelshein, 2018), they need one. Where the exponentials are wanted
again the pair computes each twice, so it pays where a sweep goes to memory and not where the row is held on chip.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from .ir import Compute, Const, Kernel, Nest, Reduce, Stmt, Store, needed_statements


def merge_online(kernel: Kernel, worthwhile: Callable[[Kernel, Nest], bool]) -> Kernel:
    """``kernel`` with ``sum(exp(x - max(x)))`` as one "expsum" reduction of ``x`` in nests where that is worthwhile."""
    nests = tuple(_merged(n) if n.reduction and not n.segmented and worthwhile(kernel, n) else n for n in kernel.nests)
    return replace(kernel, nests=nests) if nests != kernel.nests else kernel


def _merged(nest: Nest) -> Nest:
    made = {s.name: s for s in nest.body if not isinstance(s, Store)}
    body = [new for s in nest.body for new in (_online(s, made) if isinstance(s, Reduce) and s.op == "sum" else [s])]
    return Nest(nest.axes, needed_statements(body))


def _online(total: Reduce, made: Mapping[str, Stmt]) -> list[Stmt]:
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
