"""Offsets for buffers in one arena.

Static memory planning is dynamic storage allocation with known lifetimes: place rectangles (lifetime × bytes) so
that none overlap. Placing them largest first, each into the tightest gap that its lifetime leaves free, is the
"greedy by size" rule of Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference" (2020).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


class MemoryPlanError(ValueError):
    """A lifetime or a plan is not valid; the message names the buffers."""


@dataclass(frozen=True)
class BufferLife:
    """A buffer and the steps of the program at which it must exist.

    Attributes:
        name: unique within a plan.
        nbytes: size in bytes, at least 0.
        first: the step that writes it.
        last: the last step that reads it; the buffer is live on [first, last], both ends included.
        inplace_of: buffers whose last step is ``first`` and whose storage this one may take over, because the
            kernel there reads and writes at the same indices.
    """

    name: str
    nbytes: int
    first: int
    last: int
    inplace_of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.nbytes < 0 or self.last < self.first:
            raise MemoryPlanError(
                f"buffer {self.name!r}: {self.nbytes} bytes live on [{self.first}, {self.last}]; "
                "sizes must be at least 0 and lifetimes must not end before they begin"
            )


@dataclass(frozen=True)
class MemoryPlan:
    """Where each buffer lies: byte offsets into an arena of ``arena_bytes``, and who took over whose storage."""

    arena_bytes: int
    offsets: Mapping[str, int]
    reused: Mapping[str, str]


@dataclass
class _Block:
    """Storage shared by a chain of buffers, each taking over from the one before."""

    nbytes: int
    first: int
    last: int
    members: list[str]


def plan_memory(lives: Sequence[BufferLife], alignment: int = 128) -> MemoryPlan:
    """Place every buffer at an offset that is a multiple of ``alignment``.

    In-place reuse is decided first (it can only lower the live bytes), then blocks are placed largest first into
    the tightest gap. Deterministic: ties are broken by first step and name.

    Raises:
        MemoryPlanError: on duplicate names, an alignment below 1, or an ``inplace_of`` that does not die at ``first``.
    """
    if alignment < 1:
        raise MemoryPlanError(f"alignment must be at least 1 byte, got {alignment}")
    blocks, reused = _share_storage(lives)
    offsets: dict[str, int] = {}
    arena = 0
    timeline = _Timeline(blocks)
    for block in sorted(blocks, key=lambda block: (-block.nbytes, block.first, block.members[0])):
        size = -(-block.nbytes // alignment) * alignment
        offset = timeline.place(block, size)
        arena = max(arena, offset + size)
        offsets.update(dict.fromkeys(block.members, offset))
    ordered = {life.name: offsets[life.name] for life in lives}
    return MemoryPlan(arena, MappingProxyType(ordered), MappingProxyType(reused))


def _share_storage(lives: Sequence[BufferLife]) -> tuple[list[_Block], dict[str, str]]:
    by_name: dict[str, BufferLife] = {}
    for life in lives:
        if life.name in by_name:
            raise MemoryPlanError(f"two buffers are named {life.name!r}")
        by_name[life.name] = life
    blocks: list[_Block] = []
    block_of: dict[str, _Block] = {}
    taken: set[str] = set()
    reused: dict[str, str] = {}
    for life in sorted(lives, key=lambda life: (life.first, life.name)):
        donor = _best_donor(life, by_name, taken)
        if donor is None:
            block = _Block(life.nbytes, life.first, life.last, [life.name])
            blocks.append(block)
        else:
            block = block_of[donor.name]
            block.last = life.last
            block.members.append(life.name)
            taken.add(donor.name)
            reused[life.name] = donor.name
        block_of[life.name] = block
    return blocks, reused


def _best_donor(life: BufferLife, by_name: Mapping[str, BufferLife], taken: set[str]) -> BufferLife | None:
    """The smallest free donor that is large enough and began before ``life``."""
    fitting = []
    for name in life.inplace_of:
        donor = by_name.get(name)
        if donor is None:
            raise MemoryPlanError(f"buffer {life.name!r} may take over {name!r}, which is not a buffer of this plan")
        if donor.last != life.first:
            raise MemoryPlanError(
                f"buffer {life.name!r} begins at step {life.first} and may take over {name!r}, which is live until "
                f"step {donor.last}; only a buffer whose last step is {life.first} can be taken over"
            )
        if name not in taken and donor.first < life.first and donor.nbytes >= life.nbytes > 0:
            fitting.append(donor)
    return min(fitting, key=lambda donor: (donor.nbytes, donor.name), default=None)


class _Timeline:
    """Placed blocks, found by the steps that they are live at.

    Steps are cut into about √n equal spans, each with the placed blocks that touch it ordered by offset, so a
    short-lived block looks at few others. A block that is live over many spans is kept once, in a list of its own.
    """

    _LONG = 8

    def __init__(self, blocks: Sequence[_Block]) -> None:
        self._start = min((block.first for block in blocks), default=0)
        steps = max((block.last for block in blocks), default=0) - self._start + 1
        self._span = max(1, round(steps / max(1, len(blocks) ** 0.5)))
        self._spans: dict[int, list[tuple[int, int, int, int]]] = {}
        self._long: list[tuple[int, int, int, int]] = []

    def _touched(self, block: _Block) -> range:
        return range((block.first - self._start) // self._span, (block.last - self._start) // self._span + 1)

    def place(self, block: _Block, size: int) -> int:
        """Choose the offset of a block of ``size`` bytes, note it, and return it."""
        if size == 0:
            return 0
        touched = self._touched(block)
        placed: set[tuple[int, int, int, int]] = set()
        for span in touched:
            placed.update(self._spans.get(span, ()))
        live = sorted(
            entry for entry in (*placed, *self._long) if entry[2] <= block.last and block.first <= entry[3]
        )
        offset = _tightest_gap(live, size)
        entry = (offset, offset + size, block.first, block.last)
        if len(touched) > self._LONG:
            insort(self._long, entry)
        else:
            for span in touched:
                self._spans.setdefault(span, []).append(entry)
        return offset


def _tightest_gap(live: Sequence[tuple[int, int, int, int]], size: int) -> int:
    """The start of the smallest free gap of at least ``size`` bytes between blocks ordered by offset."""
    best_gap, best_offset, cursor = None, 0, 0
    for start, end, _, _ in live:
        gap = start - cursor
        if gap >= size and (best_gap is None or gap < best_gap):
            best_gap, best_offset = gap, cursor
        cursor = max(cursor, end)
    return cursor if best_gap is None else best_offset


def peak_live_bytes(lives: Sequence[BufferLife]) -> int:
    """The most bytes live at any one step: no plan without in-place reuse can have a smaller arena."""
    change: dict[int, int] = {}
    for life in lives:
        change[life.first] = change.get(life.first, 0) + life.nbytes
        change[life.last + 1] = change.get(life.last + 1, 0) - life.nbytes
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak


def check_plan(lives: Sequence[BufferLife], plan: MemoryPlan) -> None:
    """Check, step by step, that no byte of the arena holds two live buffers.

    Independent of the planner: it walks the program with a sorted list of occupied intervals.

    Raises:
        MemoryPlanError: naming both buffers of an overlap, or the buffer that has no place, lies outside of the
            arena or takes over storage that it may not.
    """
    by_name = {life.name: life for life in lives}
    for life in lives:
        offset = plan.offsets.get(life.name)
        if offset is None or offset < 0 or offset + life.nbytes > plan.arena_bytes:
            raise MemoryPlanError(
                f"buffer {life.name!r} ({life.nbytes} bytes) at offset {offset} is not inside the arena of "
                f"{plan.arena_bytes} bytes"
            )
    for name, donor in plan.reused.items():
        if name not in by_name or donor not in by_name[name].inplace_of or by_name[donor].last != by_name[name].first:
            raise MemoryPlanError(f"buffer {name!r} takes over {donor!r}, which its lifetime does not allow")
    # At one step, storage changes hands before anything else is written, and the dead leave after the step.
    events = sorted(
        (step, kind, life.name) for life in lives if life.nbytes for step, kind in ((life.first, 0), (life.last, 1))
    )
    occupied: list[tuple[int, int, str]] = []
    for _, kind, name in events:
        start = plan.offsets[name]
        interval = (start, start + by_name[name].nbytes, name)
        if kind == 1:
            occupied.remove(interval)
            continue
        position = bisect_left(occupied, interval)
        for other in reversed(occupied[:position]):
            if other[1] > start:
                _refuse_overlap(name, other[2], plan)
        for other in occupied[position:]:
            if other[0] >= interval[1]:
                break
            _refuse_overlap(name, other[2], plan)
        occupied.insert(position, interval)


def _refuse_overlap(name: str, other: str, plan: MemoryPlan) -> None:
    if plan.reused.get(name) != other:
        raise MemoryPlanError(
            f"buffers {name!r} (offset {plan.offsets[name]}) and {other!r} (offset {plan.offsets[other]}) are live at "
            "the same step and overlap"
        )
