"""Maps in which costly values are the same along an axis, as the angles of positions are for all sequences of a batch:
a program goes along that axis and computes them once."""
from __future__ import annotations

from dataclasses import replace
from math import prod

from .index import affine, rewrite, symbol
from .ir import Axis, Compute, Kernel, Load, Nest, Stmt, Store, index_of
from .operations import operation_cost
from .scatter import is_scatter

#: Cost in plain operations from which on values are worth it.
COSTLY = 16
#: Most places along the axis that a program takes, and fewest.
LONGEST, SHORTEST = 64, 4
#: Points across that axis that a program takes.
ACROSS = 1024


def go_along_invariant_axes(kernel: Kernel, programs_wanted: int) -> Kernel:
    """``kernel`` with the axis of each such nest, or a part of it, as rows that its programs go through: what doesn't
    vary along them is computed once a row. ``programs_wanted`` programs have to be left."""
    nests = tuple(_along(kernel, n, programs_wanted) for n in kernel.nests)
    return replace(kernel, nests=nests) if nests != kernel.nests else kernel


def _along(kernel: Kernel, nest: Nest, programs_wanted: int) -> Nest:
    stores = [s for s in nest.body if isinstance(s, Store)]
    if nest.reduction or nest.strip or len(nest.axes) < 2 or any(is_scatter(s) for s in stores):
        return nest
    whole = frozenset(a.symbol for a in nest.axes)
    places = {s.buffer: s.index for s in stores}
    if any(nest.store_scope(s) != whole for s in stores) or any(
            isinstance(s, Load) and s.index != places.get(s.buffer, s.index) for s in nest.body):
        return nest  # what it overwrites is read elsewhere, too
    most = prod(a.size for a in nest.axes) // (ACROSS * programs_wanted)
    saved = {a: invariant_cost(nest, a) * (1 - 1 / length) for a in nest.axes
             if not _runs_along(stores, a) and (length := places_along(a.size, most)) >= SHORTEST}
    axis = max(saved, key=lambda a: saved[a], default=None)
    return nest if axis is None or saved[axis] < COSTLY else _split(nest, axis, places_along(axis.size, most))


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


def _split(nest: Nest, axis: Axis, length: int) -> Nest:
    row = Axis(symbol("r0"), length, reduction=True)
    outer = [] if length == axis.size else [replace(axis, size=axis.size // length)]
    axes = (*(x for a in nest.axes for x in (outer if a is axis else [a])), row)
    place = row.symbol + (length * axis.symbol if outer else 0)
    ranges = {a.symbol: a.size for a in axes}
    return Nest(axes, tuple(_moved(s, {axis.symbol: place}, ranges) for s in nest.body))


def _moved(stmt: Stmt, places: dict, ranges: dict) -> Stmt:
    index = index_of(stmt)
    if index is None:
        return stmt
    moved = rewrite(index, places, ranges)
    return replace(stmt, index=moved) if isinstance(stmt, Load | Store) else replace(stmt, expr=moved)  # type: ignore[call-arg]
