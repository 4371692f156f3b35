"""Loops that read along one axis and write along another, tile by tile.

A transposing nest whose innermost loop follows its stores takes one element of each cache line that it reads; the line
is gone by the time that the next one is wanted. In tiles of a few lines each way both sides use whole lines.
"""
from __future__ import annotations

from dataclasses import replace
from math import prod

from .index import affine, symbol
from .ir import Axis, Kernel, Load, Nest, Store
from .jam import moved
from .simplify import substitute_axes

#: Elements of a block's side, a cache line of float32; of a tile's side where they are narrower, and the most of them.
SIDE, NARROW_SIDE, LONGEST_SIDE = 16, 32, 64
#: Bytes from line to line from which on, as powers of two, few sets of the first-level cache hold all of a tile.
FAR_LINES = 2048
#: Bytes of which the nearest cache of any processor holds several, and how often what they are of is read again.
NEAR_BYTES, AGAIN = 1 << 13, 4


def turn_in_tiles(kernel: Kernel) -> Kernel:
    """``kernel`` with its transposing nests in tiles of whole blocks. What is left over of their sizes becomes nests of
    its own."""
    nests = tuple(part for nest in kernel.nests for part in _tiled(kernel, nest))
    return kernel if nests == kernel.nests else replace(kernel, nests=nests)


def crosses(kernel: Kernel, nest: Nest, fits: int) -> bool:
    """Whether a nest that reduces goes through memory along different axes, in buffers of more than ``fits`` bytes:
    tiles that suit both would cut the rows or columns that it sums. What is read again and again, a few lines at a
    time, as the sides of an outer product are, stays in the nearest cache however it is gone through."""
    if not nest.reduction:
        return False
    found: list[tuple[int, Axis]] = []
    points = prod(a.size for a in nest.axes)
    for stmt in nest.body:
        if isinstance(stmt, Load | Store):
            buffer, strides = kernel.buffer(stmt.buffer), affine(stmt.index)[0]
            along = next((a for a in nest.axes if strides.get(a.symbol) == 1 and a.size >= SIDE // 4), None)
            if along is None or buffer.size * buffer.dtype.itemsize <= fits:
                continue
            used = [a for a in nest.axes if a.symbol in strides]
            elements, near = prod(a.size for a in used), prod(a.size for a in used if a.reduction or a == along)
            if near * buffer.dtype.itemsize > NEAR_BYTES or AGAIN * elements > points:
                found.append((elements, along))
    widest = max((elements for elements, _ in found), default=0)
    return len({along for elements, along in found if elements == widest}) > 1


def _tiled(kernel: Kernel, nest: Nest) -> list[Nest]:
    across = _read_along(nest)
    if across is None:
        return [nest]
    last = nest.axes[-1]
    for axis in (last, across):
        rest = axis.size % SIDE if axis.size > SIDE else 0
        if rest:
            whole = axis.size - rest
            parts = _part(nest, axis, 0, whole), _part(nest, axis, whole, axis.size)
            return [tiled for part in parts for tiled in _tiled(kernel, part)]
    narrow = all(kernel.buffer(s.buffer).dtype.itemsize < 4 for s in nest.body if isinstance(s, Store))
    outer: list[Axis] = []
    inner: list[Axis] = []
    replaced = {}
    for axis in (across, last):
        side = _side(axis.size, NARROW_SIDE if narrow else SIDE)
        if side == axis.size:
            inner.append(axis)
            continue
        high, low = symbol(f"{axis.symbol.name}h"), symbol(f"{axis.symbol.name}l")
        outer.append(replace(axis, symbol=high, size=axis.size // side))
        inner.append(replace(axis, symbol=low, size=side))
        replaced[axis.symbol] = high * side + low
    kept = [a for a in nest.axes if a not in (across, last)]
    return [substitute_axes(nest, (*kept, *outer, *inner), replaced)]


def _part(nest: Nest, axis: Axis, begin: int, end: int) -> Nest:
    """The nest over some places of an axis."""
    place = {axis.symbol: axis.symbol + begin}
    ranges = {**nest.ranges, axis.symbol: end - begin}
    axes = tuple(replace(a, size=end - begin) if a == axis else a for a in nest.axes)
    return Nest(axes, tuple(moved(s, "", frozenset(), place, ranges) for s in nest.body))


def _read_along(nest: Nest) -> Axis | None:
    """The axis along which the widest load runs, if all wide stores run along another, the last; None for nests that
    reduce, store under conditions, or load under such that change along that axis, and where either axis is short."""
    if nest.reduction or nest.strip or len(nest.axes) < 2:
        return None
    accesses = [s for s in nest.body if isinstance(s, Load | Store)]
    if any(isinstance(s, Store) and (s.mask is not None or s.accumulate) for s in accesses):
        return None
    last = nest.axes[-1]
    strides = {s: affine(s.index)[0] for s in accesses}
    if any(isinstance(s, Store) and strides[s].get(last.symbol) != 1 for s in accesses):
        return None
    loads = [s for s in accesses if isinstance(s, Load) and strides[s].get(last.symbol, 0) > 1]
    widest = max(loads, key=lambda s: prod(nest.ranges[x] for x in strides[s] if x in nest.ranges), default=None)
    if widest is None:
        return None
    masks = [nest.scopes[s.mask] for s in accesses if s.mask is not None]
    found = [a for a in nest.axes[:-1] if strides[widest].get(a.symbol) == 1 and not any(a.symbol in m for m in masks)]
    if masks and not all(strides[s].get(a.symbol) == 1 for a in found for s in loads):
        return None
    return found[0] if found and min(found[0].size, last.size) >= SIDE // 4 else None


def _side(size: int, wanted: int) -> int:
    """All of a size of less than a block, else the divisor in whole blocks that is nearest to ``wanted``."""
    found = [n for n in range(SIDE, LONGEST_SIDE + 1, SIDE) if size % n == 0] or [size]
    return min(found, key=lambda n: (abs(n - wanted), n))
