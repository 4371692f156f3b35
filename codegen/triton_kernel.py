"""Triton printer: one program a tile of ``[XBLOCK, RBLOCK]`` elements (``[XBLOCK]`` when nothing is reduced).

Parallel axes are flattened into ``x`` and reduction axes into ``r``. A row that fits in registers is *persistent*: it
is loaded once and every sweep works on the same tile. A longer row is *looped*: each sweep reads it again.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .contraction import contraction_of
from .eviction import eviction
from .index import bounds
from .ir import Kernel, Load, Nest, Reduce, Scan, Store
from .summed_products import contracts_only_sums
from .sweeps import Phase, after_strips, finale, plan_phases, strip_reduces, strip_scans
from .triton_dot import DotPrinter, DotTile
from .triton_interleaved import InterleavedTiles
from .triton_spelling import POINTERS, PRELUDE
from .triton_tiles import Tile
from .triton_tilings import default_tiles


class NestPrinter(InterleavedTiles):
    """Prints one nest for one program; ``number`` keeps the names of several nests in a kernel apart."""

    def __init__(self, kernel: Kernel, nest: Nest, tile: Tile, number: int, indent: str) -> None:
        super().__init__(kernel, nest, tile, indent)
        self.number = number
        self.suffix = f"_{number}" if len(kernel.nests) > 1 else ""
        self.wide = any(b.size >= 2**31 for b in kernel.buffers) or self._index_overflows()
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
        first = self.open_rows(f"{number} * {t.xblock}", 0)
        if self.mask_x:
            self.add(f"{self.name('xmask')} = {x} < {self.rows}")
        self.decode(x, self.nest.parallel, 0, first, self.name("lane"), t.xblock)
        phases = plan_phases(self.nest)
        if not self.nest.reduction:
            self.add_statements(phases[0].body, 0)
        elif t.persistent:
            self._print_persistent()
        else:
            self._print_looped(phases)
        return self.lines

    def _print_persistent(self) -> None:
        self.open_row("", 0)
        self.look_for_runs(self.nest.body)
        for stmt in self.nest.body:
            if isinstance(stmt, Reduce):
                self._reduce_tile(stmt, self.name(stmt.value), 0)
            elif isinstance(stmt, Scan):
                self.add(self._scan_lines(stmt, self.tile.xblock, self.tile.rblock, False, None)[0])
            else:
                self.add_statement(stmt, 0)

    def _print_strip(self, number: str) -> None:
        """A strip's rows, ``xblock`` at a time, and then what follows from what their columns came to."""
        t, x, at = self.tile, self.name("x"), self.name("at")
        self.open_row("", 0)
        for text in (*self._first_in_strip(), *self._first_totals(strip_scans(self.nest), t.xblock)):
            self.add(text)
        self.add(f"for {at} in range(0, {t.strip}, {t.xblock}):")
        first = self.open_rows(f"{number} * {t.strip} + {at}", 1)
        self.decode(x, self.nest.parallel, 1, first, self.name("lane"), t.xblock)
        ending = after_strips(self.nest)
        body = [s for s in self.nest.body if isinstance(s, Reduce | Scan) or not any(s is e for e in ending)]
        self.look_for_runs(body)
        for stmt in body:
            if isinstance(stmt, Reduce) and stmt.strip:
                self._add_to_strip(stmt)
            elif isinstance(stmt, Reduce):
                self._reduce_tile(stmt, self.name(stmt.value), 1)
            elif isinstance(stmt, Scan):
                for text in self._scan_lines(stmt, t.xblock, t.rblock, True, None):
                    self.add(text, 1)
            else:
                self.add_statement(stmt, 1)
        self.after_strip = True
        self.add(f"{x} = {number} * {t.strip}")
        self.decode(x, self.nest.parallel, 0)
        for reduce in strip_reduces(self.nest):
            self._finish_strip(reduce)
        self.add_statements(finale(self.nest), 0)

    def _print_looped(self, phases: Sequence[Phase]) -> None:
        for k, phase in enumerate(phases):
            self.looped = phases, k
            if not phase.sweep:
                self.add_statements(phase.body, 0)
                continue
            for reduce in phase.reduces:
                for text in self._first_accumulators(reduce):
                    self.add(text)
            for text in self._first_totals(phase.body, self.tile.xblock):
                self.add(text)
            start = self.name("start")
            self.add(f"for {start} in range(0, {self.row}, {self.tile.rblock}):")
            self.open_row(f"{start} + ", 1)
            self.look_for_runs(phase.body)
            for stmt in phase.body:
                if isinstance(stmt, Reduce):
                    self._accumulate(stmt)
                elif isinstance(stmt, Scan):
                    mask = self.name("rmask") if self.mask_r else None
                    for text in self._scan_lines(stmt, self.tile.xblock, self.tile.rblock, True, mask):
                        self.add(text, 1)
                else:
                    self.add_statement(stmt, 1)
            for reduce in phase.reduces:
                self._reduce_tile(reduce, self.name("acc_" + reduce.name), 0, accumulated=True)

    # -- accesses -----------------------------------------------------------------------------------------------

    def eviction(self, stmt: Load | Store) -> str:
        return eviction(self.kernel, self.nest, stmt, *self.looped)

    def access_mask(self, stmt: Load | Store) -> list[str]:
        scope = self.access_scope(stmt)
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

    def offset(self, stmt: Load | Store) -> str:
        text = self.flat_offset(stmt.index, self.nest.parallel, self.name("x"))
        scope = self.access_scope(stmt)
        if isinstance(stmt, Load) and (stmt.mask is None or (
                scope == self.index_scope(stmt) and not self.has_one_place(scope))):
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
