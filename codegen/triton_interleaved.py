"""Runs of interleaved accesses of the Triton printer: one wide tile, split into or joined from those of the places."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

from .index import symbol
from .interleaved import Run, interleaved
from .ir import Axis, Load, Stmt, Store
from .triton_positions import PositionTiles


class InterleavedTiles(PositionTiles):
    """Prints statements of a part of a nest. A run of ``width`` accesses becomes one of a tile that has ``width`` times
    as many elements along its last axis, all of them neighbours. The positions of those are bound where they are first
    needed, under the names of the axes with the width behind."""

    def look_for_runs(self, body: Iterable[Stmt]) -> None:
        """Find the runs in what is going to be printed at one depth."""
        body = tuple(body)
        order = {id(s): k for k, s in enumerate(body)}
        self._run_of: dict[int, tuple[Run, bool]] = {}
        self._opened: set[int] = set()
        for run in interleaved(self.nest, body):
            # Loads come before all that reads them, stores after all that they store.
            turns = sorted(run.members, key=lambda s: order[id(s)])
            turn = turns[0] if isinstance(turns[0], Load) else turns[-1]
            self._run_of |= {id(s): (run, s is turn) for s in run.members}

    def add_statements(self, body: Iterable[Stmt], deeper: int) -> None:
        """The lines for statements without reductions and scans."""
        body = tuple(body)
        self.look_for_runs(body)
        for stmt in body:
            self.add_statement(stmt, deeper)

    def add_statement(self, stmt: Stmt, deeper: int) -> None:
        """The lines for a statement; one of a run's members has those of all."""
        if id(stmt) not in self._run_of:
            self.add(self.line(stmt), deeper)
            return
        run, turn = self._run_of[id(stmt)]
        if not turn:
            return
        if run.width not in self._opened:
            self._open_wide(run.width, deeper)
            self._opened.add(run.width)
        self._add_run(run, deeper)

    def _wide(self, name: str, width: int) -> str:
        return self.name(f"{name}_w{width}")

    def _wide_axes(self, axes: Sequence[Axis], width: int) -> list[Axis]:
        wide = [replace(a, symbol=symbol(f"{a.symbol.name}_w{width}")) for a in axes]
        return [*wide[:-1], replace(wide[-1], size=width * wide[-1].size)]

    def _open_wide(self, width: int, deeper: int) -> None:
        """Bind the positions of a tile's elements where there are ``width`` for each point, and their mask."""
        axes = self._wide_axes(self.nest.reduction or self.nest.parallel, width)
        self.ranges |= {a.symbol: a.size for a in axes}
        places = width * prod(a.size for a in self.nest.reduction or self.nest.parallel)
        if self.nest.reduction:
            flat, mask = self._wide("r", width), self._wide("rmask", width)
            start = f"{width} * {self.row_start}" if self.row_start else ""
            self.add(f"{flat} = {start}tl.arange(0, {width * self.tile.rblock})[None, :]", deeper)
            self.decode(flat, axes, deeper)
        else:
            first, lanes, flat, mask = (self._wide(n, width) for n in ("first", "lane", "x", "xmask"))
            self.add(f"{first} = {width} * {self.name('first')}", deeper)
            self.add(f"{lanes} = tl.arange(0, {width * self.tile.xblock})", deeper)
            self.add(f"{flat} = {first} + {lanes}", deeper)
            self.decode(flat, axes, deeper, first, lanes, width * self.tile.xblock)
        if self.mask_r if self.nest.reduction else self.mask_x:
            self.add(f"{mask} = {flat} < {places}", deeper)

    def _run_place(self, run: Run) -> tuple[str, list[int], list[str]]:
        """The offset of a run's elements, the shape of each member's tile, and conditions under which they are inside
        of the tensors."""
        axes, sample = self.nest.reduction or self.nest.parallel, run.members[0]
        wide = self._wide_axes(axes, run.width)
        places = {a.symbol: w.symbol for a, w in zip(axes, wide)}
        index = (run.index - run.width * run.axis).xreplace(places) + places[run.axis]
        if not self.nest.reduction:
            masks = [self._wide("xmask", run.width)] * self.mask_x
            return self.flat_offset(index, wide, self._wide("x", run.width)), [self.tile.xblock], masks
        rows = isinstance(sample, Store)
        several = rows
        if isinstance(sample, Load):
            scope = self.index_scope(sample) - self.reduction
            rows = bool(scope)
            several = rows and not self.has_one_place(scope)
        several = several and not self.after_strip
        masks = [self.name("xmask")] * (self.mask_x and rows)
        masks += [self._wide("rmask", run.width)] * self.mask_r
        return self.spell_index(index), [self.tile.xblock if several else 1, self.tile.rblock], masks

    def _add_run(self, run: Run, deeper: int) -> None:
        offset, shape, masks = self._run_place(run)
        if isinstance(run.members[0], Load):
            parts = [self.name(f"{s.name}_raw") for s in run.members if isinstance(s, Load)]
            split = ", ".join(map(str, [*shape, *[2] * (run.width.bit_length() - 1)]))
            whole = f"tl.reshape({self.load_at(run.members[0], offset, masks)}, [{split}])"
            for text in _splits(whole, parts):
                self.add(text, deeper)
            for stmt, part in zip(run.members, parts):
                assert isinstance(stmt, Load)
                self.add(self.declare(stmt.name, stmt.dtype, self.loaded(stmt, part)), deeper)
            return
        values = [f"tl.broadcast_to({self.stored(s)}, {shape})" for s in run.members if isinstance(s, Store)]
        if len(shape) > 1:
            offset = f"tl.broadcast_to({offset}, [{shape[0]}, {run.width * shape[1]}])"
        self.add(self.store_at(run.members[0], offset, _joined(values), masks), deeper)


def _splits(whole: str, parts: Sequence[str]) -> list[str]:
    """Lines that split a tile whose last dimensions, of two each, count ``parts``."""
    if len(parts) == 2:
        return [f"{parts[0]}, {parts[1]} = tl.split({whole})"]
    even, odd = (f"{parts[k]}_of{len(parts) // 2}" for k in (0, 1))
    return [f"{even}, {odd} = tl.split({whole})", *_splits(even, parts[::2]), *_splits(odd, parts[1::2])]


def _joined(values: Sequence[str]) -> str:
    """The tile in whose rows ``values`` take turns."""
    if len(values) == 1:
        return values[0]
    return f"tl.interleave({_joined(values[::2])}, {_joined(values[1::2])})"
