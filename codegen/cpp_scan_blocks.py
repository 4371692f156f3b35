"""Scans along a row in loops of their own, apart from what is computed for them and from them.

A running total takes one element after another, which no compiler vectorises, and with it neither an exponential that
is added up nor what is made of the total. Block by block, a first loop computes what the scans take, a second one runs
through it, a third one goes on from the totals; the values between them wait in arrays in the first-level cache.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from .cpp_lanes import LaneForm
from .cpp_spelling import COMPUTE
from .ir import Axis, Compute, Const, Index, Load, Reduce, Scan, Stmt, Store, operands

#: Elements of a row in a block.
SCAN_BLOCK = 256


class ScanBlocks(LaneForm):
    """Prints a loop over part of a row as one for each of ``_stages``; a later sweep needs the values ``_wanted``."""

    _wanted: frozenset[str] = frozenset()

    def _scans_in_blocks(self, body: Sequence[Stmt]) -> bool:
        """Whether something is computed or converted beside running totals: loads and stores alone wait for nothing."""
        scans = any(isinstance(s, Scan) and not s.strip for s in body)
        return scans and any(isinstance(s, Compute) or not self._as_it_is(s) for s in body)

    def _collides(self, stmt: Stmt) -> bool:
        """Whether several points of a row may store to one place."""
        return isinstance(stmt, Store) and self.nest.axes[-1].symbol in self.colliding

    def _as_it_is(self, stmt: Stmt) -> bool:
        """Whether a load or store, if it is one, takes a value as it lies in memory."""
        if not isinstance(stmt, Load | Store):
            return True
        value = stmt.value if isinstance(stmt, Store) else stmt.name
        return self.kernel.buffer(stmt.buffer).dtype == self.dtypes[value]

    def _stages(self, body: Sequence[Stmt]) -> list[list[Stmt]]:
        """The statements by how many scans they come after: what is computed, and the scans that take it, in turns. A
        total that is stored as it is goes there at once, and so, one after the other, do stores that may collide."""
        depth: dict[str, int] = {}
        stages: dict[int, list[Stmt]] = {}
        totals = {s.name for s in body if isinstance(s, Scan) and not s.strip}
        for stmt in body:
            below = max((depth.get(n, 0) for n in operands(stmt)), default=0)
            scan = isinstance(stmt, Scan) and not stmt.strip
            if not isinstance(stmt, Store):
                depth[stmt.name] = below + scan
            at_once = isinstance(stmt, Store) and stmt.value in totals and not stmt.accumulate and self._as_it_is(stmt)
            one_by_one = scan or self._collides(stmt)
            stages.setdefault(2 * below + one_by_one - at_once, []).append(stmt)
        return [stages[k] for k in sorted(stages)]

    def _print_scan_blocks(self, body: Sequence[Stmt], lane: Axis, bounds: tuple[str, str],
                           clauses: Callable[[Sequence[Reduce]], str | None],
                           print_body: Callable[[Sequence[Stmt]], None]) -> None:
        """The loops over ``bounds``; ``clauses`` are those of a loop with some reductions, and ``print_body``
        prints what one computes."""
        kept = self.held | self._wanted
        ordered = self._stages(body)
        stored = next((k for k, stage in enumerate(ordered) if any(isinstance(s, Store) for s in stage)), len(ordered))
        kept |= {n for stage in ordered[stored + 1:] for s in stage for n in operands(s)}  # stores may hit them
        again: dict[str, Stmt] = {s.name: s for s in body if isinstance(s, Load | Index | Const)
                                  and not operands(s) and s.name not in kept and self._as_it_is(s)}
        stages = [[s for s in stage if isinstance(s, Store) or s.name not in again] for stage in ordered]
        homes = {s.name: k for k, stage in enumerate(stages) for s in stage if not isinstance(s, Store)}
        wanted = [{n: None for s in stage for n in operands(s) if homes.get(n) != k} for k, stage in enumerate(stages)]
        crossing = {n: None for names in wanted for n in names if n in homes}
        self.open(f"for (int64_t piece = {bounds[0]}; piece < {bounds[1]}; piece += {SCAN_BLOCK})")
        self.add(f"const int64_t stop = RF_MIN(piece + {SCAN_BLOCK}, INT64_C(0) + {bounds[1]});")
        for name in crossing:
            self.add(f"{COMPUTE[self.dtypes[name]]} row_{name}[{SCAN_BLOCK}];")
        place = f"[{lane.symbol} - piece]"
        for stage, names in zip(stages, wanted):
            if not stage:
                continue
            one_by_one = any((isinstance(s, Scan) and not s.strip) or self._collides(s) for s in stage)
            simd = None if one_by_one else clauses([s for s in stage if isinstance(s, Reduce)])
            if simd is not None:
                self.add(f"#pragma omp simd{simd}{self._asked}")
            self.open(f"for (int64_t {lane.symbol} = piece; {lane.symbol} < stop; ++{lane.symbol})")
            for name in names:
                if name in homes:
                    self.add(self.declare(name, self.dtypes[name], f"row_{name}{place}"))
            print_body([*(again[n] for n in again if n in names), *stage])
            for stmt in stage:
                if not isinstance(stmt, Store) and stmt.name in crossing:
                    self.add(f"row_{stmt.name}{place} = {stmt.name};")
            self.close()
        self.close()
