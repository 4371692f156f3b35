"""Positions of the Triton printer: which element of a nest each place of a tile is, and what is the same for all."""
from __future__ import annotations

from collections.abc import Sequence
from math import prod

from sympy import Expr, Symbol

from .index import affine
from .ir import Axis, Kernel, Load, Nest, Store
from .triton_reductions import ReductionTiles
from .triton_tiles import Tile, power_of_two


class PositionTiles(ReductionTiles):
    """Binds the symbols of axes: parallel ones to parts of the flattened ``x``, reduction ones to parts of ``r``."""

    def __init__(self, kernel: Kernel, nest: Nest, tile: Tile, indent: str) -> None:
        super().__init__(kernel, nest, tile, indent)
        self.rows = prod(a.size for a in nest.parallel)
        self.row = prod(a.size for a in nest.reduction)
        self.mask_x = not tile.strip and self.rows % tile.xblock != 0
        # A tile's row has a power of two of places along each axis where segments are reduced, else in all.
        self.padded = [power_of_two(a.size) for a in nest.reduction] if nest.segmented else []
        self.mask_r = bool(nest.reduction) and (
            prod(self.padded) != self.row if self.padded else self.row % tile.rblock != 0)
        self.after_strip = False
        self.reduction = frozenset(a.symbol for a in nest.reduction)
        #: Where in its row a tile starts, as text that a position in the tile is added to.
        self.row_start = ""

    def open_rows(self, start: str, deeper: int) -> str:
        """Bind ``x`` to the flattened positions of a tile's rows; the name of the first is returned."""
        first, lanes = self.name("first"), self.name("lane")
        self.add(f"{first} = {start}", deeper)
        self.add(f"{lanes} = tl.arange(0, {self.tile.xblock})" + ("[:, None]" if self.nest.reduction else ""), deeper)
        self.add(f"{self.name('x')} = {first} + {lanes}", deeper)
        return first

    def open_row(self, start: str, deeper: int) -> None:
        """Bind ``r`` to positions in a row, those of a tile that starts at ``start``, and the axes of the row."""
        self.row_start = start
        r = self.name("r")
        self.add(f"{r} = {start}tl.arange(0, {self.tile.rblock})[None, :]", deeper)
        if self.padded:
            self._open_segments(r)
            return
        if self.mask_r:
            self.add(f"{self.name('rmask')} = {r} < {self.row}", deeper)
        self.decode(r, self.nest.reduction, deeper)

    def _open_segments(self, r: str) -> None:
        """The same for a row with room along each axis; ``r`` becomes the position in the row."""
        axes, stride = self.nest.reduction, self.tile.rblock
        conditions, position = [], []
        for k, axis in enumerate(axes):
            stride //= self.padded[k]
            text = r if stride == 1 else f"({r} // {stride})"
            self.add(f"{self.spell_symbol(axis.symbol)} = {text if k == 0 else f'{text} % {self.padded[k]}'}")
            conditions += [f"({self.spell_symbol(axis.symbol)} < {axis.size})"] * (self.padded[k] != axis.size)
            position.append(f"{self.spell_symbol(axis.symbol)} * {prod(a.size for a in axes[k + 1:])}")
        if conditions:
            self.add(f"{self.name('rmask')} = {' & '.join(conditions)}")
            self.add(f"{r} = {' + '.join(position)}")

    def decode(self, flat: str, axes: Sequence[Axis], deeper: int, first: str = "", lanes: str = "",
               block: int = 0) -> None:
        """Bind each axis symbol to its part of the flattened position. With ``first``, the first of a tile's ``block``
        rows, what is the same for all of its rows is one number: no thread divides for it, and what lies there is
        loaded once. ``lanes`` are the rows' positions in the tile."""
        stride = prod(a.size for a in axes)
        for k, axis in enumerate(axes):
            stride //= axis.size
            if first and block > 1 and stride % block == 0:
                text, rest = self._part(first, stride, axis.size, k), ""
            elif first and k and stride * axis.size % block == 0 and block % stride == 0:
                # A difference and no remainder: of that Triton 3.6 doesn't see what divides it, and loads one by one.
                start, within = self._part(first, stride, 0, 0), self._part(lanes, stride, 0, 0)
                text, rest = f"({start} - {start} // {axis.size} * {axis.size})", f" + {within}"
            else:
                text, rest = self._part(flat, stride, axis.size, k), ""
            self.add(f"{self.spell_symbol(axis.symbol)} = {text}{rest}", deeper)

    @staticmethod
    def _part(flat: str, stride: int, size: int, k: int) -> str:
        text = flat if stride == 1 else f"({flat} // {stride})"
        return f"{text} % {size}" if k else text

    def has_one_place(self, scope: frozenset[Symbol]) -> bool:
        """Whether the axes of ``scope`` are such that all rows of a tile have the same place along them."""
        stride, shared, block = 1, set(), self.tile.xblock
        for axis in reversed(self.nest.parallel):
            shared |= {axis.symbol} if block > 1 and stride % block == 0 else set()
            stride *= axis.size
        return bool(shared) and scope <= shared

    def access_scope(self, stmt: Load | Store) -> frozenset[Symbol]:
        """The axes that an access varies over, in its address, its value or its mask."""
        return self.nest.store_scope(stmt) if isinstance(stmt, Store) else self.nest.scopes[stmt.name]

    def index_scope(self, stmt: Load) -> frozenset[Symbol]:
        """The axes that a load's address varies over: its mask may vary over more."""
        scope: set[Symbol] = set()
        for s in stmt.index.free_symbols:
            scope |= {s} if s in self.nest.ranges else self.nest.scopes[s.name]
        return frozenset(scope)

    def flat_offset(self, index: Expr, axes: Sequence[Axis], flat: str) -> str:
        """The element offset ``index``; by the position ``flat`` where the parallel ``axes`` are one run of memory, so
        that Triton sees neighbours as neighbours."""
        coefficients, strides, stride = affine(index)[0], {}, 1
        for axis in reversed(axes):
            strides[axis.symbol] = stride
            stride *= axis.size
        if self.nest.strip or len(strides) < 2 or any(coefficients.get(s) != n for s, n in strides.items()):
            return self.spell_index(index)
        rest = index - sum(n * s for s, n in strides.items())
        return flat if rest == 0 else f"({flat} + {self.spell_index(rest)})"
