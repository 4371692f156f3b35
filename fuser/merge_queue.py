"""The pairs of groups that may be merged, in the order in which to try them, and what is known of each from before.

A large group would be priced, and lowered, anew with each of its neighbours whenever it has grown by one, and most of
that work is for pairs whose turn never comes. So what a pair of the grown group saves is taken to be what its parts
were thought to save until it is the pair's turn, and a pair that was refused waits for the group to grow by more.
"""
from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

from .pricing import HIDDEN

if TYPE_CHECKING:
    from .grouping import Grouper

#: What part of a saving a merge counts for that saves time only if its kernel moves less than both groups' own do.
LEAST_LIKELY = 0.001
#: How much more than its parts a pair may be thought to save before it is priced anew.
SLACK = 1.3
#: From how many operators on what one merge saves less than it was thought to is expected of the group's others, too:
#: what its kernel moves beyond unique bytes grows with each neighbour alike, and each lowering takes long.
MANY = 64
#: How much larger a refused merge is when it is tried again at once, and from how many operators on; smaller ones
#: always are. Others wait until nothing else is left.
GROWN, LARGE = 1.5, 32


class MergeQueue:
    """Iterates over pairs of groups, the most seconds saved first, and last those that were refused before."""

    def __init__(self, grouper: Grouper) -> None:
        self._grouper = grouper
        self._heap: list[tuple[float, int, int, int, float | None, float]] = []
        self._pushed = count()
        self._put_off: list[tuple[int, int]] = []
        self._saved = _OfPairs(operator.add)
        self._refused_size = _OfPairs(max)
        #: Large group -> the part of what its merges were thought to save that they do.
        self._part: dict[int, float] = {}

    def __iter__(self) -> Iterator[tuple[int, int, float]]:
        """Pairs that are there when it is their turn, with the seconds that they are thought to save."""
        while self._heap or self._put_off:
            while self._heap:
                worth, a, b, _, saving, part = heapq.heappop(self._heap)
                if not self._there(a, b):
                    continue
                now = self._part_of(a, b)
                if saving is None:
                    self._price(a, b)
                elif now < part:
                    self._add(-worth * now / part, a, b, saving * now / part)
                else:
                    yield a, b, saving
            again, self._put_off = dict.fromkeys(p for p in self._put_off if self._there(*p)), []
            for a, b in again:
                self._price(a, b)

    def push(self, a: int, b: int) -> None:
        """Add a pair, if it may save time."""
        a, b = min(a, b), max(a, b)
        size, refused, saved = self._size(a, b), self._refused_size.get(a, b), self._saved.get(a, b)
        if refused is not None and LARGE <= size < GROWN * refused:
            self._put_off.append((a, b))
        elif saved is not None:
            self._add(SLACK * saved, a, b, None)
        else:
            self._price(a, b)

    def push_back(self, a: int, b: int, saving: float, part: float) -> None:
        """Add a pair again, now that it is known what it saves: that part of what it was thought to."""
        large = a if len(self._grouper.state.members[a]) >= len(self._grouper.state.members[b]) else b
        if len(self._grouper.state.members[large]) >= MANY:
            self._part[large] = part * self._part_of(a, b)
        self._add(saving, a, b, saving)

    def refuse(self, a: int, b: int) -> None:
        """Note that a pair wasn't merged, as large as its groups are now."""
        self._refused_size.put(a, b, self._size(a, b))

    def merged(self, groups: Sequence[int], k: int) -> None:
        """Note that ``groups`` have become ``k``."""
        for known in (self._saved, self._refused_size):
            known.replace(groups, k)
        self._part[k] = min(self._part.pop(g, 1.0) for g in groups)

    def _price(self, a: int, b: int) -> None:
        saving = self._grouper.saving(a, b)
        if saving > 0:
            likely, spared = self._grouper.likely_saving(a, b)
            part = self._part_of(a, b)
            likely = part * max(likely, LEAST_LIKELY * saving)
            worth = likely + part * HIDDEN * max(spared, 0.0)
            self._saved.put(a, b, worth)
            self._add(worth, a, b, likely)

    def _add(self, worth: float, a: int, b: int, saving: float | None) -> None:
        heapq.heappush(self._heap, (-worth, a, b, next(self._pushed), saving, self._part_of(a, b)))

    def _part_of(self, a: int, b: int) -> float:
        return min(self._part.get(a, 1.0), self._part.get(b, 1.0))

    def _there(self, a: int, b: int) -> bool:
        return a in self._grouper.state.members and b in self._grouper.state.members

    def _size(self, a: int, b: int) -> int:
        return len(self._grouper.state.members[a]) + len(self._grouper.state.members[b])


class _OfPairs:
    """A number for each of some pairs of groups; where groups become one, theirs are joined."""

    def __init__(self, join: Callable[[float, float], float]) -> None:
        self._join = join
        self._numbers: dict[int, dict[int, float]] = {}

    def get(self, a: int, b: int) -> float | None:
        return self._numbers.get(a, {}).get(b)

    def put(self, a: int, b: int, number: float) -> None:
        self._numbers.setdefault(a, {})[b] = number
        self._numbers.setdefault(b, {})[a] = number

    def replace(self, groups: Sequence[int], merged: int) -> None:
        for k in groups:
            for other, number in self._numbers.pop(k, {}).items():
                del self._numbers[other][k]
                if other not in groups:
                    known = self.get(merged, other)
                    self.put(merged, other, number if known is None else self._join(known, number))
