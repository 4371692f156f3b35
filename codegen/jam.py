"""Several rows of a reduction at once (unroll and jam), so that more loads are under way and rows share what they load.

One row at a time leaves a single chain of additions and a single stream from memory. A nest that goes through each row
once is rewritten with copies of what varies along a parallel axis: all of a short one along which the widest load
stands still, such as the rows of a product with few (each weight is then loaded once for all of them), else some
places of the last; what is left over of an axis becomes a nest of its own.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from sympy import Expr, Integer, Symbol

from .index import rewrite, symbol
from .ir import Axis, Compute, Index, Kernel, Load, Nest, Reduce, Scan, Stmt, Store, index_of
from .scatter import is_scatter
from .sweeps import plan_phases

#: Rows at once, and the longest body that is copied so many times: more values than that don't stay in registers.
JAMMED, LONGEST_BODY = 4, 24
#: Fewest elements of a long row. In bfloat16 sums of rows of 1024 are 2 to 20% faster one by one, of 256 in fours.
LONG_ROW = 512
#: Most places of an axis that are all taken at once.
SHORT_AXIS = 16


def jam_rows(kernel: Kernel, worthwhile: Callable[[Kernel, Nest], bool], rows: int = JAMMED) -> Kernel:
    """``kernel`` with several rows at once in the nests that allow it: all of short axes, ``rows`` of others if
    ``worthwhile``."""
    nests: list[Nest] = []
    for nest in kernel.nests:
        if not _allows(nest) and not _scans(nest):
            nests.append(nest)
            continue
        short = _short_axis(nest) if _allows(nest) else None
        copies = 1 if short is None else short.size
        shared = nest if short is None else copied(nest, short, 1, short.size)
        count = _rows_at_once(shared, rows // copies)
        if count > 1 and shared.parallel and shared.parallel[-1].size >= count and worthwhile(kernel, shared):
            nests += _jammed(shared, count)
        else:
            nests.append(shared)
    return kernel if tuple(nests) == kernel.nests else replace(kernel, nests=tuple(nests))


def _rows_at_once(nest: Nest, most: int) -> int:
    """How many rows of the last parallel axis are taken at once. Long ones that share nothing they load are as fast one
    by one: each has lanes of its own to add to."""
    row = nest.parallel[-1].symbol if nest.parallel else None
    apart = all(row in nest.scopes[s.name] for s in nest.body if isinstance(s, Load))
    if apart and prod(a.size for a in nest.reduction) >= LONG_ROW and not any(isinstance(s, Scan) for s in nest.body):
        return 1
    return max(most // max(sum(isinstance(s, Reduce) for s in nest.body), 1), 1)


def _allows(nest: Nest) -> bool:
    """One sweep of sums over rows of which nothing is stored but results, in a short body."""
    if not nest.reduction or not nest.parallel or nest.strip or nest.segmented or len(nest.body) > LONGEST_BODY:
        return False
    if any(isinstance(s, Scan) or (isinstance(s, Store) and is_scatter(s)) for s in nest.body):
        return False  # which keep to the order of the points
    if any(s.op != "sum" or s.fold > 1 for s in nest.body if isinstance(s, Reduce)):
        return False
    summed = {a.symbol for a in nest.reduction}
    stored = any(isinstance(s, Store) and nest.store_scope(s) & summed for s in nest.body)
    return sum(p.sweep for p in plan_phases(nest)) == 1 and not stored and _all_vary(nest, nest.parallel[-1])


def _scans(nest: Nest) -> bool:
    """One sweep of running totals in a short body: each element of a row waits for the one before, but no other row."""
    if not nest.reduction or not nest.parallel or nest.strip or len(nest.body) > LONGEST_BODY:
        return False
    if any(isinstance(s, Reduce) or (isinstance(s, Store) and is_scatter(s)) for s in nest.body):
        return False
    return any(isinstance(s, Scan) for s in nest.body) and sum(p.sweep for p in plan_phases(nest)) == 1


def _all_vary(nest: Nest, axis: Axis) -> bool:
    return all(axis.symbol in nest.scopes[s.value] for s in nest.body if isinstance(s, Reduce))


def _short_axis(nest: Nest) -> Axis | None:
    """A short parallel axis that all sums vary along and the widest load doesn't."""
    loads = [nest.scopes[s.name] for s in nest.body if isinstance(s, Load)]
    widest = max(loads, key=lambda scope: prod(nest.ranges[s] for s in scope), default=frozenset())
    found = [a for a in nest.parallel if a.size <= SHORT_AXIS and a.symbol not in widest and _all_vary(nest, a)]
    return found[0] if found and len(nest.parallel) > 1 else None


def _jammed(nest: Nest, count: int) -> list[Nest]:
    axis = nest.parallel[-1]
    whole, rest = axis.size // count, axis.size % count
    found = [copied(nest, axis, whole, count)]
    if rest:
        last = replace(axis, size=rest)
        place = {axis.symbol: axis.symbol + count * whole}
        body = tuple(moved(s, "", frozenset(), place, {**nest.ranges, axis.symbol: rest}) for s in nest.body)
        found.append(Nest(tuple(last if a == axis else a for a in nest.axes), body))
    return found


def copied(nest: Nest, axis: Axis, size: int, count: int) -> Nest:
    """The nest over ``size`` places of ``axis``, at each of which ``count`` rows are computed; without it for one."""
    ranges = {**nest.ranges, axis.symbol: size}
    varying = frozenset(n for n, scope in nest.scopes.items() if axis.symbol in scope)
    start: Expr = axis.symbol * count if size > 1 else Integer(0)
    body: list[Stmt] = []
    for stmt in nest.body:
        if not isinstance(stmt, Store) and stmt.name not in varying:
            body.append(stmt)
            continue
        for k in range(count):
            body.append(moved(stmt, f"_{k}", varying, {axis.symbol: start + k}, ranges))
    axes = tuple(replace(a, size=size) if a == axis else a for a in nest.axes if a != axis or size > 1)
    return Nest(axes, tuple(body))


def moved(stmt: Stmt, suffix: str, renamed: frozenset[str], place: dict[Symbol, Expr],
           ranges: dict[Symbol, int]) -> Stmt:
    """``stmt`` at another place of the axis, its values and those of ``renamed`` that it reads with ``suffix``."""
    def name(value: str) -> str:
        return value + suffix if value in renamed else value

    if not isinstance(stmt, Store) and stmt.name in renamed:
        stmt = replace(stmt, name=name(stmt.name))
    index = index_of(stmt)
    if index is not None:
        values = {s: symbol(name(s.name)) for s in index.free_symbols if s.name in renamed}
        moved = rewrite(index, {**place, **values}, ranges)
        stmt = replace(stmt, expr=moved) if isinstance(stmt, Index) else replace(stmt, index=moved)  # type: ignore[call-arg]
    if isinstance(stmt, Load | Store) and stmt.mask is not None:
        stmt = replace(stmt, mask=name(stmt.mask))
    if isinstance(stmt, Compute):
        return replace(stmt, args=tuple(map(name, stmt.args)))
    return replace(stmt, value=name(stmt.value)) if isinstance(stmt, Reduce | Scan | Store) else stmt
