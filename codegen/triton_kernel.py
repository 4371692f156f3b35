"""Triton printer: one program a tile of ``[XBLOCK, RBLOCK]`` elements (``[XBLOCK]`` when nothing is reduced).

Parallel axes are flattened into ``x`` and reduction axes into ``r``. A row that fits in registers is *persistent*: it
is loaded once and every sweep works on the same tile. A longer row is *looped*: each sweep reads it again.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from sympy import Symbol

from .contraction import contraction_of
from .index import affine, bounds
from .ir import Axis, Kernel, Load, Nest, Reduce, Scan, Store
from .sweeps import Phase, after_strips, finale, plan_phases, strip_sums
from .triton_dot import DotPrinter, DotTile
from .triton_scans import ScanTiles
from .triton_spelling import POINTERS, PRELUDE, TYPES
from .triton_tiles import Tile
from .triton_tilings import default_tiles


class NestPrinter(ScanTiles):
    """Prints one nest for one program; ``number`` keeps the names of several nests in a kernel apart."""

    def __init__(self, kernel: Kernel, nest: Nest, tile: Tile, number: int, indent: str) -> None:
        super().__init__(kernel, nest)
        self.tile, self.number, self.indent = tile, number, indent
        self.suffix = f"_{number}" if len(kernel.nests) > 1 else ""
        self.lines: list[str] = []
        self.after_strip = False
        self.rows = prod(a.size for a in nest.parallel)
        self.row = prod(a.size for a in nest.reduction)
        self.mask_x = not tile.strip and self.rows % tile.xblock != 0
        self.mask_r = bool(nest.reduction) and self.row % tile.rblock != 0
        self.wide = any(b.size >= 2**31 for b in kernel.buffers) or self._index_overflows()
        self.reduction = frozenset(a.symbol for a in nest.reduction)

    def _index_overflows(self) -> bool:
        """Whether an index needs 64 bits."""
        for stmt in self.nest.body:
            if isinstance(stmt, Load | Store):
                extent = bounds(stmt.index, self.nest.ranges)
                if extent is not None and extent[1] >= 2**31:
                    return True
        return self.rows * max(self.row, 1) >= 2**31

    def add(self, text: str, deeper: int = 0) -> None:
        self.lines.append(self.indent + "    " * deeper + text)

    def print(self, program: str) -> list[str]:
        """Lines for the nest; ``program`` is the expression of its own program number."""
        x, t = self.name("x"), self.tile
        number = f"{program}.to(tl.int64)" if self.wide else program
        if t.strip:
            self._print_strip(number)
            return self.lines
        lanes = f"tl.arange(0, {t.xblock})" + ("[:, None]" if self.nest.reduction else "")
        self.add(f"{x} = {number} * {t.xblock} + {lanes}")
        if self.mask_x:
            self.add(f"{self.name('xmask')} = {x} < {self.rows}")
        self._decode(x, self.nest.parallel, 0)
        phases = plan_phases(self.nest)
        if not self.nest.reduction:
            for stmt in phases[0].body:
                self.add(self.line(stmt))
        elif t.persistent:
            self._print_persistent()
        else:
            self._print_looped(phases)
        return self.lines

    def _decode(self, flat: str, axes: Sequence[Axis], deeper: int) -> None:
        """Bind each axis symbol to its part of the flattened position."""
        stride = prod(a.size for a in axes)
        for k, axis in enumerate(axes):
            stride //= axis.size
            text = flat if stride == 1 else f"({flat} // {stride})"
            self.add(f"{self.spell_symbol(axis.symbol)} = {text if k == 0 else f'{text} % {axis.size}'}", deeper)

    def _open_row(self, start: str, deeper: int) -> None:
        r = self.name("r")
        self.add(f"{r} = {start}tl.arange(0, {self.tile.rblock})[None, :]", deeper)
        if self.mask_r:
            self.add(f"{self.name('rmask')} = {r} < {self.row}", deeper)
        self._decode(r, self.nest.reduction, deeper)

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
        """A strip's rows, ``xblock`` at a time, and then what their column sums are for."""
        t, x, at = self.tile, self.name("x"), self.name("at")
        self._open_row("", 0)
        for reduce in strip_sums(self.nest):
            self.add(f"{self.name('strip_' + reduce.name)} = tl.zeros([{t.xblock}, {t.rblock}], {TYPES[reduce.dtype]})")
        self.add(f"for {at} in range(0, {t.strip}, {t.xblock}):")
        self.add(f"{x} = {number} * {t.strip} + {at} + tl.arange(0, {t.xblock})[:, None]", 1)
        self._decode(x, self.nest.parallel, 1)
        ending = after_strips(self.nest)
        for stmt in self.nest.body:
            if isinstance(stmt, Reduce) and stmt.strip:
                self.add(f"{self.name('strip_' + stmt.name)} += {self.name(stmt.value)}", 1)
            elif isinstance(stmt, Reduce):
                self._reduce_tile(stmt, self.name(stmt.value), 1)
            elif not any(stmt is s for s in ending):
                self.add(self.line(stmt), 1)
        self.after_strip = True
        self.add(f"{x} = {number} * {t.strip}")
        self._decode(x, self.nest.parallel, 0)
        for reduce in strip_sums(self.nest):
            self.add(f"{self.name(reduce.name)} = tl.sum({self.name('strip_' + reduce.name)}, 0)[None, :]")
        for stmt in finale(self.nest):
            self.add(self.line(stmt))

    def _print_looped(self, phases: Sequence[Phase]) -> None:
        for phase in phases:
            if not phase.sweep:
                for stmt in phase.body:
                    self.add(self.line(stmt))
                continue
            for reduce in phase.reduces:
                self.add(f"{self.name('acc_' + reduce.name)} = tl.full([{self.tile.xblock}, {self.tile.rblock}], "
                         f"{self._start(reduce)}, {self._accumulator(reduce)})")
                if reduce.op == "expsum":
                    self.add(f"{self.name('top_' + reduce.name)} = tl.full([{self.tile.xblock}, {self.tile.rblock}], "
                             f'float("-inf"), {TYPES[reduce.dtype]})')
                if reduce.op.startswith("arg"):
                    self.add(f"{self.name('at_' + reduce.name)} = tl.full([{self.tile.xblock}, {self.tile.rblock}], "
                             "2147483647, tl.int32)")
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

    # -- reductions ---------------------------------------------------------------------------------------------

    def _accumulator(self, reduce: Reduce) -> str:
        if reduce.op in ("any", "all"):
            return "tl.int32"
        return TYPES[self.dtypes[reduce.value] if reduce.op.startswith("arg") else reduce.dtype]

    def _start(self, reduce: Reduce) -> str:
        if reduce.op in ("sum", "any", "expsum"):
            return "0"
        if reduce.op in ("prod", "all"):
            return "1"
        largest, dtype = reduce.op in ("max", "argmax"), self.dtypes[reduce.value]
        if dtype.is_floating_point:
            return 'float("-inf")' if largest else 'float("inf")'
        if dtype == torch.bool:
            return "0" if largest else "1"
        return str(torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max)

    def _combine(self, reduce: Reduce) -> str:
        floating = self.dtypes[reduce.value].is_floating_point
        return {"prod": "rf_mul", "any": "rf_imax", "all": "rf_imin", "max": "rf_max" if floating else "rf_imax",
                "min": "rf_min" if floating else "rf_imin", "argmax": "rf_argmax", "argmin": "rf_argmin"}[reduce.op]

    def _row_mask(self) -> list[str]:
        return ([self.name("rmask")] if self.mask_r else []) + ([self.name("xmask")] if self.mask_x else [])

    def _tile_value(self, reduce: Reduce, text: str, looped: bool = False) -> str:
        """A value spread over the whole tile, with the neutral element where the tile reaches over the edge."""
        if reduce.op in ("any", "all"):
            text = f"{text}.to(tl.int32)"
        same = not self.nest.scopes[reduce.value] - self.reduction  # the same for all rows: reduced once
        full = f"tl.broadcast_to({text}, [{1 if same and not looped else self.tile.xblock}, {self.tile.rblock}])"
        masks = self._row_mask()[:1 if same and not looped and self.mask_r else None]
        if same and not looped and not self.mask_r:
            masks = []
        return f"tl.where({' & '.join(masks)}, {full}, {self._start(reduce)})" if masks else full

    def _reduce_tile(self, reduce: Reduce, value: str, deeper: int, accumulated: bool = False) -> None:
        name = self.name(reduce.name)
        tile = value if accumulated else self._tile_value(reduce, value)
        if reduce.op == "expsum":
            top = self.name("top_" + reduce.name)
            if accumulated:
                self.add(f"{name} = rf_expsum({tile}, {top})[:, None]", deeper)
            else:
                self.add(f"{top} = tl.broadcast_to({value}, [{self.tile.xblock}, {self.tile.rblock}])", deeper)
                masks = self._row_mask()
                if masks:
                    self.add(f'{top} = tl.where({" & ".join(masks)}, {top}, float("-inf"))', deeper)
                self.add(f"{name} = rf_expsum(tl.where({top} == {top}, 1.0, {top}), {top})[:, None]", deeper)
        elif reduce.op == "sum":
            kind = TYPES[reduce.dtype]
            self.add(f"{name} = tl.sum({tile}, 1)[:, None].to({kind})", deeper)
        elif reduce.op.startswith("arg"):
            at = self.name("at_" + reduce.name) if accumulated else (
                f"tl.broadcast_to({self.name('r')}, [{self.tile.xblock}, {self.tile.rblock}]).to(tl.int32)")
            if not accumulated and self.mask_r:
                at = f"tl.where({self.name('rmask')}, {at}, 2147483647)"
            self.add(f"_, {name} = tl.reduce(({tile}, {at}), 1, {self._combine(reduce)})", deeper)
            self.add(f"{name} = {name}[:, None].to(tl.int64)", deeper)
        else:
            self.add(f"{name} = tl.reduce({tile}, 1, {self._combine(reduce)})[:, None]", deeper)
            if reduce.op in ("any", "all"):
                self.add(f"{name} = {name} != 0", deeper)

    def _accumulate(self, reduce: Reduce) -> None:
        acc, value = self.name("acc_" + reduce.name), self._tile_value(reduce, self.name(reduce.value), looped=True)
        if reduce.op == "expsum":
            top = self.name("top_" + reduce.name)
            if self._row_mask():
                value = value[:value.rindex(",")] + ', float("-inf"))'
            self.add(f"{acc}, {top} = rf_online({acc}, {top}, {value})", 1)
        elif reduce.op == "sum":
            self.add(f"{acc} += {value}", 1)
        elif reduce.op.startswith("arg"):
            at = self.name("at_" + reduce.name)
            here = f"tl.broadcast_to({self.name('r')}, [{self.tile.xblock}, {self.tile.rblock}]).to(tl.int32)"
            if self.mask_r:
                here = f"tl.where({self.name('rmask')}, {here}, 2147483647)"
            self.add(f"{acc}, {at} = {self._combine(reduce)}({acc}, {at}, {value}, {here})", 1)
        else:
            self.add(f"{acc} = {self._combine(reduce)}({acc}, {value})", 1)

    # -- accesses -----------------------------------------------------------------------------------------------

    def _access_scope(self, stmt: Load | Store) -> frozenset[Symbol]:
        return self.nest.store_scope(stmt) if isinstance(stmt, Store) else self.nest.scopes[stmt.name]

    def _index_scope(self, stmt: Load) -> frozenset[Symbol]:
        """The axes that a load's address varies over: its mask may vary over more."""
        scope: set[Symbol] = set()
        for s in stmt.index.free_symbols:
            scope |= {s} if s in self.nest.ranges else self.nest.scopes[s.name]
        return frozenset(scope)

    def access_mask(self, stmt: Load | Store) -> list[str]:
        scope = self._access_scope(stmt)
        masks = []
        if self.mask_x and (isinstance(stmt, Store) or scope - self.reduction):
            masks.append(self.name("xmask"))
        if self.mask_r and scope & self.reduction:
            masks.append(self.name("rmask"))
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
        if isinstance(stmt, Load) and (stmt.mask is None or scope == self._index_scope(stmt)):
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
    ``stages`` are those of `DotTile`."""

    text: str
    entry: str
    signature: dict[str, str]
    grid: int
    warps: int
    persistent: bool
    stages: int | None = None


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
                        max((t.stages for t in tiles if isinstance(t, DotTile) and t.stages), default=None))
