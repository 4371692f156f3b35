"""Several rows of a reduction at once (unroll and jam), so that more loads are under way and rows share what they load.

One row at a time leaves a single chain of additions and a single stream from memory. A nest that goes through each row
once is rewritten with ``JAMMED`` copies of what varies along its last parallel axis; what is left over of the axis
becomes a nest of its own.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sympy import Expr, Symbol

from .index import rewrite, symbol
from .ir import Axis, Compute, Index, Kernel, Load, Nest, Reduce, Stmt, Store, index_of
from .sweeps import plan_phases

#: Rows at once, and the longest body that is copied so many times: more values than that don't stay in registers.
JAMMED, LONGEST_BODY = 4, 24


def jam_rows(kernel: Kernel, worthwhile: Callable[[Kernel, Nest], bool]) -> Kernel:
    """``kernel`` with several rows at once in the nests that allow it and where that is ``worthwhile``."""
    nests: list[Nest] = []
    for nest in kernel.nests:
        if _allows(nest) and worthwhile(kernel, nest):
            nests += _jammed(nest)
        else:
            nests.append(nest)
    return kernel if tuple(nests) == kernel.nests else replace(kernel, nests=tuple(nests))


def _allows(nest: Nest) -> bool:
    """One sweep of sums over rows of which nothing is stored but results, in a short body."""
    if not nest.reduction or not nest.parallel or nest.strip or len(nest.body) > LONGEST_BODY:
        return False
    reduces = [s for s in nest.body if isinstance(s, Reduce)]
    last = nest.parallel[-1]
    if last.size < JAMMED or any(r.op != "sum" or last.symbol not in nest.scopes[r.value] for r in reduces):
        return False
    summed = {a.symbol for a in nest.reduction}
    stored = any(isinstance(s, Store) and nest.store_scope(s) & summed for s in nest.body)
    return sum(p.sweep for p in plan_phases(nest)) == 1 and not stored


def _jammed(nest: Nest) -> list[Nest]:
    axis = nest.parallel[-1]
    whole, rest = axis.size // JAMMED, axis.size % JAMMED
    found = [_copied(nest, axis, whole)]
    if rest:
        last = replace(axis, size=rest)
        place = {axis.symbol: axis.symbol + JAMMED * whole}
        body = tuple(_moved(s, "", frozenset(), place, {**nest.ranges, axis.symbol: rest}) for s in nest.body)
        found.append(Nest(tuple(last if a == axis else a for a in nest.axes), body))
    return found


def _copied(nest: Nest, axis: Axis, size: int) -> Nest:
    """The nest over ``size`` places of ``axis``, at each of which ``JAMMED`` rows are computed."""
    ranges = {**nest.ranges, axis.symbol: size}
    varying = frozenset(n for n, scope in nest.scopes.items() if axis.symbol in scope)
    body: list[Stmt] = []
    for stmt in nest.body:
        if not isinstance(stmt, Store) and stmt.name not in varying:
            body.append(stmt)
            continue
        for k in range(JAMMED):
            body.append(_moved(stmt, f"_{k}", varying, {axis.symbol: JAMMED * axis.symbol + k}, ranges))
    return Nest(tuple(replace(a, size=size) if a == axis else a for a in nest.axes), tuple(body))


def _moved(stmt: Stmt, suffix: str, renamed: frozenset[str], place: dict[Symbol, Expr],
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
    return replace(stmt, value=name(stmt.value)) if isinstance(stmt, Reduce | Store) else stmt
