"""Triton printer: one program a tile of ``[XBLOCK, RBLOCK]`` elements (``[XBLOCK]`` when nothing is reduced).

Parallel axes are flattened into ``x`` and reduction axes into ``r``. A row that fits in registers is *persistent*: it
is loaded once and every sweep works on the same tile. A longer row is *looped*: each sweep reads it again.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from sympy import Symbol

from .contraction import contraction_of
from .eviction import eviction
from .index import affine, bounds
from .ir import Axis, Kernel, Load, Nest, Reduce, Scan, Store
from .summed_products import contracts_only_sums
from .sweeps import Phase, after_strips, finale, plan_phases, strip_reduces, strip_scans
from .triton_dot import DotPrinter, DotTile
from .triton_reductions import ReductionTiles
from .triton_spelling import POINTERS, PRELUDE
from .triton_tiles import Tile, power_of_two
from .triton_tilings import default_tiles


class NestPrinter(ReductionTiles):
    """Prints one nest for one program; ``number`` keeps the names of several nests in a kernel apart."""

    def __init__(self, kernel: Kernel, nest: Nest, tile: Tile, number: int, indent: str) -> None:
        super().__init__(kernel, nest, tile, indent)
        self.number = number
        self.suffix = f"_{number}" if len(kernel.nests) > 1 else ""
        self.after_strip = False
        self.rows = prod(a.size for a in nest.parallel)
        self.row = prod(a.size for a in nest.reduction)
        self.mask_x = not tile.strip and self.rows % tile.xblock != 0
        # A tile's row has a power of two of places along each axis where segments are reduced, else in all.
        self.padded = [power_of_two(a.size) for a in nest.reduction] if nest.segmented else []
        self.mask_r = bool(nest.reduction) and (
            prod(self.padded) != self.row if self.padded else self.row % tile.rblock != 0)
        self.wide = any(b.size >= 2**31 for b in kernel.buffers) or self._index_overflows()
        self.reduction = frozenset(a.symbol for a in nest.reduction)
        self.looped: tuple[Sequence[Phase], int] = ((), 0)

    def _index_overflows(self) -> bool:
        """Whether an index needs 64 bits."""
        for stmt in self.nest.body:
            if isinstance(stmt, Load | Store):
                extent = bounds(stmt.index, self.nest.ranges)
                if extent is not None and extent[1] >= 2**31:
                    return True
        return self.rows * max(self.row, 1) >= 2**31

    def print(self, program: str) -> list[str]:
        """Lines for the nest; ``program`` is the expression of its own program number."""
        x, t = self.name("x"), self.tile
        number = f"{program}.to(tl.int64)" if self.wide else program
        if t.strip:
            self._print_strip(number)
            return self.lines
        if t.resident:
            self.add(f"for {self.name('row')} in range({number}, {self.rows}, {t.programs}):")
            number, self.indent = self.name("row"), self.indent + "    "
        first = self._open_rows(f"{number} * {t.xblock}", 0)
        if self.mask_x:
            self.add(f"{self.name('xmask')} = {x} < {self.rows}")
        self._decode(x, self.nest.parallel, 0, first)
        phases = plan_phases(self.nest)
        if not self.nest.reduction:
            for stmt in phases[0].body:
                self.add(self.line(stmt))
        elif t.persistent:
            self._print_persistent()
        else:
            self._print_looped(phases)
        return self.lines

    def _open_rows(self, start: str, deeper: int) -> str:
        """Bind ``x`` to the flattened positions of a tile's rows; the name of the first is returned."""
        first, lanes = self.name("first"), self.name("lane")
        self.add(f"{first} = {start}", deeper)
        self.add(f"{lanes} = tl.arange(0, {self.tile.xblock})" + ("[:, None]" if self.nest.reduction else ""), deeper)
        self.add(f"{self.name('x')} = {first} + {lanes}", deeper)
        return first

    def _decode(self, flat: str, axes: Sequence[Axis], deeper: int, first: str = "") -> None:
        """Bind each axis symbol to its part of the flattened position. With ``first``, a tile's first row, what is the
        same for all of its rows is one number: no thread divides for it, and what lies there is loaded once."""
        stride = prod(a.size for a in axes)
        for k, axis in enumerate(axes):
            stride //= axis.size
            if first and self._is_shared(stride):
                text, rest = self._part(first, stride, axis.size, k), ""
            elif first and k and stride * axis.size % self.tile.xblock == 0 and self.tile.xblock % stride == 0:
                # A difference and no remainder: of that Triton 3.6 doesn't see what divides it, and loads one by one.
                start, within = self._part(first, stride, 0, 0), self._part(self.name("lane"), stride, 0, 0)
                text, rest = f"({start} - {start} // {axis.size} * {axis.size})", f" + {within}"
            else:
                text, rest = self._part(flat, stride, axis.size, k), ""
            self.add(f"{self.spell_symbol(axis.symbol)} = {text}{rest}", deeper)

    @staticmethod
    def _part(flat: str, stride: int, size: int, k: int) -> str:
        text = flat if stride == 1 else f"({flat} // {stride})"
        return f"{text} % {size}" if k else text

    def _is_shared(self, stride: int) -> bool:
        """Whether all rows of a tile have the same place along a parallel axis of this stride."""
        return self.tile.xblock > 1 and stride % self.tile.xblock == 0

    def _has_one_place(self, scope: frozenset[Symbol]) -> bool:
        """Whether the axes of ``scope`` are such that all rows of a tile have the same place along them."""
        stride, shared = 1, set()
        for axis in reversed(self.nest.parallel):
            shared |= {axis.symbol} if self._is_shared(stride) else set()
            stride *= axis.size
        return bool(shared) and scope <= shared

    def _open_row(self, start: str, deeper: int) -> None:
        r = self.name("r")
        self.add(f"{r} = {start}tl.arange(0, {self.tile.rblock})[None, :]", deeper)
        if self.padded:
            self._open_segments(r)
            return
        if self.mask_r:
            self.add(f"{self.name('rmask')} = {r} < {self.row}", deeper)
        self._decode(r, self.nest.reduction, deeper)

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

    def _print_persistent(self) -> None:
        self._open_row("", 0)
        for stmt in self.nest.body:
            if isinstance(stmt, Reduce):
                self._reduce_tile(stmt, self.name(stmt.value), 0)
            elif isinstance(stmt, Scan):
                self.add(self._scan_lines(stmt, self.tile.xblock, self.tile.rblock, False, None)[0])
            else:
                self.add(self.line(stmt))

    def _print_strip(self, number: str) -> None:
        """A strip's rows, ``xblock`` at a time, and then what follows from what their columns came to."""
        t, x, at = self.tile, self.name("x"), self.name("at")
        self._open_row("", 0)
        for text in (*self._first_in_strip(), *self._first_totals(strip_scans(self.nest), t.xblock)):
            self.add(text)
        self.add(f"for {at} in range(0, {t.strip}, {t.xblock}):")
        self._decode(x, self.nest.parallel, 1, self._open_rows(f"{number} * {t.strip} + {at}", 1))
        ending = after_strips(self.nest)
        for stmt in self.nest.body:
            if isinstance(stmt, Reduce) and stmt.strip:
                self._add_to_strip(stmt)
            elif isinstance(stmt, Reduce):
                self._reduce_tile(stmt, self.name(stmt.value), 1)
            elif isinstance(stmt, Scan):
                for text in self._scan_lines(stmt, t.xblock, t.rblock, True, None):
                    self.add(text, 1)
            elif not any(stmt is s for s in ending):
                self.add(self.line(stmt), 1)
        self.after_strip = True
        self.add(f"{x} = {number} * {t.strip}")
        self._decode(x, self.nest.parallel, 0)
        for reduce in strip_reduces(self.nest):
            self._finish_strip(reduce)
        for stmt in finale(self.nest):
            self.add(self.line(stmt))

    def _print_looped(self, phases: Sequence[Phase]) -> None:
        for k, phase in enumerate(phases):
            self.looped = phases, k
            if not phase.sweep:
                for stmt in phase.body:
                    self.add(self.line(stmt))
                continue
            for reduce in phase.reduces:
                for text in self._first_accumulators(reduce):
                    self.add(text)
            for text in self._first_totals(phase.body, self.tile.xblock):
                self.add(text)
            start = self.name("start")
            self.add(f"for {start} in range(0, {self.row}, {self.tile.rblock}):")
            self._open_row(f"{start} + ", 1)
            for stmt in phase.body:
                if isinstance(stmt, Reduce):
                    self._accumulate(stmt)
                elif isinstance(stmt, Scan):
                    mask = self.name("rmask") if self.mask_r else None
                    for text in self._scan_lines(stmt, self.tile.xblock, self.tile.rblock, True, mask):
                        self.add(text, 1)
                else:
                    self.add(self.line(stmt), 1)
            for reduce in phase.reduces:
                self._reduce_tile(reduce, self.name("acc_" + reduce.name), 0, accumulated=True)

    # -- accesses -----------------------------------------------------------------------------------------------

    def _access_scope(self, stmt: Load | Store) -> frozenset[Symbol]:
        return self.nest.store_scope(stmt) if isinstance(stmt, Store) else self.nest.scopes[stmt.name]

    def _index_scope(self, stmt: Load) -> frozenset[Symbol]:
        """The axes that a load's address varies over: its mask may vary over more."""
        scope: set[Symbol] = set()
        for s in stmt.index.free_symbols:
            scope |= {s} if s in self.nest.ranges else self.nest.scopes[s.name]
        return frozenset(scope)

    def eviction(self, stmt: Load | Store) -> str:
        return eviction(self.kernel, self.nest, stmt, *self.looped)

    def access_mask(self, stmt: Load | Store) -> list[str]:
        scope = self._access_scope(stmt)
        masks = []
        if self.mask_x and (isinstance(stmt, Store) or scope - self.reduction):
            masks.append(self.name("xmask"))
        if self.mask_r and scope & self.reduction:
            masks.append(self.name("rmask"))
        if isinstance(stmt, Store) and scope & self.reduction:
            masks += self._at_zero(self.reduction - scope)  # once a segment
        if stmt.mask:
            masks.append(self.name(stmt.mask))
        return masks

    def _flat_offset(self, stmt: Load | Store) -> str:
        """The element offset; by the flattened position where the parallel axes are one run of memory, so that Triton
        sees neighbours as neighbours."""
        coefficients, strides, stride = affine(stmt.index)[0], {}, 1
        for axis in reversed(self.nest.parallel):
            strides[axis.symbol] = stride
            stride *= axis.size
        if self.nest.strip or len(strides) < 2 or any(coefficients.get(s) != n for s, n in strides.items()):
            return self.spell_index(stmt.index)
        rest = stmt.index - sum(n * s for s, n in strides.items())
        return self.name("x") if rest == 0 else f"({self.name('x')} + {self.spell_index(rest)})"

    def offset(self, stmt: Load | Store) -> str:
        text = self._flat_offset(stmt)
        scope = self._access_scope(stmt)
        if isinstance(stmt, Load) and (stmt.mask is None or (
                scope == self._index_scope(stmt) and not self._has_one_place(scope))):
            return text
        rows = (isinstance(stmt, Store) or scope - self.reduction) and not self.after_strip
        shape = [str(self.tile.xblock) if rows else "1"]
        if self.nest.reduction:
            shape.append(str(self.tile.rblock) if scope & self.reduction else "1")
        if not stmt.index.free_symbols:
            return f"tl.full([{', '.join(shape)}], {text}, tl.int32)"
        return f"tl.broadcast_to({text}, [{', '.join(shape)}])"


@dataclass(frozen=True)
class TritonSource:
    """A generated module: ``text`` defines ``entry``, to be launched with ``grid`` programs of ``warps`` warps.
    ``stages`` are those of `DotTile`; ``contracted`` is whether products may be contracted with additions."""

    text: str
    entry: str
    signature: dict[str, str]
    grid: int
    warps: int
    persistent: bool
    stages: int | None = None
    contracted: bool = False


def _keeps_rows(nest: Nest, tile: Tile | DotTile) -> bool:
    """Whether a program reads each element of its rows once: it has no reduction, has them in registers, or in the
    shared memory of a matrix product."""
    return not nest.reduction or isinstance(tile, DotTile) or tile.persistent


def print_kernel(kernel: Kernel, entry: str = "kernel", programs_wanted: int = 264,
                 tiles: Sequence[Tile | DotTile] | None = None) -> TritonSource:
    """The Triton module for ``kernel``. Nests share the grid: each takes a range of program numbers.

    ``tiles`` cut the nests in order; by default those that suit a device filled by ``programs_wanted`` programs.
    """
    tiles = default_tiles(kernel, programs_wanted) if tiles is None else tiles
    forms = [contraction_of(nest) for nest in kernel.nests]
    lines = ["", "", "@triton.jit", f"def {entry}({', '.join(b.name for b in kernel.buffers)}):"]
    several = len(kernel.nests) > 1
    lines.append("    program = tl.program_id(0)")
    first = 0
    for k, (nest, tile, form) in enumerate(zip(kernel.nests, tiles, forms)):
        indent = "    "
        program = "program"
        if several:
            last = k == len(tiles) - 1
            head = "else:" if last else f"{'if' if k == 0 else 'elif'} program < {first + tile.programs}:"
            lines.append(f"    {head}")
            indent, program = "        ", f"(program - {first})"
        if form is not None and isinstance(tile, DotTile):
            lines += DotPrinter(kernel, nest, form, tile, k, indent).print(program)
        elif isinstance(tile, Tile):
            lines += NestPrinter(kernel, nest, tile, k, indent).print(program)
        first += tile.programs
    signature = {b.name: POINTERS[b.dtype] for b in kernel.buffers}
    return TritonSource(PRELUDE + "\n".join(lines) + "\n", entry, signature, first, max(t.warps for t in tiles),
                        all(map(_keeps_rows, kernel.nests, tiles)),
                        max((t.stages for t in tiles if isinstance(t, DotTile) and t.stages), default=None),
                        contracts_only_sums(kernel))
