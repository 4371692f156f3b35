"""Axis clean-up of a nest: order by memory, split what divisions cut, merge what is contiguous."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from sympy import Expr, Integer, Symbol

from .index import FloorDiv, Mod, affine, rewrite, symbol
from .ir import Axis, Index, Load, Nest, Reduce, Scan, Stmt, Store, index_of
from .sweeps import strip_reduces, strip_scans


def _with_index(stmt: Stmt, change: Callable[[Expr], Expr]) -> Stmt:
    if isinstance(stmt, Load | Store):
        return replace(stmt, index=change(stmt.index))
    return replace(stmt, expr=change(stmt.expr)) if isinstance(stmt, Index) else stmt


def _on_axes(stmt: Stmt, replaced: dict[Symbol, Expr], axes: tuple[Axis, ...]) -> Stmt:
    """``stmt`` with the axes that a segment reduction goes along replaced, in the order of ``axes``."""
    if not isinstance(stmt, Reduce) or not stmt.along:
        return stmt
    now = {s for old in stmt.along for s in replaced.get(old, old).free_symbols}
    return replace(stmt, along=tuple(a.symbol for a in axes if a.symbol in now))


def substitute_axes(nest: Nest, axes: tuple[Axis, ...], replaced: dict[Symbol, Expr]) -> Nest:
    """``nest`` over other ``axes``, with expressions in them for those that are gone."""
    ranges = {a.symbol: a.size for a in axes}
    cache: dict[Expr, Expr] = {}

    def change(expr: Expr) -> Expr:
        if expr not in cache:
            cache[expr] = rewrite(expr, replaced, ranges)
        return cache[expr]

    return Nest(axes, tuple(_on_axes(_with_index(s, change), replaced, axes) for s in nest.body))


def _expressions(nest: Nest) -> list[Expr]:
    """The distinct index expressions of the nest, in order of appearance."""
    found: dict[Expr, None] = {}
    for stmt in nest.body:
        expr = index_of(stmt)
        if expr is not None:
            found[expr] = None
    return list(found)


def _cut(nest: Nest) -> tuple[Axis, int] | None:
    """An axis and a divisor of its size at which a division or remainder cuts it."""
    sizes = nest.ranges
    for expr in _expressions(nest):
        for atom in sorted(expr.atoms(FloorDiv, Mod), key=str):
            inner, n = atom.args
            for axis in nest.axes:
                coefficient = affine(inner)[0].get(axis.symbol, 0)
                if coefficient <= 0 or coefficient >= n or int(n) % coefficient:
                    continue
                part = int(n) // coefficient
                if sizes[axis.symbol] % part == 0 and sizes[axis.symbol] != part:
                    return axis, part
    return None


def split_axes(nest: Nest) -> Nest:
    """Split axes until no division cuts one: ``p // 4, p % 4 -> p_hi, p_lo`` with ``p = 4 p_hi + p_lo``."""
    for _ in range(16):
        cut = _cut(nest)
        if cut is None:
            return nest
        axis, part = cut
        high, low = symbol(f"{axis.symbol.name}h"), symbol(f"{axis.symbol.name}l")
        axes: list[Axis] = []
        for a in nest.axes:
            if a == axis:
                axes += [replace(a, symbol=high, size=a.size // part), replace(a, symbol=low, size=part)]
            else:
                axes.append(a)
        nest = substitute_axes(nest, tuple(axes), {axis.symbol: high * part + low})
    return nest


def order_axes(nest: Nest) -> Nest:
    """Parallel axes by falling stride of the widest store, reduction axes by falling stride of the widest load.

    The order of reduction axes is kept where a result is a position in it (argmax, argmin) or a scan goes along it.
    """
    positional = any((isinstance(s, Scan) and not s.strip) or (isinstance(s, Reduce) and s.op.startswith("arg"))
                     for s in nest.body)

    def elements(index: Expr) -> int:
        return prod(nest.ranges[s] for s in index.free_symbols if s in nest.ranges)

    def strides(indices: list[Expr]) -> dict[Symbol, int]:
        result: dict[Symbol, int] = {}
        for expr in indices:
            for axis, coefficient in affine(expr)[0].items():
                result.setdefault(axis, abs(coefficient))
        return result

    def widest_first(indices: list[Expr]) -> list[Expr]:
        return sorted(indices, key=elements, reverse=True)

    stores = widest_first([s.index for s in nest.body if isinstance(s, Store)])
    loads = widest_first([s.index for s in nest.body if isinstance(s, Load)])
    both = {**strides(loads), **strides(stores)}
    scanned = bool(strip_scans(nest))  # row after row of a strip
    parallel = sorted(nest.parallel, key=lambda a: (a.strip, 0 if a.strip and scanned else -both.get(a.symbol, 0)))
    reduction = list(nest.reduction)
    if not positional:
        # An axis along which the widest load stands still is no place for vector lanes: it goes outside.
        widest = strides(loads[:1])
        reduction.sort(key=lambda a: -widest.get(a.symbol, 1 << 62))
    return Nest((*parallel, *reduction), nest.body)


def _mergeable(expressions: list[Expr], outer: Axis, inner: Axis) -> bool:
    for expr in expressions:
        coefficients, _, others = affine(expr)
        if any(s in o.free_symbols for o in others for s in (outer.symbol, inner.symbol)):
            return False
        if coefficients.get(outer.symbol, 0) != coefficients.get(inner.symbol, 0) * inner.size:
            return False
    return True


def merge_axes(nest: Nest) -> Nest:
    """Merge neighbouring axes of one kind that every index walks as if they were one."""
    k = 0
    while k + 1 < len(nest.axes):
        outer, inner = nest.axes[k], nest.axes[k + 1]
        together = all((outer.symbol in r.along) == (inner.symbol in r.along) for r in nest.segmented)
        if outer.kind == inner.kind and together and _mergeable(_expressions(nest), outer, inner):
            merged = replace(inner, size=outer.size * inner.size)
            axes = (*nest.axes[:k], merged, *nest.axes[k + 2:])
            nest = substitute_axes(nest, axes, {outer.symbol: Integer(0)})
            k = max(k - 1, 0)
        else:
            k += 1
    return nest


def rename_axes(nest: Nest) -> Nest:
    """Canonical names: ``p0, p1, …`` and ``r0, r1, …`` in order, so that equal nests print alike."""
    replaced: dict[Symbol, Expr] = {}
    axes = []
    counts = {False: 0, True: 0}
    for axis in nest.axes:
        name = symbol(f"{'r' if axis.reduction else 'p'}{counts[axis.reduction]}")
        counts[axis.reduction] += 1
        replaced[axis.symbol] = name
        axes.append(replace(axis, symbol=name))
    return substitute_axes(nest, tuple(axes), replaced)


def simplify_nest(nest: Nest) -> Nest:
    """Split, order, merge and rename the axes of ``nest``; what it computes stays the same."""
    if not strip_reduces(nest) and not strip_scans(nest):
        nest = Nest(tuple(replace(a, strip=False) for a in nest.axes), nest.body)
    return rename_axes(merge_axes(order_axes(split_axes(nest))))
