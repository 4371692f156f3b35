"""Rows whose memory lies both along and across them: tiles of several rows, in which all of it lies one way."""
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sympy import Integer

from .cpp_segments import SegmentArrays
from .cpp_spelling import STORAGE
from .index import affine, symbol
from .ir import Kernel, Load, Nest, Store
from .turned import FAR_LINES, SIDE
from .turned_rows import Place, turned_rows


class TurnedRowForm(SegmentArrays):
    """Opens and closes the block of rows ``begin`` to ``end`` in whose tiles ``_staged`` has the elements of places
    that are turned, with their names."""

    _staged: Mapping[Place, str] = MappingProxyType({})

    def __init__(self, kernel: Kernel, nest: Nest) -> None:
        super().__init__(kernel, nest)
        self._turned_rows = turned_rows(kernel, nest)

    def element(self, stmt: Load) -> str:
        staged = self._staged.get((stmt.buffer, stmt.index)) if stmt.mask is None else None
        return super().element(stmt) if staged is None else staged

    def spell_store(self, stmt: Store) -> str:
        staged = self._staged.get((stmt.buffer, stmt.index)) if stmt.mask is None else None
        if staged is None:
            return super().spell_store(stmt)
        return f"{staged} = {self.narrow(stmt.value, stmt.value, self.kernel.buffer(stmt.buffer).dtype)};"

    def _open_block(self, chunked: bool) -> None:
        """The loop over blocks of rows, unless threads have them, and what is turned in front of a block."""
        turned = self._turned_rows
        assert turned is not None
        row, rows, size = self.nest.reduction[0], turned.rows, turned.axis.size
        if not chunked:
            self.open(f"for (int64_t begin = 0; begin < {size}; begin += {rows})")
            self.add(f"const int64_t end = RF_MIN(begin + {rows}, INT64_C({size}));")
        at = f"{turned.axis.symbol} - begin"
        place = f"[{row.symbol}][{at}]" if turned.lanes else f"[{at}][{row.symbol}]"
        for k, (buffer, index) in enumerate((*turned.loads, *turned.stores)):
            sides = f"[{row.size}][{rows}]" if turned.lanes else f"[{rows}][{self._pitch(buffer)}]"
            self.add(f"{STORAGE[self.kernel.buffer(buffer).dtype]} rows{k}{sides};")
            self._staged = {**self._staged, (buffer, index): f"rows{k}{place}"}
        for k, load in enumerate(turned.loads):
            self._turn_block(load, k, out=False)

    def _close_block(self, chunked: bool) -> None:
        """What is turned behind a block of rows."""
        turned = self._turned_rows
        assert turned is not None
        self._staged = {}
        for k, store in enumerate(turned.stores, len(turned.loads)):
            self._turn_block(store, k, out=True)
        self.close(not chunked)

    def _pitch(self, buffer: str) -> int:
        """Elements from row to row of a tile, such that few rows' lines fall into one set of the cache."""
        row = self.nest.reduction[0].size
        return row + SIDE if row * self.kernel.buffer(buffer).dtype.itemsize % FAR_LINES == 0 else row

    def _turn_block(self, place: Place, k: int, out: bool) -> None:
        """Lines that turn memory into a tile, or a tile out to memory: of a whole block, or what is left of one."""
        turned = self._turned_rows
        assert turned is not None
        axis, row = turned.axis, self.nest.reduction[0]
        buffer, index = place
        strides = affine(index)[0]
        start = self.spell_index(index.xreplace({row.symbol: Integer(0), axis.symbol: symbol("begin")}))
        memory = f"&{buffer}[{start}], {strides[axis.symbol if turned.lanes else row.symbol]}"
        tile = f"&rows{k}[0][0], {turned.rows if turned.lanes else self._pitch(buffer)}"
        rest = axis.size % turned.rows
        for rows in (turned.rows, rest):
            # Of memory's and a tile's directions the one goes from row to row, the other along one.
            sides = f"{row.size}, {rows}" if turned.lanes == out else f"{rows}, {row.size}"
            when = f"if (end - begin {'==' if rows == turned.rows else '!='} {turned.rows}) " if rest else ""
            if rows:
                self.add(f"{when}rf_turn<{sides}>({tile if out else memory}, {memory if out else tile});")
