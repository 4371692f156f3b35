"""C++ printer: loops, threads and vector lanes around the statements of a kernel.

One axis is the *lane* axis, whose loop the compiler vectorises: the last parallel axis of pointwise work, the last
reduction axis where memory runs along it ("row" form), or a parallel axis that is contiguous where the reduction is
not ("column" form: accumulators are arrays over a block of lanes). Leading parallel axes are shared among threads.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from sympy import Integer

from .cpp_cuts import NATIVE_STRIDE
from .cpp_held import held_values, hosting_stores, shared_row_values
from .cpp_loops import CHUNK
from .cpp_pointwise import PointwiseForm
from .cpp_prefetch import PREFETCH_ROW
from .cpp_reduce import ONLINE_BLOCK
from .cpp_schedule import Schedule
from .cpp_spelling import COMPUTE, STORAGE
from .index import affine
from .ir import Axis, Kernel, Load, Nest, Reduce, Scan, Stmt, Store, operands
from .scatter import is_scatter
from .sweeps import Phase, inner_values

#: Longest innermost loop of several whose sums and extremes are kept apart by lane until the whole row is done.
SHORT_LANES = 256
#: Sums are accumulated in blocks of this many terms, so that float32 keeps its precision over long rows.
SUM_BLOCK = 4096
#: Most terms of several loops that one accumulator takes, for the same reason.
LOOP_TERMS = 1024


class NestPrinter(PointwiseForm):
    """Prints one nest; ``lines`` holds the result."""

    def __init__(self, kernel: Kernel, nest: Nest, schedule: Schedule) -> None:
        super().__init__(kernel, nest)
        self.schedule = schedule
        self.inner = inner_values(nest)
        self.column = self._column_axis()
        self._vector = self.column or nest.axes[-1] if nest.axes else None
        self.shared_rows = frozenset[str]() if self.column else shared_row_values(kernel, nest)
        self.held = frozenset[str]() if self.column else held_values(nest, self.phases, self.shared_rows)
        self.hosts = hosting_stores(kernel, nest, self.phases, self.held, schedule.streamed)
        for name in self.held | self.shared_rows:  # which later sweeps read back
            self.products.pop(name, None)
        self._wanted: frozenset[str] = frozenset()
        self._read_back = frozenset()
        self._short = False
        self._parts_at: int | None = None

    # -- choices ------------------------------------------------------------------------------------------------

    def _column_axis(self) -> Axis | None:
        """The parallel axis to vectorise over instead of the last reduction axis, if memory runs along it."""
        nest = self.nest
        if not nest.reduction or not nest.parallel or nest.strip or nest.segmented or any(
                a.symbol in self.colliding for a in nest.reduction):
            return None
        if self._turned_rows:
            return self._turned_rows.axis if self._turned_rows.lanes else None
        if any(s.fold > 1 for s in nest.body if isinstance(s, Reduce)):
            return None if self.colliding else nest.parallel[-1]
        row, along_row = self.nest.reduction[-1], 0
        inner = {a.symbol for a in nest.reduction}
        once = not any(is_scatter(s) and nest.store_scope(s) & inner for s in nest.body if isinstance(s, Store))
        votes: dict[Axis, int] = {}
        phases = self.phases[self._leading_invariant():]
        reduced = [self.nest.scopes[s.value] for p in phases for s in p.body if isinstance(s, Reduce | Scan)]
        for stmt in self.nest.body:
            if isinstance(stmt, Load | Store):
                coefficients = affine(stmt.index)[0]
                elements = prod(self.nest.ranges[s] for s in coefficients if s in self.nest.ranges)
                if coefficients.get(row.symbol) == 1:
                    along_row += elements
                elif row.symbol in coefficients:
                    for axis in self.nest.parallel:
                        step = coefficients.get(axis.symbol, 0)
                        if 1 <= step <= min(NATIVE_STRIDE, abs(coefficients[row.symbol])) and axis.size >= 8 and (
                                (axis.symbol not in self.colliding or once) and any(axis.symbol in s for s in reduced)):
                            votes[axis] = votes.get(axis, 0) + elements
        best = max(votes, key=lambda a: votes[a], default=None)
        return best if best is not None and votes[best] > along_row else None

    def print(self) -> list[str]:
        """Lines of the whole nest, in a block of their own."""
        self.open("")
        if self.column is not None:
            self.phases = tuple(self._print_invariant(set()))
            self._print_columns(self.column)
        else:
            self._print_rows()
        self._end_streams()
        self.close()
        return self.lines

    # -- rows and pointwise -------------------------------------------------------------------------------------

    def _print_rows(self) -> None:
        parallel = list(self.nest.parallel)
        if not self.nest.reduction and parallel:
            return self._print_pointwise(parallel)
        computed: set[str] = set()
        phases = self._print_invariant(computed)
        shared = [a for a in parallel if not a.strip]
        turned = shared.pop() if self._turned_rows and not self.nest.strip else None
        opened, chunked = self._threads(shared, turned, self._turned_rows.rows if self._turned_rows else CHUNK)
        first = phases[0].body if not phases[0].sweep else ()
        strip = list(self.nest.strip)
        loops = [*self._rest, *([turned] if turned else []), *strip]
        levels = self._by_depth(first, loops)
        for name in sorted(self.held - self.hosts.keys()):
            row = prod(a.size for a in self.nest.reduction)
            self.add(f"{COMPUTE[self.dtypes[name]]} held_{name}[{row}];")
        for k, statements in enumerate(levels):
            self.add_all(statements)
            if k < len(self._rest):
                self.open(self._loop(self._rest[k]))
                opened += 1
            elif k < len(loops):
                if strip and loops[k] is strip[0]:
                    self._open_strip()
                if self._turned_rows and loops[k] is loops[-1]:
                    self._open_block(chunked)
                    self.open(f"for (int64_t {loops[k].symbol} = begin; {loops[k].symbol} < end; "
                              f"++{loops[k].symbol})")
                else:
                    self.open(self._loop(loops[k]))
        for name, store in self.hosts.items():
            start = self.spell_index(store.index.xreplace({a.symbol: Integer(0) for a in self.nest.reduction}))
            self.add(f"{STORAGE[self.dtypes[name]]}* const held_{name} = &{store.buffer}[{start}];")
        for phase in phases[1 if first else 0:]:
            if phase.sweep:
                self._print_sweep(phase, computed)
            else:
                self.add_all(phase.body)
        if self._turned_rows:
            self.close()
            self._close_block(chunked)
        if strip:
            self.close(len(strip) - bool(self._turned_rows))
            self._read_back -= self.hosts.keys()  # each row's waited in that row's own results
            self._print_finale()
        self.close(opened)

    def _leading_invariant(self) -> int:
        """How many phases there are up to the last of the leading sweeps that are the same for every row."""
        count = 0
        for k, phase in enumerate(self.phases):
            if phase.sweep:
                if not all(map(self._invariant, phase.body)):
                    break
                count = k + 1
        return count if self.nest.parallel else 0

    def _print_invariant(self, computed: set[str]) -> list[Phase]:
        """Print the leading sweeps that give every row the same, such as the norm of the vector that a matrix is
        multiplied by, once and outside of all loops; returns the phases that remain."""
        invariant = self._invariant
        phases = list(self.phases)
        cut = 0 if self.held else self._leading_invariant()
        if not self.nest.parallel or not (cut or self.shared_rows):
            return phases
        if self.shared_rows and cut < len(phases) and not phases[cut].sweep:
            cut += 1  # what is known once a row before the next sweep may be what the shared values need
        left: list[Stmt] = []
        for phase in phases[:cut]:
            if phase.sweep:
                self._print_sweep(phase, computed)
                continue
            for stmt in phase.body:
                if invariant(stmt):
                    self.put(stmt)
                else:
                    left.append(stmt)
        self._print_shared_rows(phases[cut:], computed)
        rest = phases[cut:]
        if rest and not rest[0].sweep:
            return [Phase(False, (*left, *rest[0].body)), *rest[1:]]
        return [Phase(False, tuple(left)), *rest] if left else rest

    def _print_shared_rows(self, rest: list[Phase], computed: set[str]) -> None:
        """Fill the arrays of the row values that all rows share, if what they need is known by now."""
        later = {s.name for p in rest for s in p.body if isinstance(s, Reduce)}
        made = {s.name: s for s in self.nest.body if not isinstance(s, Store)}
        wanted = {n for n in self.shared_rows if not self._needs(n, later, made)}
        self.shared_rows = frozenset(wanted)
        if not wanted:
            return
        row = prod(a.size for a in self.nest.reduction)
        for name in sorted(wanted):
            self.add(f"{COMPUTE[self.dtypes[name]]} held_{name}[{row}];")
        needed = set(wanted)
        body: list[Stmt] = []
        for stmt in reversed(self.nest.body):
            if not isinstance(stmt, Store | Reduce) and stmt.name in needed and stmt.name in self.inner:
                needed.update(operands(stmt))
                body.append(stmt)
        self._wanted = self.shared_rows
        self._print_sweep(Phase(True, tuple(reversed(body))), computed)
        self._wanted = frozenset()

    def _needs(self, name: str, later: set[str], made: Mapping[str, Stmt]) -> bool:
        """Whether a value depends on one of ``later``."""
        return name in later or any(self._needs(n, later, made) for n in operands(made[name]))

    def _print_sweep(self, phase: Phase, computed: set[str]) -> None:
        """One pass over a row: accumulators, loops over the reduction axes, results."""
        axes = list(self.nest.reduction)
        body = self._without_held(phase.body, computed)
        self._short = (len(axes) > 1 and axes[-1].size <= SHORT_LANES and bool(phase.reduces)
                       and all(r.op in ("sum", "max", "min") and r.dtype != torch.bool and not r.along
                               for r in phase.reduces))
        self._apart = None if self._short or any(r.along for r in phase.reduces) else self._lanes_apart(
            phase.reduces, phase.body, axes[-1], self._pieces(axes[-1], body))
        for reduce in phase.reduces:
            if reduce.along:
                self._declare_segments(reduce)
            else:
                self._declare_accumulator(reduce, self._apart)
        self._start_scans(body)
        blocked = SUM_BLOCK if axes[-1].size > SUM_BLOCK and any(r.op in ("sum", "prod") for r in phase.reduces) else 0
        for reduce in phase.reduces if self._short else ():
            self.add(f"{COMPUTE[reduce.dtype]} part_{reduce.name}[{axes[-1].size}];")
            self.add(f"for (int64_t l = 0; l < {axes[-1].size}; ++l) part_{reduce.name}[l] = {self._start(reduce)};")
        self._parts_at = None if blocked or self._short or self._apart else self._loop_of_parts(phase, axes)
        self._sweep_loops(phase, axes, self._by_depth(body, axes), 0, blocked, computed)
        for reduce in phase.reduces:
            if self._short:
                self.add("#pragma omp simd" + (self._clauses([reduce], False) or ""))
                self.open(f"for (int64_t l = 0; l < {axes[-1].size}; ++l)")
                self._accumulate(reduce, False, value=f"part_{reduce.name}[l]")
                self.close()
            if reduce.along:
                self._finish_segments(reduce)
            else:
                self._finish(reduce, self._apart)
        self._short, self._apart, self._parts_at = False, None, None

    def _loop_of_parts(self, phase: Phase, axes: list[Axis]) -> int | None:
        """Which of several loops begins a part of a row's sums, so that neither it nor the row has many terms."""
        terms = [a.size for a in axes]
        if prod(terms) <= LOOP_TERMS or not any(r.dtype.is_floating_point for r in self._whole_sums(phase)):
            return None
        return min(range(1, len(axes)), key=lambda k: max(prod(terms[:k]), prod(terms[k:])), default=None)

    def _whole_sums(self, phase: Phase) -> list[Reduce]:
        return [r for r in phase.reduces if r.op in ("sum", "prod") and not r.along]

    def _sweep_loops(self, phase: Phase, axes: list[Axis], levels: list[list[Stmt]], k: int, blocked: int,
                     computed: set[str]) -> None:
        """The loops over ``axes[k:]``, each cut where conditions on its axis change."""
        for stmt in levels[k]:
            if isinstance(stmt, Reduce) and self._is_added(stmt):
                self._add_to_segment(stmt, stmt.value)
            else:
                self.put(stmt)
        axis = axes[k]
        parts = self._whole_sums(phase) if k == self._parts_at else []
        self._open_parts(parts)
        if k == len(axes) - 1:
            with self._looking_up(levels[-1]):
                self._lane_loops(phase, axis, levels[-1], blocked, computed)
        else:
            pieces = self._pieces(axis, [s for level in levels[k + 1:] for s in level], smallest=1)
            for low, high in pieces:
                with self._in_piece(axis, (low, high)):
                    self.open(f"for (int64_t {axis.symbol} = {low}; {axis.symbol} < {high}; ++{axis.symbol})")
                    self._sweep_loops(phase, axes, levels, k + 1, blocked, computed)
                    self.close()
        self._close_parts(parts)

    def _open_parts(self, reduces: Sequence[Reduce]) -> None:
        for reduce in reduces:
            self.add(f"{COMPUTE[reduce.dtype]} part_{reduce.name} = {self._start(reduce)};")

    def _close_parts(self, reduces: Sequence[Reduce]) -> None:
        for reduce in reduces:
            self.add(f"acc_{reduce.name} {'+' if reduce.op == 'sum' else '*'}= part_{reduce.name};")

    def _lane_loops(self, phase: Phase, lane: Axis, body: list[Stmt], blocked: int, computed: set[str]) -> None:
        """The innermost loop over a row, in pieces, or in blocks whose partial sums keep float32's precision."""
        pieces = self._pieces(lane, body)
        streams = [] if self._short or len(pieces) > 1 else self._row_streams(phase, body, lane)
        if self._apart is not None:
            for piece in pieces:
                with self._in_piece(lane, piece):
                    for _ in self._settled(body, lane):
                        self._print_apart(phase.reduces, lane, self._apart, piece, streams,
                                          lambda parts: self._add_row(body, parts, "[l]", computed),
                                          self._repeatable(phase.reduces, body))
            return
        here = [s for s in body if isinstance(s, Reduce) and not s.strip and s.name not in self._summed]
        segments = [r for r in here if self._in_lanes(r)]
        lanes = self._lanes_apart(segments, body, lane, pieces) if segments == here and len(pieces) == 1 else None
        if lanes is not None:
            self._open_lanes(segments, lanes)
            for _ in self._settled(body, lane):
                self._print_apart((), lane, lanes, pieces[0], streams,
                                  lambda _: self._add_row(body, False, "[l]", computed))
            self._close_lanes(segments, lanes)
            return
        online = [r for r in here if r.op == "expsum"]
        blocked = PREFETCH_ROW if streams and lane.size > PREFETCH_ROW else blocked
        blocked = ONLINE_BLOCK if online else blocked
        blocks = [r for r in here if blocked and r.op in ("sum", "prod") and not r.along]
        if blocked:
            self.open(f"for (int64_t block = 0; block < {lane.size}; block += {blocked})")
            pieces = [(0, lane.size)]
        if streams:
            self._prefetch(streams, lane, "block" if blocked else "0", min(blocked or lane.size, lane.size))
        self._open_parts(blocks)
        self._open_online(online, min(blocked, lane.size))
        parts = bool(blocked) or self._parts_at is not None
        self._open_lanes(segments)
        clauses = "" if self._short else self._clauses(
            [r for r in here if r in segments or not r.along or r.op.startswith("arg")], parts)
        if (lane.symbol in self.colliding and any(isinstance(s, Store) for s in body)) or any(
                isinstance(s, Scan) and not s.strip for s in body):
            clauses = None
        for first, last in pieces:
            low, high = str(first), str(last)
            if blocked:
                low, high = "block", f"RF_MIN(block + {blocked}, INT64_C({lane.size}))"
            with self._in_piece(lane, (first, last)):
                for _ in self._settled(body, lane):
                    if self._scans_in_blocks(body):
                        self._print_scan_blocks(
                            body, lane, (low, high), lambda reduces: self._clauses(reduces, parts),
                            lambda stage: self._add_row(stage, parts, "", computed))
                        continue
                    streamed = [] if clauses is None else self._streamed(lane, body, first, last)
                    with self._lane_blocks(lane, low, high, streamed) as (control, start):
                        if clauses is not None:
                            self.add(f"#pragma omp simd{clauses}{self._asked}")
                        self.open(f"for ({control})")
                        if start:
                            self.add(start)
                        self._add_row(body, parts or self._short, f"[{lane.symbol}]" if self._short else "", computed)
                        self.close()
        self._close_online(online, f"RF_MIN(INT64_C({blocked}), {lane.size} - block)")
        self._close_lanes(segments)
        self._close_parts(blocks)
        if blocked:
            self.close()

    def _add_row(self, body: Sequence[Stmt], parts: bool, place: str, computed: set[str]) -> None:
        """The statements at one point of a row: sums to ``parts`` or accumulators, at ``place`` in an array of them."""
        kept = self.held | self._wanted
        for stmt in body:
            if isinstance(stmt, Reduce) and stmt.name not in self._summed:
                if stmt.strip:
                    self._add_to_strip(stmt)
                elif self._in_lanes(stmt):
                    self._accumulate(stmt, False, place, acc=f"part_{stmt.name}{place}")
                elif stmt.along:
                    self._add_to_segment(stmt, stmt.value)
                else:
                    self._accumulate(stmt, parts, place)
                continue
            self.put(stmt)
            if not isinstance(stmt, Store) and stmt.name in kept and stmt.name not in self._read_back:
                self.add(f"held_{stmt.name}[{self._row_position()}] = {stmt.name};")
                computed.add(stmt.name)

    def _without_held(self, body: tuple[Stmt, ...], computed: set[str]) -> list[Stmt]:
        """The sweep's statements with held values read back, and without what only those needed."""
        ready = frozenset(n for n in self.held | self.shared_rows if n in computed)
        needed: set[str] = set(self._wanted)
        kept: list[Stmt] = []
        for stmt in reversed(body):
            name = None if isinstance(stmt, Store) else stmt.name
            if not isinstance(stmt, Store | Reduce) and name not in needed:
                continue
            if name not in ready:
                needed.update(operands(stmt))
            kept.append(stmt)
        self._read_back = ready
        return [*self._segments_read(needed), *reversed(kept)]

    def line(self, stmt: Stmt) -> str:
        if not isinstance(stmt, Store) and stmt.name in self._read_back:
            return self.declare(stmt.name, stmt.dtype, f"held_{stmt.name}[{self._row_position()}]")
        return super().line(stmt)
