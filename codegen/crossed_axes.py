"""Nests that go through memory along two axes: what they read lies along one of them, what they write along another.

A program that follows one axis takes a single element of each piece of 32 bytes that memory hands out along the other;
other programs want its neighbours later, from a cache or from memory again. One that has a tile of both axes uses what
it gets. A map's tile has the last places of one axis as a row, and neighbours along the other side by side.
"""
from __future__ import annotations

from dataclasses import replace
from math import prod

from .index import affine, symbol
from .ir import Axis, Kernel, Load, Nest, Store
from .scatter import is_scatter
from .simplify import substitute_axes

#: What memory hands out at once, in bytes.
SECTOR = 32
#: Longest side of a tile, and shortest of which all elements are used: a sector of bfloat16.
SIDE, SHORTEST_SIDE = 64, SECTOR // 2
#: Part of the bytes of a nest that lie along the second axis from which on a tile pays.
CROSSING_SHARE = 1 / 8
#: Part of a nest's points that an access has to have elements for: smaller ones stay in a cache.
WIDE = 1 / 4


def crossed_axes(kernel: Kernel, nest: Nest) -> tuple[Axis, Axis] | None:
    """The two axes of a nest along which most of what it accesses lies in memory, the one with more bytes first; None
    where all lies along one, or neighbours along either share sectors."""
    points = prod(a.size for a in nest.axes)
    along: dict[Axis, int] = {}
    strides: dict[Axis, list[tuple[dict, int]]] = {}
    for stmt in nest.body:
        if not isinstance(stmt, Load | Store):
            continue
        coefficients, size = affine(stmt.index)[0], kernel.buffer(stmt.buffer).dtype.itemsize
        elements = prod(a.size for a in nest.axes if a.symbol in coefficients)
        axis = next((a for a in nest.axes if coefficients.get(a.symbol) == 1 and a.size * size >= SECTOR // 4), None)
        if axis is not None and elements >= WIDE * points:
            along[axis] = along.get(axis, 0) + elements * size
            strides.setdefault(axis, []).append((coefficients, size))
    ranked = sorted(along, key=lambda a: (-along[a], -nest.axes.index(a)))
    if len(ranked) < 2 or along[ranked[1]] < CROSSING_SHARE * sum(along.values()):
        return None
    first, second = ranked[:2]
    apart = all(abs(int(coefficients.get(other.symbol, 0))) * size >= SECTOR
                for axis, other in ((first, second), (second, first)) for coefficients, size in strides[axis])
    return (first, second) if apart else None


def cross_in_tiles(kernel: Kernel, programs_wanted: int) -> Kernel:
    """``kernel`` with the last places along one of the crossed axes of each map as a row that a program has whole, and
    the other axis last of those along which it has neighbours. ``programs_wanted`` programs have to be left where an
    axis can only be gone through whole."""
    nests = tuple(_tiled(kernel, n, programs_wanted) for n in kernel.nests)
    return replace(kernel, nests=nests) if nests != kernel.nests else kernel


def _tiled(kernel: Kernel, nest: Nest, programs_wanted: int) -> Nest:
    if nest.reduction or nest.strip or any(isinstance(s, Store) and is_scatter(s) for s in nest.body):
        return nest
    crossed = crossed_axes(kernel, nest)
    if crossed is None:
        return nest
    rows = [(_side(axis.size), other.size % SIDE == 0, axis, other) for axis, other in (crossed, crossed[::-1])]
    side, _, row, beside = max(rows, key=lambda found: found[:2])
    if side < min(SHORTEST_SIDE, row.size):  # no part of either is a side: all of it is gone through, tile by tile
        side = row.size
        if prod(a.size for a in nest.axes) // (row.size * SIDE) < programs_wanted:
            return nest
    outer = [] if side == row.size else [replace(row, size=row.size // side)]
    others = [a for a in nest.axes if a not in (row, beside)]
    inner = Axis(symbol("r0"), side, reduction=True)
    place = inner.symbol + (side * row.symbol if outer else 0)
    return substitute_axes(nest, (*others, *outer, beside, inner), {row.symbol: place})


def _side(size: int) -> int:
    """The longest side that divides an axis, whole sectors before others; all of a short axis."""
    if size <= SIDE:
        return size
    divisors = [n for n in range(SIDE, 0, -1) if size % n == 0]
    return next((n for n in divisors if n % SHORTEST_SIDE == 0), divisors[0])
