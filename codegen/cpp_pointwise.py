"""Loops of pointwise work, and before them what all of their outer steps share, or all lanes of one.

An index that is computed from positions, a mask or a table of weights often varies only along the last axes of a nest.
Values like these, if they take more than a few operations, are computed once into arrays that stay in the second-level
cache, with the checks of what is looked up, instead of once for every step of the loops around those axes. So are those
that are the same for all of a short row, such as a gate: in loops of their own they are vectors, too.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeGuard

import torch

from .cpp_held import HELD_BYTES, SHARING_ROWS
from .cpp_prefetch import PREFETCH_LANES
from .cpp_scan_blocks import ScanBlocks
from .cpp_spelling import COMPUTE, STORAGE
from .ir import Axis, Compute, Kernel, Load, Nest, Stmt, Store, operands
from .operations import operation_cost

#: Operations from which on a value is worth an array: less than that costs no more than to load it.
WORTH_AN_ARRAY = 16
#: What it takes to look an element up, or to check an index: lanes go one by one.
LOOKUP = 8
#: Longest row in front of which a function of a library's is worth a loop over all rows.
SHORT_ROW = 256
#: Most arrays of a nest.
MOST_ARRAYS = 4


@dataclass(frozen=True)
class SharedPoints:
    """Values ``names`` that vary along ``axes``, the last ones of a nest, or some before the last, and not along
    others; with all that makes them they take ``cost`` operations a point."""

    axes: tuple[Axis, ...]
    names: tuple[str, ...]
    cost: int


def shared_points(kernel: Kernel, nest: Nest) -> tuple[SharedPoints, ...]:
    """What steps of outer loops share in a nest without reductions, or the lanes of short rows, of the costliest values
    as many as ``HELD_BYTES`` hold; those that vary along fewest axes come first, as others may be made of them."""
    if not nest.parallel:
        return ()
    lane = nest.parallel[-1]
    place = {a.symbol: k for k, a in enumerate(nest.parallel)}
    first: dict[str, int] = {}  # from which axis on a value varies
    cost: dict[str, int] = {}
    kept_as: dict[str, torch.dtype] = {}
    for stmt in nest.body:
        if isinstance(stmt, Store) or (isinstance(stmt, Load) and stmt.buffer in kernel.written):
            continue
        kept_as[stmt.name] = kernel.buffer(stmt.buffer).dtype if _is_plain_load(stmt) else stmt.dtype
        below = [n for n in operands(stmt) if n in first]
        if len(below) < len(set(operands(stmt))):
            continue  # it needs what is written
        first[stmt.name] = min((place[s] for s in nest.scopes[stmt.name]), default=len(place))
        cost[stmt.name] = _own_cost(stmt, nest) + sum(cost[n] for n in set(below))
    taken: dict[tuple[int, int], list[str]] = {}
    room = HELD_BYTES
    for name in sorted(_frontier(nest, first) | _rows_frontier(nest, first), key=lambda n: -cost[n]):
        varies = lane.symbol in nest.scopes[name]
        k, dtype = first[name], kept_as[name]
        end = max((place[s] for s in nest.scopes[name]), default=-1) + 1
        size = prod(a.size for a in nest.parallel[k:end]) * dtype.itemsize
        again = prod(a.size for a in (nest.parallel[:k] if varies else nest.parallel[end:]))
        worth = again >= SHARING_ROWS if varies else again <= SHORT_ROW and k < end
        if (worth and cost[name] >= WORTH_AN_ARRAY and dtype != torch.bool and size <= room
                and sum(map(len, taken.values())) < MOST_ARRAYS):
            taken.setdefault((k, end), []).append(name)
            room -= size
    return tuple(SharedPoints(nest.parallel[k:end], tuple(names), sum(cost[n] for n in names))
                 for (k, end), names in sorted(taken.items(), key=lambda t: (-t[0][0], t[0][1])))


def _is_plain_load(stmt: Stmt) -> TypeGuard[Load]:
    return isinstance(stmt, Load) and stmt.mask is None


def _own_cost(stmt: Stmt, nest: Nest) -> int:
    if isinstance(stmt, Compute):
        return LOOKUP if stmt.op == "bounded" else operation_cost(stmt.op)
    if isinstance(stmt, Load):
        return 1 if stmt.index.free_symbols <= nest.ranges.keys() else LOOKUP
    return 0


def _frontier(nest: Nest, first: Mapping[str, int]) -> set[str]:
    """The values that something which varies from an earlier axis on takes."""
    found: set[str] = set()
    for stmt in nest.body:
        here = 0 if isinstance(stmt, Store) else first.get(stmt.name, 0)
        found |= {n for n in operands(stmt) if first.get(n, 0) > here}
    return found


def _rows_frontier(nest: Nest, known: Mapping[str, int]) -> set[str]:
    """The values, the same for all lanes but not for all rows, that something which varies over lanes takes."""
    lane = nest.parallel[-1].symbol
    inside = [s for s in nest.body if lane in (nest.store_scope(s) if isinstance(s, Store) else nest.scopes[s.name])]
    return {n for s in inside for n in operands(s) if n in known and nest.scopes[n] and lane not in nest.scopes[n]}


class PointwiseForm(ScanBlocks):
    """Prints nests without reductions; ``_filling`` says where the values go that all steps share, while those are
    computed, and ``_arrays`` where they lie from then on: those ``_as_loaded`` in the type that they have in memory."""

    def __init__(self, kernel: Kernel, nest: Nest) -> None:
        super().__init__(kernel, nest)
        self._filling: Mapping[str, str] = {}
        self._as_loaded = {s.name: kernel.buffer(s.buffer).dtype for s in nest.body if _is_plain_load(s)}

    def _print_pointwise(self, parallel: list[Axis]) -> None:
        tile = self._tile()
        if tile is not None:
            return self._print_tile(*tile)
        for shared in shared_points(self.kernel, self.nest):
            self._fill(shared)
        self._print_all_points(parallel, self._makers([]))

    def _fill(self, shared: SharedPoints) -> None:
        """Declare the arrays of what steps share, and print the loops that compute it."""
        strides = [prod(a.size for a in shared.axes[k + 1:]) for k in range(len(shared.axes))]
        position = " + ".join(f"{n} * {a.symbol}" if n > 1 else str(a.symbol) for n, a in zip(strides, shared.axes))
        size = prod(a.size for a in shared.axes)
        for name in shared.names:
            loaded = self._as_loaded.get(name)
            self.add(f"{STORAGE[loaded] if loaded else COMPUTE[self.dtypes[name]]} shared_{name}[{size}];")
        self._filling = {n: f"shared_{n}[{position}]" for n in shared.names}
        work, self.work = self.work, size * shared.cost
        self.open("")
        self._print_all_points(shared.axes, self._makers(shared.names))
        self.close()
        self.work = work
        self._arrays, self._filling = {**self._arrays, **self._filling}, {}

    def _print_all_points(self, axes: Sequence[Axis], body: Sequence[Stmt]) -> None:
        """The loops over ``axes`` around ``body``, shared among threads."""
        lane = axes[-1]
        opened, chunked = self._threads(axes[:-1], lane)
        loops = [*self._rest, lane]
        levels = self._by_depth(body, loops)
        points = levels.pop()
        for axis, statements in zip(loops, levels):
            self.add_all(statements)
            if axis is not lane:
                self.open(self._loop(axis))
                opened += 1
        for low, high in self._pieces(lane, body):
            first, last = str(low), str(high)
            if chunked:
                first = "begin" if low == 0 else f"RF_MAX(begin, INT64_C({low}))"
                last = "end" if high == lane.size else f"RF_MIN(end, INT64_C({high}))"
            with self._in_piece(lane, (low, high)):
                streams = self._lane_streams(points, lane, high - low)
                if streams:
                    self.open(f"for (int64_t block = {first}; block < {last}; block += {PREFETCH_LANES})")
                    self._prefetch(streams, lane, "block", PREFETCH_LANES)
                    first, last = "block", f"RF_MIN(block + {PREFETCH_LANES}, {last})"
                self._print_points(lane, first, last, points)
                self.close(bool(streams))
        self.close(opened)

    def _makers(self, names: Iterable[str]) -> list[Stmt]:
        """The statements that ``names`` need, themselves included, or the stores without any: what lies in an array
        needs none."""
        needed = set(names)
        stores = not needed
        kept: list[Stmt] = []
        for stmt in reversed(self.nest.body):
            if stores if isinstance(stmt, Store) else stmt.name in needed:
                kept.append(stmt)
                if isinstance(stmt, Store) or stmt.name not in self._arrays:
                    needed.update(operands(stmt))
        return kept[::-1]

    def put(self, stmt: Stmt) -> None:
        super().put(stmt)
        if not isinstance(stmt, Store) and stmt.name in self._filling:
            loaded = self._as_loaded.get(stmt.name)
            value = self.narrow(stmt.name, stmt.name, loaded) if loaded else stmt.name
            self.add(f"{self._filling[stmt.name]} = {value};")

    def line(self, stmt: Stmt) -> str:
        if not isinstance(stmt, Store) and stmt.name in self._arrays and stmt.name not in self._as_loaded:
            return self.declare(stmt.name, stmt.dtype, self._arrays[stmt.name])
        return super().line(stmt)

    def element(self, stmt: Load) -> str:
        return self._arrays.get(stmt.name) or super().element(stmt)
