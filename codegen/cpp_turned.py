"""Tiles of a transposing loop, computed along what is loaded and stored from an array of the tile's elements.

A loop along what is stored gathers each element that it loads, and vectors of a library's functions aren't called on
those. Where more is loaded than stored, as by the taps of a window, one transposition of the results takes the place of
several of what they are made of.
"""
from __future__ import annotations

from sympy import Integer

from .cpp_cuts import CutLoops
from .cpp_spelling import STORAGE
from .index import affine
from .ir import Axis, Load, Store
from .turned import LONGEST_SIDE


class TurnedTiles(CutLoops):
    """Prints nests whose last two axes are a tile's."""

    def _tile(self) -> tuple[Axis, Axis] | None:
        """The axes of a tile, the one that more loads run along and the one that all stores do; None without such."""
        if self.nest.reduction or len(self.nest.parallel) < 2 or self.colliding:
            return None
        across, last = self.nest.parallel[-2:]
        accesses = [s for s in self.nest.body if isinstance(s, Load | Store)]
        if max(across.size, last.size) > LONGEST_SIDE:
            return None
        runs: dict[Axis, int] = {across: 0, last: 0}
        for stmt in accesses:
            coefficients, _, others = affine(stmt.index)
            if isinstance(stmt, Load):
                for axis in runs:
                    runs[axis] += coefficients.get(axis.symbol) == 1
                continue
            whole = coefficients.get(last.symbol) == 1 and across.symbol in coefficients and not others
            if not whole or stmt.accumulate or stmt.mask is not None:
                return None
        return (across, last) if runs[across] > runs[last] else None

    def _print_tile(self, across: Axis, last: Axis) -> None:
        """All loops of the nest."""
        opened, _ = self._threads(self.nest.parallel[:-2])
        loops = [*self._rest, last, across]
        *levels, points = self._by_depth(self.nest.body, loops)
        stores = [s for s in self.nest.body if isinstance(s, Store)]
        tiles = {(s.buffer, s.index): f"tile{k}[{last.symbol}][{across.symbol}]" for k, s in enumerate(stores)}
        for axis, statements in zip(loops, levels):
            self.add_all(statements)
            if axis is last:
                for k, store in enumerate(stores):
                    kind = STORAGE[self.kernel.buffer(store.buffer).dtype]
                    self.add(f"{kind} tile{k}[{last.size}][{across.size}];")
            if axis is not across:
                self.open(self._loop(axis))
        self._blocks = tiles
        self._print_points(across, "0", str(across.size), points)
        self._blocks = {}
        self.close()
        for (buffer, index), element in tiles.items():
            start = self.spell_index(index.xreplace({across.symbol: Integer(0), last.symbol: Integer(0)}))
            stride = affine(index)[0][across.symbol]
            self.add(f"rf_turn({element.partition('[')[0]}, &{buffer}[{start}], {stride});")
        self.close(opened + len(self._rest))
