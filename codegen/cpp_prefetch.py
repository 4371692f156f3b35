"""Memory asked for ahead of time: while some lanes are computed, what comes after them is on its way into the cache.

Processors look some hundred instructions ahead. With an exponential an element that is a few lines of memory, and
computing and waiting take turns; loops that ask ahead were seen to take as long from memory as from cache. Elementwise
loops ask a block of lanes ahead, rows of several sweeps in the heaviest of them for the row that comes next. On two
cores a gated SiLU in fp32 takes 2.7 ms as it is and 2.1 so; a copy or a sum of two gains nothing.

A sweep that only reads gains with but a conversion and a product to do: four rows of a bfloat16 matrix side by side,
times a vector, took 3.7 ms for 117 MB as they are, 3.1 where every 512 lanes ask for as many of the next four rows, and
2.7 where every step of 32 asks for its own. float32, with half of the work a byte, lost 1 to 6%.

What a later sweep over a row stores is asked for by the sweep before, for writing: the stores of a short loop come
faster than memory hands over the lines that they go to. For a softmax's gradient, rows of 4096, that brings 1.5 to 1.15
ms in fp32. In bf16, where the sweep that stores converts for longer and asks for the next row, both requests together
bring 0.60 to 0.52 ms; each by itself none, or 0.68.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from sympy import Expr

from .cpp_strips import StripForm
from .index import affine, symbol
from .ir import Axis, Compute, Load, Reduce, Scan, Stmt, Store
from .operations import operation_cost
from .sweeps import Phase

#: Lanes computed while the next as many are fetched: elementwise, and along rows, where each block ends with the sums
#: of its vectors.
PREFETCH_LANES, PREFETCH_ROW = 256, 512
#: Streams that are asked for: with more of them the requests themselves fill the queues.
MAX_STREAMS = 8
#: Most lines that a block of an elementwise loop asks for: two streams of floats. Cells of recurrent networks and
#: optimisers, with four to seven of them, took 10 to 25% longer for asking, from memory as from the third-level cache.
MOST_LINES = 32
#: Most bytes of the next row, in all its streams, that are asked for while this one is computed: they share the cache.
NEXT_ROW_BYTES = 1 << 18
#: Bytes of a row from which on none of it is in the cache when it is gone through again: the next block is asked for.
FAR_ROW_BYTES = 1 << 20
#: Fewest operations for each byte loaded that leave memory waiting, elementwise and along rows that are only read, and
#: along rows that are stored, too: below it the processor's own streaming keeps up. A norm's gradients in fp32, at one
#: operation a byte, were 10 to 20% slower asking ahead.
LIGHT, HEAVY = 0.75, 4
#: Operations that make a bfloat16 or an integer of a byte a float, and a float a bfloat16.
WIDENING, ROUNDING = 2, 6
_LINE_BYTES = 64


@dataclass(frozen=True)
class Stream:
    """``buffer[index]`` is loaded in order along the lanes, or will be stored; ``ahead`` elements further on is what to
    ask for."""

    buffer: str
    index: Expr
    ahead: int
    write: bool = False


def _operations(body: Sequence[Stmt]) -> int:
    return sum(operation_cost(s.op) for s in body if isinstance(s, Compute))


class Prefetching(StripForm):
    """Finds what a loop over lanes streams from memory, and asks for what comes next. ``held`` are values kept from one
    sweep to the next."""

    held: frozenset[str] = frozenset()
    hosts: Mapping[str, Store]

    def _loads(self, body: Sequence[Stmt], lane: Axis) -> list[Load]:
        found: dict[tuple[str, Expr], Load] = {}
        for stmt in body:
            if isinstance(stmt, Load) and stmt.mask is None and affine(stmt.index)[0].get(
                    lane.symbol) == 1 and all(s in self.nest.ranges for s in stmt.index.free_symbols):
                found[stmt.buffer, stmt.index] = stmt
        return list(found.values())[:MAX_STREAMS]

    def _lane_streams(self, body: Sequence[Stmt], lane: Axis, lanes: int) -> list[Stream]:
        """What an elementwise loop over ``lanes`` streams."""
        loads = self._loads(body, lane)
        operations = _operations(body) + self._conversions(body)
        lines = sum(PREFETCH_LANES * self.kernel.buffer(s.buffer).dtype.itemsize // _LINE_BYTES for s in loads)
        if lanes < 2 * PREFETCH_LANES or lines > MOST_LINES or not self._asks_ahead(operations, loads, LIGHT):
            return []
        return [Stream(s.buffer, s.index, PREFETCH_LANES) for s in loads]

    def _asks_ahead(self, operations: int, loads: Sequence[Load], heavy: float) -> bool:
        if self.schedule.ahead is not None:
            return self.schedule.ahead
        return operations >= heavy * sum(self.kernel.buffer(s.buffer).dtype.itemsize for s in loads)

    def _row_streams(self, phase: Phase, body: Sequence[Stmt], lane: Axis) -> list[Stream]:
        """What is asked for in a sweep over a row: the next row, or the next block of a row too long for that."""
        sweeps = [p for p in self.phases if p.sweep]
        in_order = any(isinstance(s, Scan) or (isinstance(s, Reduce) and (s.op == "expsum" or s.op.startswith("arg")))
                       for s in body)
        if in_order or not self.nest.parallel or not any(phase is p for p in sweeps):
            return []
        if all(map(self._invariant, phase.body)):  # printed once and before the rows, it has none to be ahead of
            return []
        return [*self._next_row(phase, sweeps, lane), *self._stored_next(phase, sweeps, lane)]

    def _stored_next(self, phase: Phase, sweeps: Sequence[Phase], lane: Axis) -> list[Stream]:
        """What the next sweep is the first to store, if it computes too little to wait for memory meanwhile."""
        after = next(k for k, p in enumerate(sweeps) if p is phase) + 1
        if after == len(sweeps):
            return []
        body = [s for s in sweeps[after].body if isinstance(s, Store) or s.name not in self.held]
        stores = [s for s in body if isinstance(s, Store)]
        stored = sum(self.kernel.buffer(s.buffer).dtype.itemsize for s in stores)
        # Conversions take time enough, unless requests for the next row take it.
        conversions = 0 if self._next_row(sweeps[after], sweeps, lane) else self._conversions(body)
        if _operations(body) + conversions >= HEAVY * stored:
            return []
        before = {s.buffer for p in sweeps[:after] for s in p.body if isinstance(s, Store)} | {
            s.buffer for s in self.nest.body if isinstance(s, Load)} | {s.buffer for s in self.hosts.values()}
        before |= set(self.schedule.streamed)
        found = []
        for store in stores:
            row = prod(a.size for a in self.nest.reduction) * self.kernel.buffer(store.buffer).dtype.itemsize
            if (store.buffer not in before and store.mask is None and 4 * _LINE_BYTES <= row <= NEXT_ROW_BYTES
                    and affine(store.index)[0].get(lane.symbol) == 1
                    and all(s in self.nest.ranges for s in store.index.free_symbols)):
                found.append(Stream(store.buffer, store.index, 0, True))
        return found[:MAX_STREAMS]

    def _conversions(self, body: Sequence[Stmt]) -> int:
        """Operations that make what ``body`` loads as wide as it computes, and narrow what it stores."""
        found = 0
        for stmt in body:
            if isinstance(stmt, Load | Store):
                dtype = self.kernel.buffer(stmt.buffer).dtype
                rounds = isinstance(stmt, Store) and dtype == torch.bfloat16
                found += ROUNDING if rounds else WIDENING if dtype.itemsize < 4 else 0
        return found

    def _next_row(self, phase: Phase, sweeps: Sequence[Phase], lane: Axis) -> list[Stream]:
        """The loads of the next row, or of the next block of a row too long for that, in the heaviest sweep."""
        computed: set[str] = set()
        costs = []
        reading = not any(isinstance(s, Store) for p in sweeps for s in p.body)
        for sweep in sweeps:  # what is held from one sweep to the next is computed in the first
            body = [s for s in sweep.body if isinstance(s, Store) or s.name not in computed]
            conversions = 0 if self.nest.strip else self._conversions(body)  # sums of columns share the cache with rows
            costs.append(_operations(body) + conversions + (len(sweep.reduces) if reading else 0))
            computed.update(s.name for s in sweep.body if not isinstance(s, Store) and s.name in self.held)
        loads = self._loads([s for p in sweeps for s in p.body], lane)
        if phase is not sweeps[costs.index(max(costs))] or not self._asks_ahead(
                sum(costs), loads, LIGHT if reading else HEAVY):
            return []
        next_row, elements = self.nest.parallel[-1], prod(a.size for a in self.nest.reduction)
        found = []
        for load in loads:
            distance = affine(load.index)[0].get(next_row.symbol, 0)
            if distance > 0 and elements * self.kernel.buffer(load.buffer).dtype.itemsize >= 4 * _LINE_BYTES:
                found.append(Stream(load.buffer, load.index, distance))
        together = elements * sum(self.kernel.buffer(s.buffer).dtype.itemsize for s in found)
        if together > (NEXT_ROW_BYTES if len(sweeps) == 1 else FAR_ROW_BYTES):
            return [replace(s, ahead=PREFETCH_ROW) for s in found]
        return found

    def _prefetch(self, streams: Sequence[Stream], lane: Axis, start: str, lanes: int) -> None:
        """Lines that ask for ``lanes`` lanes, ahead of those that begin at ``start``."""
        by_step: dict[int, list[str]] = {}
        for s in streams:
            step = _LINE_BYTES // self.kernel.buffer(s.buffer).dtype.itemsize
            place = self.spell_index(s.index.xreplace({lane.symbol: symbol(start)}))
            how = "1, 3" if s.write else "0, 2"
            by_step.setdefault(step, []).append(f"__builtin_prefetch(&{s.buffer}[{place} + {s.ahead} + l], {how});")
        for step, lines in sorted(by_step.items()):
            self.open(f"for (int64_t l = 0; l < {lanes}; l += {step})")
            for line in lines:
                self.add(line)
            self.close()

    def _ask_ahead(self, streams: Sequence[Stream], lane: Axis, start: str, lanes: int) -> None:
        """Lines that ask for the ``lanes`` lanes of one step, each by itself: many requests at once wait in a queue."""
        for s in streams:
            place = self.spell_index(s.index.xreplace({lane.symbol: symbol(start)}))
            how = "1, 3" if s.write else "0, 2"
            for k in range(0, lanes, _LINE_BYTES // self.kernel.buffer(s.buffer).dtype.itemsize):
                self.add(f"__builtin_prefetch(&{s.buffer}[{place} + {s.ahead + k}], {how});")
