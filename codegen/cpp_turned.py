"""Tiles of a transposing loop, whose elements are turned in registers instead of taken one by one.

A loop along what is stored gathers each element that it loads across. Here a tile is either computed along what it
loads, and its results are turned on their way to memory, or what it loads is turned before it is computed along what is
stored: whichever turns fewer tiles. The taps of a window make one result, a sum of two layouts turns one of the two.
"""
from __future__ import annotations

from collections.abc import Iterable

from sympy import Integer

from .cpp_spelling import STORAGE
from .cpp_staged import StagedLoops
from .cpp_streams import LINE_BYTES
from .index import affine
from .ir import Axis, Load, Store
from .turned import FAR_LINES, LONGEST_SIDE
from .turned_rows import Place


class TurnedTiles(StagedLoops):
    """Prints nests whose last two axes are a tile's: one that loads run along, and the last, that stores do."""

    def _tile(self) -> tuple[list[Place], list[Place]] | None:
        """What of a tile is turned: loads or stores. None for a nest that isn't in tiles."""
        if self.nest.reduction or len(self.nest.parallel) < 2 or self.colliding:
            return None
        across, last = self.nest.parallel[-2:]
        loads: dict[Axis, dict[Place, bool]] = {across: {}, last: {}}
        stores: list[Place] = []
        for stmt in self.nest.body:
            if not isinstance(stmt, Load | Store):
                continue
            coefficients, _, others = affine(stmt.index)
            plain = not others and coefficients.keys() <= self.nest.ranges.keys()
            if isinstance(stmt, Load):
                for axis, other in ((across, last), (last, across)):
                    # What is the same along a side is one line of a tile, and costs nothing whichever way it lies.
                    if coefficients.get(axis.symbol) == 1 and (other.symbol in coefficients or not plain):
                        loads[axis][stmt.buffer, stmt.index] = plain and stmt.mask is None
            elif not plain or stmt.accumulate or stmt.mask is not None or coefficients.get(
                    last.symbol) != 1 or across.symbol not in coefficients:
                return None
            else:
                stores.append((stmt.buffer, stmt.index))
        if max(across.size, last.size) > LONGEST_SIDE or not loads[across]:
            return None
        (load, *more) = loads[across]
        if not more and self._near(load, last) and all(self._straddles(p, across) for p in stores):
            return None
        if len(stores) + sum(loads[last].values()) <= len(loads[across]):
            return [], stores
        turned = [place for place, whole in loads[across].items() if whole]
        return (turned, []) if len(turned) == len(loads[across]) else None

    def _straddles(self, store: Place, across: Axis) -> bool:
        """Whether vectors of a tile's rows are as wide as a line of the cache and lie in two. Sixteen of those at once
        took a third longer than as many gathers with a store between."""
        itemsize = self.kernel.buffer(store[0]).dtype.itemsize
        return itemsize >= 4 and affine(store[1])[0][across.symbol] * itemsize % LINE_BYTES != 0

    def _near(self, load: Place, last: Axis) -> bool:
        """Whether the lines of a gather don't all fall into a few sets of the first-level cache."""
        distance = affine(load[1])[0].get(last.symbol, 0) * self.kernel.buffer(load[0]).dtype.itemsize
        return distance % FAR_LINES != 0

    def _print_tile(self, loads: list[Place], stores: list[Place]) -> None:
        """All loops of the nest."""
        across, last = self.nest.parallel[-2:]
        opened, _ = self._threads(self.nest.parallel[:-2])
        inner = [across, last] if loads else [last, across]
        loops = [*self._rest, *inner]
        *levels, points = self._by_depth(self.nest.body, loops)
        place = "".join(f"[{a.symbol}]" for a in inner)
        for axis, statements in zip(loops, levels):
            self.add_all(statements)
            if axis is inner[0]:
                tiles = self._declare_tiles((*loads, *stores), inner)
                self._turn(loads, across, last)
            if axis is not inner[1]:
                self.open(self._loop(axis))
        self._staged = {p: tiles[p] + place for p in loads}
        self._blocks = {p: tiles[p] + place for p in stores}
        self._print_points(inner[1], "0", str(inner[1].size), points)
        self._staged, self._blocks = {}, {}
        self.close()
        self._turn(stores, across, last)
        self.close(opened + len(self._rest))

    def _declare_tiles(self, places: Iterable[Place], axes: list[Axis]) -> dict[Place, str]:
        tiles = {p: f"tile{k}" for k, p in enumerate(places)}
        for (buffer, _), name in tiles.items():
            sides = "".join(f"[{a.size}]" for a in axes)
            self.add(f"{STORAGE[self.kernel.buffer(buffer).dtype]} {name}{sides};")
        return tiles

    def _turn(self, places: Iterable[Place], across: Axis, last: Axis) -> None:
        """Lines that turn what ``places`` have into their tiles, or the tiles into those."""
        for k, (buffer, index) in enumerate(places):
            start = self.spell_index(index.xreplace({across.symbol: Integer(0), last.symbol: Integer(0)}))
            memory, tile, strides = f"&{buffer}[{start}]", f"&tile{k}[0][0]", affine(index)[0]
            if strides[last.symbol] == 1:
                moves = f"{tile}, {across.size}, {memory}, {strides[across.symbol]}"
            else:
                moves = f"{memory}, {strides[last.symbol]}, {tile}, {last.size}"
            self.add(f"rf_turn<{last.size}, {across.size}>({moves});")
