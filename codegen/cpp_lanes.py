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
#: Most elements between two looks at a loop's counter: as many steps as g++ unrolls.
BLOCK = 512
#: Reductions with accumulators by lane whatever the type, beside sums and extremes of floats.
BY_LANE = ("argmax", "argmin", "any", "all")
#: Most reductions of one sweep that have lanes of their own: more of them don't fit into registers.
MOST_REDUCES = 4


def lane_block(size: int, lanes: int) -> int:
    """Elements, in whole steps of ``lanes``, that a row of ``size`` is gone through at a time; 0 where too few fit."""
    steps = size // lanes
    most = max((n for n in range(1, BLOCK // lanes + 1) if steps and steps % n == 0), default=0)
    return most * lanes if most == steps or most * lanes >= BLOCK // 4 else 0


class LaneForm(Prefetching):
    """Prints the innermost loop of a sweep whose accumulators are arrays over ``_apart`` lanes, unless that is None."""

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
        return lanes if steps and all(lane_block(size, lanes) for size in steps) else None

    def _print_apart(self, reduces: Sequence[Reduce], lane: Axis, lanes: int, piece: tuple[int, int],
                     streams: Sequence[Stream], print_body: Callable[[bool], None]) -> None:
        """The loops over one piece of a row: blocks of steps over the lanes, then what is left over of a step.
        ``print_body`` prints the statements, told whether sums go to parts, as those of ``reduces`` do in long rows."""
        low, high = piece
        whole = low + (high - low) // lanes * lanes
        if low < whole:
            self._print_blocks(reduces, lane, lanes, (low, whole), streams, print_body)
        if whole < high:
            self._open_step(lane, high - whole, str(whole))
            print_body(False)
            self.close()

    def _print_blocks(self, reduces: Sequence[Reduce], lane: Axis, lanes: int, piece: tuple[int, int],
                      streams: Sequence[Stream], print_body: Callable[[bool], None]) -> None:
        """The loops over whole steps of a row."""
        low, whole = piece
        block = lane_block(whole - low, lanes)
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
