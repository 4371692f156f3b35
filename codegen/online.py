"""One sweep instead of two: a maximum and the sum of exponentials relative to it, computed together.

A softmax's ``m = max(x)`` and ``s = sum(exp(x - m))`` need two sweeps over a row as they stand. Kept as a pair that is
rescaled whenever the maximum rises (Milakov and Gimelshein, 2018), they need one. Where the exponentials are wanted
again the pair computes each twice, so it pays where a sweep goes to memory and not where the row is held on chip.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from .ir import Compute, Kernel, Nest, Reduce, Stmt, Store, needed_statements


def merge_online(kernel: Kernel, worthwhile: Callable[[Kernel, Nest], bool]) -> Kernel:
    """``kernel`` with ``sum(exp(x - max(x)))`` as one "expsum" reduction of ``x`` in nests where that is worthwhile."""
    nests = tuple(_merged(n) if n.reduction and not n.segmented and worthwhile(kernel, n) else n for n in kernel.nests)
    return replace(kernel, nests=nests) if nests != kernel.nests else kernel


def _merged(nest: Nest) -> Nest:
    made = {s.name: s for s in nest.body if not isinstance(s, Store)}
    body = [_expsum(s, made) if isinstance(s, Reduce) and s.op == "sum" else s for s in nest.body]
    return Nest(nest.axes, needed_statements(body))


def _expsum(total: Reduce, made: Mapping[str, Stmt]) -> Reduce:
    """``sum(exp(sub(x, max(x))))`` as a reduction of ``x``, anything else as it is."""
    exponential = made[total.value]
    if not (isinstance(exponential, Compute) and exponential.op == "exp"):
        return total
    difference = made[exponential.args[0]]
    if not (isinstance(difference, Compute) and difference.op == "sub"):
        return total
    value, largest = difference.args[0], made[difference.args[1]]
    if not (isinstance(largest, Reduce) and largest.op == "max" and largest.value == value):
        return total
    return replace(total, op="expsum", value=value)
