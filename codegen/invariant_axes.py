"""Nests in which costly values are the same along an axis, as the angles of positions are for all sequences of a batch:
a program of a map goes along that axis and computes them once, one that reduces rows has several side by side. A map's
programs also go along an axis if what they load is the same along it and would otherwise come from memory each time."""
from __future__ import annotations

from dataclasses import replace
from math import prod

from sympy import Symbol

from .contraction import contraction_of
from .index import affine, symbol
from .ir import Axis, Compute, Kernel, Load, Nest, Scan, Store
from .operations import operation_cost
from .scatter import is_scatter
from .simplify import substitute_axes
from .triton_tiles import COSTLY, PERSISTENT_ELEMENTS, kept_tiles, memory_along_rows, row_tile, rows_beside, shared_cost

#: Most places along the axis that a program takes, and fewest.
LONGEST, SHORTEST = 64, 4
#: Part of the bytes at a point that going along an axis has to save, and that a load has to be for a cache to lose it.
LOST_SHARE = 1 / 8
#: Points across that axis that a program takes.
ACROSS = 1024


def go_along_invariant_axes(kernel: Kernel, programs_wanted: int, cache_bytes: int) -> Kernel:
    """``kernel`` with the axis of each such nest, or a part of it, as rows that its programs go through, or as the
    neighbours of rows. What doesn't vary along it is computed or loaded once. ``programs_wanted`` programs have to be
    left; ``cache_bytes`` stay on chip from one place along an axis to the next."""
    nests = tuple(_beside(n, programs_wanted) if n.reduction else _along(kernel, n, programs_wanted, cache_bytes)
                  for n in kernel.nests)
    return replace(kernel, nests=nests) if nests != kernel.nests else kernel


def _along(kernel: Kernel, nest: Nest, programs_wanted: int, cache_bytes: int) -> Nest:
    stores = [s for s in nest.body if isinstance(s, Store)]
    if len(nest.axes) < 2 or any(is_scatter(s) for s in stores):
        return nest
    whole = frozenset(a.symbol for a in nest.axes)
    places = {s.buffer: s.index for s in stores}
    if any(nest.store_scope(s) != whole for s in stores) or any(
            isinstance(s, Load) and s.index != places.get(s.buffer, s.index) for s in nest.body):
        return nest  # what it overwrites is read elsewhere, too
    most = prod(a.size for a in nest.axes) // (ACROSS * programs_wanted)
    across = [a for a in nest.axes if not _runs_along(stores, a)]
    saved = {a: invariant_cost(nest, a) * (1 - 1 / length) for a in across
             if (length := places_along(a.size, most)) >= SHORTEST}
    axis = max(saved, key=lambda a: saved[a], default=None)
    if axis is None or saved[axis] < COSTLY:
        lost = {a: lost_bytes(kernel, nest, a, cache_bytes) for a in across if 1 < a.size <= min(LONGEST, most)}
        axis = max(lost, key=lambda a: lost[a] * (1 - 1 / a.size), default=None)
        if axis is None or lost[axis] < LOST_SHARE * sum(b for _, b in _accesses(kernel, nest)):
            return nest
    return _split(nest, axis, Axis(symbol("r0"), places_along(axis.size, most), reduction=True))


def _accesses(kernel: Kernel, nest: Nest) -> list[tuple[Load | Store, int]]:
    """What reads and writes memory, and the bytes of an element."""
    return [(s, kernel.buffer(s.buffer).dtype.itemsize) for s in nest.body if isinstance(s, Load | Store)]


def lost_bytes(kernel: Kernel, nest: Nest, axis: Axis, cache_bytes: int) -> int:
    """Bytes at each point of loads that are the same along ``axis`` and that a cache of ``cache_bytes`` has lost by the
    next place along it: all that is touched in between doesn't fit. What is little of that stays where it is."""
    inside = {a.symbol: a.size for a in nest.axes[nest.axes.index(axis) + 1:]}
    touched = [(s, size, size * prod(inside[x] for x in _scope(nest, s) & inside.keys()))
               for s, size in _accesses(kernel, nest)]
    total = sum(there for *_, there in touched)
    return sum(size for s, size, there in touched if total > cache_bytes and there >= LOST_SHARE * total
               and isinstance(s, Load) and axis.symbol not in _scope(nest, s))


def _scope(nest: Nest, stmt: Load | Store) -> frozenset[Symbol]:
    return nest.store_scope(stmt) if isinstance(stmt, Store) else nest.scopes[stmt.name]


def invariant_cost(nest: Nest, axis: Axis) -> int:
    """Cost of the operations whose results are the same along ``axis``, and not along all axes."""
    return sum(operation_cost(s.op, special_units=True) for s in nest.body
               if isinstance(s, Compute) and nest.scopes[s.name] and axis.symbol not in nest.scopes[s.name])


def places_along(size: int, most: int) -> int:
    """The largest divisor of an axis' size that a program may take."""
    return next((n for n in range(min(size, LONGEST, most), 0, -1) if size % n == 0), 1)


def _runs_along(stores: list[Store], axis: Axis) -> bool:
    """Whether neighbours along an axis are neighbours in memory: those a thread takes together as it is."""
    return any(affine(s.index)[0].get(axis.symbol) == 1 for s in stores)


def _split(nest: Nest, axis: Axis, inner: Axis) -> Nest:
    """``nest`` with as many of the last places along a parallel ``axis`` as ``inner`` has, as the axis ``inner``."""
    outer = [] if inner.size == axis.size else [replace(axis, size=axis.size // inner.size)]
    parallel = [x for a in nest.parallel for x in (outer if a is axis else [a])]
    place = inner.symbol + (inner.size * axis.symbol if outer else 0)
    return substitute_axes(nest, (*parallel, inner, *nest.reduction), {axis.symbol: place})


def _beside(nest: Nest, programs_wanted: int) -> Nest:
    """A nest of rows with places along the axis as its last parallel one, as many as registers hold rows."""
    if nest.strip or nest.segmented or contraction_of(nest) is not None or not memory_along_rows(nest) or any(
            isinstance(s, Scan) for s in nest.body):
        return nest
    most = min(PERSISTENT_ELEMENTS // (row_tile(nest) * kept_tiles(nest)),
               prod(a.size for a in nest.parallel) // programs_wanted)
    saved = {a: shared_cost(nest, a) * (1 - 1 / n) for a in nest.parallel if (n := rows_beside(a.size, most)) > 1}
    axis = max(saved, key=lambda a: saved[a], default=None)
    if axis is None or shared_cost(nest, axis) < COSTLY:
        return nest
    return _split(nest, axis, Axis(symbol(f"{axis.symbol.name}l"), rows_beside(axis.size, most)))
