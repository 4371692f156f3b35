"""Sums and extremes along a row with an accumulator for each lane, taken together as a tree when the row ends.

What g++ makes of a ``reduction`` clause ends by adding the lanes of its vectors one after the other: 16 to 32 dependent
additions, as long as a row of some hundred elements takes for itself. Arrays of accumulators are halved in five steps
instead. Their blocks are short enough to be unrolled, so that the arrays are registers in them, more than a clause's
one vector: additions needn't wait for each other. And each lane's terms are few, which keeps float32's precision.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from .cpp_prefetch import Prefetching, Stream
from .cpp_spelling import COMPUTE
from .ir import Axis, Load, Reduce, Scan, Stmt, Store

#: Accumulators of each reduction: two vectors of floats, or, where single bytes are read or written, one of those.
#: With fewer lanes than the narrowest type has in a vector, g++ takes shorter vectors for all of them.
LANES, BYTE_LANES = 32, 64
#: Rows in which the rest of a step counts.
RAGGED_ROW = 128
#: Most elements between two looks at a loop's counter: as many steps as g++ unrolls.
BLOCK = 512
#: Reductions with accumulators by lane whatever the type, beside sums and extremes of floats.
BY_LANE = ("argmax", "argmin", "any", "all")
#: Reductions of which a lane may keep what it had in place of what it comes to.
REPEATED = ("sum", "prod", "max", "min", "any", "all")
#: Most reductions of one sweep that have lanes of their own: more of them don't fit into registers.
MOST_REDUCES = 4


def lane_blocks(size: int, lanes: int) -> list[tuple[int, int, int]]:
    """How a row of ``size`` is gone through in whole steps of ``lanes``: where runs of blocks begin and end, and their
    blocks' elements. Two runs where no block that is long enough divides the steps."""
    steps, longest = size // lanes, BLOCK // lanes
    even = max((n for n in range(1, longest + 1) if steps and steps % n == 0), default=0)
    block = even if even == steps or even * lanes >= BLOCK // 4 else longest
    ends = sorted({0, steps - steps % block, steps}) if block else []
    return [(low * lanes, high * lanes, min(block, high - low) * lanes) for low, high in zip(ends, ends[1:])]


class LaneForm(Prefetching):
    """Prints the innermost loop of a sweep whose accumulators are arrays over ``_apart`` lanes, unless that is None.
    ``held`` and ``shared_rows`` are values that later sweeps read back."""

    held: frozenset[str]
    shared_rows: frozenset[str]

    def _lanes_apart(self, reduces: Sequence[Reduce], body: Sequence[Stmt], lane: Axis,
                     pieces: Sequence[tuple[int, int]]) -> int | None:
        """Accumulators of each of a sweep's reductions; None where they can't be by lane, or rows are too short."""
        if not 0 < len(reduces) <= MOST_REDUCES or any(isinstance(s, Scan) for s in body):
            return None
        # A row that is also written goes at memory's pace, and blocks of it were 2 to 10% slower.
        if any(isinstance(s, Store) for s in body) and (lane.symbol in self.colliding or lane.size > BLOCK):
            return None
        if not all(r.op in BY_LANE or (r.op in ("sum", "prod", "max", "min") and r.dtype.is_floating_point)
                   for r in reduces):
            return None
        touched = {self.kernel.buffer(s.buffer).dtype.itemsize for s in body if isinstance(s, Load | Store)}
        lanes = BYTE_LANES if 1 in touched else LANES
        steps = [high - low for low, high in pieces if high - low >= lanes]  # a shorter piece is all rest
        if lanes == LANES and max(steps, default=0) < RAGGED_ROW and any(n % lanes > lanes // 2 for n in steps):
            lanes //= 2  # the rest would be about as long as the row's steps take
        return lanes if steps else None

    def _print_apart(self, reduces: Sequence[Reduce], lane: Axis, lanes: int, piece: tuple[int, int],
                     streams: Sequence[Stream], print_body: Callable[[bool], None], again: bool = False) -> None:
        """The loops over one piece of a row: blocks of steps over the lanes, then what is left over of a step.
        ``print_body`` prints the statements, told whether sums go to parts, as those of ``reduces`` do in long rows.
        With ``again`` they may be executed for an element once more: the rest is the end of a whole step, of which the
        lanes that were taken before keep what they had."""
        low, high = piece
        rest = (high - low) % lanes
        for first, last, block in lane_blocks(high - low, lanes):
            self._print_blocks(reduces, lane, lanes, (low + first, low + last, block), streams, print_body)
        if rest and again and high - low > lanes:
            self._open_step(lane, lanes, str(high - lanes))
            self._taken = lanes - rest
            print_body(False)
            self._taken = 0
            self.close()
        elif rest:
            self._open_step(lane, rest, str(high - rest))
            print_body(False)
            self.close()

    def _repeatable(self, reduces: Sequence[Reduce], body: Sequence[Stmt]) -> bool:
        """Whether a sweep may go over elements again: it leaves nothing anywhere but in its accumulators."""
        return all(r.op in REPEATED for r in reduces) and not any(
            isinstance(s, Store | Scan) or s.name in self.held | self.shared_rows
            or (isinstance(s, Reduce) and (s.strip or s.along)) for s in body)

    def _print_blocks(self, reduces: Sequence[Reduce], lane: Axis, lanes: int, run: tuple[int, int, int],
                      streams: Sequence[Stream], print_body: Callable[[bool], None]) -> None:
        """The loops over a run of blocks."""
        low, whole, block = run
        blocks = [r for r in reduces if whole - low > block and r.op in ("sum", "prod")]
        first, last = str(low), str(whole)
        if whole - low > block:
            self.open(f"for (int64_t block = {low}; block < {whole}; block += {block})")
            first, last = "block", f"block + {block}"
        for reduce in blocks:
            self.add(f"{COMPUTE[reduce.dtype]} part_{reduce.name}[{lanes}];")
            self.add(f"for (int64_t l = 0; l < {lanes}; ++l) part_{reduce.name}[l] = {self._start(reduce)};")
        self.open(f"for (int64_t base = {first}; base < {last}; base += {lanes})")
        self._ask_ahead(streams, lane, "base", lanes)
        self._open_step(lane, lanes, "base")
        print_body(bool(blocks))
        self.close()
        self.close()
        for reduce in blocks:
            sign = "+" if reduce.op == "sum" else "*"
            self.add("#pragma omp simd")
            self.add(f"for (int64_t l = 0; l < {lanes}; ++l) acc_{reduce.name}[l] {sign}= part_{reduce.name}[l];")
        self.close(whole - low > block)

    def _open_step(self, lane: Axis, lanes: int, start: str) -> None:
        self.add(f"#pragma omp simd{self._asked}")
        self.open(f"for (int64_t l = 0; l < {lanes}; ++l)")
        self.add(f"const int64_t {lane.symbol} = {start} + l;")
