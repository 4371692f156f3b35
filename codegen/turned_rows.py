"""Rows that are reduced where some of memory runs along them and the rest across: from row to row.

A LayerNorm over channels that are the first dimension in memory, and the last of the gradient that comes back, reads
one of the two across its rows. As many rows as a line of the cache has elements are taken together: what lies across is
turned into a tile of theirs before, or out of one after them, and within the tiles all memory runs along the rows. Or
the other way round, where the rows are lanes: short rows take no less time for the ends of their sums than for those.
"""
from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sympy import Expr

from .contraction import contraction_of
from .index import affine
from .ir import Axis, Kernel, Load, Nest, Reduce, Scan, Store
from .scatter import colliding_axes
from .turned import SIDE

#: Bytes of the tiles of a nest, which stay in the second-level cache.
TILES_BYTES = 1 << 17
#: The shortest row that vectors go along, and the longest; up to which length the ends of a row's sums take longer than
#: loops over few lanes; and how much less than the most may be read in another direction without a tile.
FEWEST_LANES, LONGEST_ROW, SHORT_ROW, FEW = 32, 1 << 12, 192, 4

Place = tuple[str, Expr]


@dataclass(frozen=True)
class TurnedRows:
    """``rows`` neighbours along ``axis`` are taken together. ``loads`` and ``stores`` are turned: those along rows
    where the rows are ``lanes`` of vectors, those across where vectors go along a row."""

    axis: Axis
    rows: int
    lanes: bool
    loads: tuple[Place, ...]
    stores: tuple[Place, ...]


def turned_rows(kernel: Kernel, nest: Nest) -> TurnedRows | None:
    """How the rows of ``nest`` are turned, if its memory runs both along them and across them, and tiles of what is
    turned fit in a core's cache."""
    if len(nest.reduction) != 1 or not nest.parallel or nest.segmented or contraction_of(nest) is not None:
        return None
    row, across = nest.reduction[0], nest.parallel[-1]
    if not SIDE // 4 <= row.size <= LONGEST_ROW or across.size < SIDE // 4 or colliding_axes(nest) or any(
            (isinstance(s, Reduce) and s.fold > 1) or (isinstance(s, Scan) and not s.strip) for s in nest.body):
        return None
    ways: dict[bool, list[Load | Store]] = {True: [], False: []}
    for stmt in _widest(nest):
        strides = affine(stmt.index)[0]
        along = strides.get(row.symbol) == 1
        if not along and strides.get(across.symbol) != 1:
            return None
        if across.symbol in strides:  # all rows share the others
            ways[along].append(stmt)
    if not ways[True] or not ways[False]:
        return None
    short = row.size <= SHORT_ROW and len(ways[True]) <= len(ways[False])
    forms = [f for f in (short, not short) if (not nest.strip if f else row.size >= FEWEST_LANES)]
    return next((t for f in forms if (t := _tiles(kernel, nest, ways[f], f)) is not None), None)


def _tiles(kernel: Kernel, nest: Nest, turned: list[Load | Store], lanes: bool) -> TurnedRows | None:
    """The tiles of what is turned, if they fit and hold all that there is of it."""
    places = {(isinstance(s, Store), (s.buffer, s.index)): None for s in turned}
    sizes = [kernel.buffer(b).dtype.itemsize for _, (b, _) in places]
    rows = min(max(4 * SIDE // min(sizes), SIDE), nest.parallel[-1].size)  # a line of the narrowest
    if rows * nest.reduction[0].size * sum(sizes) > TILES_BYTES or not all(_is_plain(kernel, nest, s) for s in turned):
        return None
    loads, stores = (tuple(p for stored, p in places if stored == k) for k in (False, True))
    return TurnedRows(nest.parallel[-1], rows, lanes, loads, stores)


def _is_plain(kernel: Kernel, nest: Nest, stmt: Load | Store) -> bool:
    """Whether all places that a statement reads or writes are known, and nothing else writes or reads them."""
    strides, _, others = affine(stmt.index)
    alone = not (stmt.buffer in kernel.read and stmt.buffer in kernel.written)
    whole = stmt.mask is None and not (isinstance(stmt, Store) and stmt.accumulate)
    return alone and whole and not others and strides.keys() <= nest.ranges.keys()


def _widest(nest: Nest) -> list[Load | Store]:
    """What is read and written in rows, without what has far fewer elements than the most of it."""
    row = nest.reduction[0].symbol
    elements = {s: prod(nest.ranges[x] for x in affine(s.index)[0] if x in nest.ranges) for s in nest.body
                if isinstance(s, Load | Store) and row in s.index.free_symbols}
    return [s for s, n in elements.items() if FEW * n >= max(elements.values())]
