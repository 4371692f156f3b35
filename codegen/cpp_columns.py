"""The column form of a C++ reduction: lanes are neighbouring columns, and the rows go by one after the other."""
from __future__ import annotations

from collections.abc import Sequence
from math import lcm, prod

import torch
from sympy import Integer

from .cpp_scans import STEPS
from .cpp_schedule import COLUMN_LANES
from .cpp_spelling import COMPUTE
from .cpp_turned_rows import TurnedRowForm
from .index import FloorDiv
from .ir import Axis, Kernel, Nest, Reduce, Stmt, Store, index_of, operands
from .sweeps import Phase, plan_phases

#: Rows whose terms a lane adds up apart from those before, so that float32 keeps its precision over long columns.
COLUMN_BLOCK = 256
#: Fewest lanes of groups whose lanes are joined, if so many stay in a core's cache from sweep to sweep; where they
#: don't, twice as many are read in longer runs.
FOLDED_LANES, FOLDED_ELEMENTS = 32, 1 << 18
#: Lanes of a vector of floats.
COLUMN_VECTOR = 16
#: Lanes of the column form where there are many columns, 2 KiB of a row of float32; the fewest shares of so many that a
#: thread gets, and the most reductions that have as many accumulators each.
WIDE_LANES, WIDE_SHARES, MOST_WIDE = 512, 2, 4


class ColumnForm(TurnedRowForm):
    """Prints a nest whose accumulators are arrays over a block of a parallel axis."""

    def __init__(self, kernel: Kernel, nest: Nest) -> None:
        super().__init__(kernel, nest)
        self.phases = plan_phases(nest)
        self._blocked = False
        self.lanes = COLUMN_LANES

    def _choose_lanes(self, lane: Axis) -> int:
        """Columns at a time: many, so that each row is read in long runs, as long as every thread has some shares of
        them and the arrays over them are few."""
        if self._turned_rows:
            return self._turned_rows.rows
        folded = max((r.fold for p in self.phases for r in p.reduces), default=1)
        if folded > 1:
            rows = prod(a.size for a in self.nest.reduction)
            wanted = FOLDED_LANES if rows * FOLDED_LANES <= FOLDED_ELEMENTS else 2 * FOLDED_LANES
            narrow = any(b.dtype.itemsize < 4 for b in self.kernel.buffers)  # of which there are twice as many a vector
            step = lcm(folded, COLUMN_VECTOR) if narrow else folded
            return -(-wanted // step) * step
        if self.schedule.lanes is not None:
            return self.schedule.lanes
        if lane.size < COLUMN_LANES:
            return -(-lane.size // COLUMN_VECTOR) * COLUMN_VECTOR
        shares = prod(a.size for a in self.nest.parallel) // WIDE_LANES
        few = sum(len(p.reduces) for p in self.phases) <= MOST_WIDE
        wide = few and lane.size >= WIDE_LANES and shares >= WIDE_SHARES * torch.get_num_threads()
        return WIDE_LANES if wide else COLUMN_LANES

    def _print_columns(self, lane: Axis) -> None:
        self.lanes = self._choose_lanes(lane)
        others = [a for a in self.nest.parallel if a != lane]
        opened, chunked = self._threads(others, lane, self.lanes)
        self.lanes = min(self.lanes, self._chunk) if chunked else self.lanes
        for axis in self._rest:
            self.open(self._loop(axis))
            opened += 1
        if self._turned_rows:
            self._open_block(chunked)
        elif not chunked:
            step = min(self.lanes, lane.size)
            self.open(f"for (int64_t begin = 0; begin < {lane.size}; begin += {step})")
            opened += 1
            self.add(f"const int64_t end = RF_MIN(begin + {step}, INT64_C({lane.size}));")
        shared = self._shared_between_phases(lane)
        for name in shared:
            # Places as narrow as they were found: g++ 12 fails to widen them beside truth values.
            place = any(r.name == name and r.op.startswith("arg") for r in self.nest.body if isinstance(r, Reduce))
            self.add(f"{self._place_type() if place else self._lane_type(name)} lanes_{name}[{self.lanes}];")
        for phase in self.phases:
            if phase.sweep:
                self._print_column_sweep(phase, lane, shared)
            else:
                self._print_lanes(phase.body, lane, shared, inside_sweep=False)
        if self._turned_rows:
            self._close_block(chunked)
        self.close(opened)

    def _lane_type(self, name: str) -> str:
        """Of what waits in an array: truth values that are read from bytes aren't vectorised beside floats."""
        return "int32_t" if self.dtypes[name] == torch.bool else COMPUTE[self.dtypes[name]]

    def _shared_between_phases(self, lane: Axis) -> list[str]:
        """Per-lane values made once a row and used in another phase."""
        made = {s.name: k for k, p in enumerate(self.phases) for s in p.body
                if not isinstance(s, Store) and (not p.sweep or isinstance(s, Reduce))}
        used: dict[str, None] = {}
        for k, phase in enumerate(self.phases):
            for stmt in phase.body:
                for name in operands(stmt):
                    if made.get(name, k) != k and lane.symbol in self.nest.scopes[name]:
                        used[name] = None
        return list(used)

    def _print_lanes(self, body: Sequence[Stmt], lane: Axis, shared: list[str], inside_sweep: bool) -> None:
        """Statements that don't vary over lanes as they are, the others in a loop over the block of lanes."""
        varying = [s for s in body if lane.symbol in self._scope(s)]
        for stmt in body:
            if lane.symbol not in self._scope(stmt):
                self.put(stmt)
        if not varying:
            return
        step = 1 if inside_sweep else self._lanes_alike(varying, lane, shared)
        streamed = self._streamed(lane, varying, 0, lane.size) if step == 1 else []
        with self._in_blocks(lane, streamed, self.lanes, "j", "begin", "end - begin"):
            self._print_block(varying, lane, shared, step, inside_sweep)

    def _print_block(self, varying: Sequence[Stmt], lane: Axis, shared: list[str], step: int, inside_sweep: bool
                     ) -> None:
        """The loop over the block of lanes, in steps of lanes that get the same."""
        one_by_one = lane.symbol in self.colliding and any(isinstance(s, Store) for s in varying)
        if step == 1 and not one_by_one:
            self.add("#pragma omp simd")
        self.open(f"for (int64_t j = 0; j < end - begin; {'++j' if step == 1 else f'j += {step}'})")
        self.add(f"const int64_t {lane.symbol} = begin + j;")
        here = {s.name for s in varying if not isinstance(s, Store | Reduce)}
        for name in shared:
            if name not in here and any(name in operands(s) for s in varying):
                truth = " != 0" if self.dtypes[name] == torch.bool else ""
                self.add(f"const {COMPUTE[self.dtypes[name]]} {name} = lanes_{name}[j]{truth};")
        for stmt in varying:
            if isinstance(stmt, Reduce):
                self._accumulate(stmt, self._blocked, "[j]")
                continue
            self.put(stmt)
            if not isinstance(stmt, Store) and stmt.name in shared and not inside_sweep:
                self.add(f"lanes_{stmt.name}[j] = {stmt.name};")
        self.close()

    def _lanes_alike(self, varying: Sequence[Stmt], lane: Axis, shared: Sequence[str]) -> int:
        """How many neighbouring lanes get the same from statements: those of a group, where only its number counts and
        nothing of it is wanted lane by lane in another phase."""
        fold = max((r.fold for p in self.phases for r in p.reduces), default=1)
        joined = {r.name for p in self.phases for r in p.reduces if r.fold == fold}
        group = FloorDiv(lane.symbol, Integer(fold))
        for stmt in varying if fold > 1 else ():
            index = index_of(stmt)
            inside = index is not None and lane.symbol in index.xreplace({group: Integer(0)}).free_symbols
            taken = {n for n in operands(stmt) if lane.symbol in self.nest.scopes[n]}
            if inside or not taken <= joined or (isinstance(stmt, Store) and stmt.accumulate):
                return 1
            if not isinstance(stmt, Store):
                if stmt.name in shared:
                    return 1
                joined.add(stmt.name)
        return fold

    def _print_column_sweep(self, phase: Phase, lane: Axis, shared: list[str]) -> None:
        axes = list(self.nest.reduction)
        first = axes[0]
        self._blocked = first.size > COLUMN_BLOCK and any(r.op in ("sum", "prod") for r in phase.reduces)
        arrays = {r.name: self.lanes if self._varies(r, lane) else None for r in phase.reduces}
        for reduce in phase.reduces:
            self._declare_accumulator(reduce, arrays[reduce.name])
        self._start_scans(phase.body, self.lanes)
        opened = 0
        if self._blocked:
            self.open(f"for (int64_t block = 0; block < {first.size}; block += {COLUMN_BLOCK})")
            opened += 1
            for reduce in phase.reduces:
                if reduce.op in ("sum", "prod"):
                    self._start_part(reduce, arrays[reduce.name])
        levels = self._by_depth([s for s in phase.body if not self._varies(s, lane)], axes)
        for k, axis in enumerate(axes):
            for stmt in levels[k]:
                self.put(stmt)
            if k == 0 and self._blocked:
                self.open(f"for (int64_t {axis.symbol} = block; {axis.symbol} < "
                          f"RF_MIN(block + {COLUMN_BLOCK}, INT64_C({axis.size})); ++{axis.symbol})")
            else:
                self.open(self._loop(axis))
            opened += 1
        for stmt in levels[-1]:
            if isinstance(stmt, Reduce):
                self._accumulate(stmt, self._blocked)
            else:
                self.put(stmt)
        self._print_lanes([s for s in phase.body if self._varies(s, lane)], lane, shared, inside_sweep=True)
        inner = len(axes)
        self.close(inner)
        if self._blocked:
            for reduce in phase.reduces:
                if reduce.op in ("sum", "prod"):
                    sign, array = "+" if reduce.op == "sum" else "*", arrays[reduce.name]
                    place = "" if array is None else "[j]"
                    each = "" if array is None else f"for (int64_t j = 0; j < {array}; ++j) "
                    self.add(f"{each}acc_{reduce.name}{place} {sign}= part_{reduce.name}{place};")
        self.close(opened - inner)
        for reduce in phase.reduces:
            self._fold(reduce)
            source = "at" if reduce.op.startswith("arg") else "acc"
            if arrays[reduce.name] is None:
                self._finish(reduce)
            elif reduce.name in shared:
                self.add(f"for (int64_t j = 0; j < {self.lanes}; ++j) "
                         f"lanes_{reduce.name}[j] = {source}_{reduce.name}[j];")

    def _fold(self, reduce: Reduce) -> None:
        """Join what neighbouring lanes have come to."""
        if reduce.fold == 1:
            return
        acc, count = f"acc_{reduce.name}", reduce.fold
        self.open(f"for (int64_t j = 0; j < end - begin; j += {count})")
        self.add(f"{COMPUTE[reduce.dtype]} whole = {acc}[j];")
        joined = STEPS[reduce.op].format("whole", f"{acc}[j + l]")
        self.add(f"for (int64_t l = 1; l < {count}; ++l) whole = {joined};")
        self.add(f"for (int64_t l = 0; l < {count}; ++l) {acc}[j + l] = whole;")
        self.close()

    def _varies(self, stmt: Stmt, lane: Axis) -> bool:
        """Whether a statement has to be done for each lane."""
        return lane.symbol in (self.nest.scopes[stmt.value] if isinstance(stmt, Reduce) else self._scope(stmt))

    def _start_part(self, reduce: Reduce, array: int | None) -> None:
        kind, start = COMPUTE[reduce.dtype], self._start(reduce)
        if array is None:
            self.add(f"{kind} part_{reduce.name} = {start};")
        else:
            self.add(f"{kind} part_{reduce.name}[{array}];")
            self.add(f"for (int64_t j = 0; j < {array}; ++j) part_{reduce.name}[j] = {start};")
