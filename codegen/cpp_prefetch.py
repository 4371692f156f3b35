"""Memory asked for ahead of time: while some lanes are computed, what comes after them is on its way into the cache.

Processors look some hundred instructions ahead. With an exponential an element that is a few lines of memory, and
computing and waiting take turns; loops that ask ahead were seen to take as long from memory as from cache. Where there
is little to compute the processor streams by itself, and asking costs a few percent. Elementwise loops ask a block of
lanes ahead, rows of several sweeps in the heaviest of them for the row that comes next.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from sympy import Expr

from .cpp_strips import StripForm
from .index import affine, symbol
from .ir import Axis, Compute, Load, Reduce, Scan, Stmt, Store
from .operations import operation_cost
from .sweeps import Phase

#: Lanes computed while the next as many are fetched: elementwise, and along rows, where each block ends with the sums
#: of its vectors.
PREFETCH_LANES, PREFETCH_ROW = 512, 1024
#: Streams that are asked for: with more of them the requests themselves fill the queues.
MAX_STREAMS = 8
#: Most bytes of the next row that are asked for while this one is computed: they share the cache.
NEXT_ROW_BYTES = 1 << 18
#: Fewest operations for each byte loaded that leave memory waiting: below it the processor's own streaming keeps up.
HEAVY = 4
_LINE_BYTES = 64


@dataclass(frozen=True)
class Stream:
    """``buffer[index]`` is loaded in order along the lanes; ``ahead`` elements further on is what to ask for."""

    buffer: str
    index: Expr
    ahead: int


def _operations(body: Sequence[Stmt]) -> int:
    return sum(operation_cost(s.op) for s in body if isinstance(s, Compute))


class Prefetching(StripForm):
    """Finds what a loop over lanes streams from memory, and asks for what comes next. ``held`` are values kept from one
    sweep to the next."""

    held: frozenset[str] = frozenset()

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
        if lanes < 2 * PREFETCH_LANES or not self._asks_ahead(_operations(body), loads):
            return []
        return [Stream(s.buffer, s.index, PREFETCH_LANES) for s in loads]

    def _asks_ahead(self, operations: int, loads: Sequence[Load]) -> bool:
        if self.schedule.ahead is not None:
            return self.schedule.ahead
        return operations >= HEAVY * sum(self.kernel.buffer(s.buffer).dtype.itemsize for s in loads)

    def _row_streams(self, phase: Phase, body: Sequence[Stmt], lane: Axis) -> list[Stream]:
        """What is asked for in a sweep over a row: the next row, or the next block of a row too long for that."""
        sweeps = [p for p in self.phases if p.sweep]
        in_order = any(isinstance(s, Scan) or (isinstance(s, Reduce) and (s.op == "expsum" or s.op.startswith("arg")))
                       for s in body)
        if in_order or not self.nest.parallel or not any(phase is p for p in sweeps):
            return []
        computed: set[str] = set()
        costs = []
        for sweep in sweeps:  # what is held from one sweep to the next is computed in the first
            costs.append(_operations([s for s in sweep.body if isinstance(s, Store) or s.name not in computed]))
            computed.update(s.name for s in sweep.body if not isinstance(s, Store) and s.name in self.held)
        loads = self._loads(body, lane)
        if phase is not sweeps[costs.index(max(costs))] or not self._asks_ahead(sum(costs), loads):
            return []
        next_row, found = self.nest.parallel[-1], []
        for load in loads:
            distance = affine(load.index)[0].get(next_row.symbol, 0)
            row = prod(a.size for a in self.nest.reduction) * self.kernel.buffer(load.buffer).dtype.itemsize
            if distance > 0 and row >= 4 * _LINE_BYTES:
                long = row > NEXT_ROW_BYTES and len(sweeps) == 1
                found.append(Stream(load.buffer, load.index, PREFETCH_ROW if long else distance))
        return found

    def _prefetch(self, streams: Sequence[Stream], lane: Axis, start: str, lanes: int) -> None:
        """Lines that ask for ``lanes`` lanes, ahead of those that begin at ``start``."""
        by_step: dict[int, list[str]] = {}
        for s in streams:
            step = _LINE_BYTES // self.kernel.buffer(s.buffer).dtype.itemsize
            place = self.spell_index(s.index.xreplace({lane.symbol: symbol(start)}))
            by_step.setdefault(step, []).append(f"__builtin_prefetch(&{s.buffer}[{place} + {s.ahead} + l], 0, 2);")
        for step, lines in sorted(by_step.items()):
            self.open(f"for (int64_t l = 0; l < {lanes}; l += {step})")
            for line in lines:
                self.add(line)
            self.close()
