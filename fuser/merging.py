"""Merges groups, the best merge first.

A merge is taken off a queue with what it was thought to save. Lowered, its kernel may turn out to move more bytes than
its members' unique ones; then the merge goes back with what it really saves.
"""
from __future__ import annotations

import heapq
from itertools import count, pairwise
from typing import TYPE_CHECKING

from .traffic_prices import MOVES_MORE

if TYPE_CHECKING:
    from .grouping import Grouper

#: Why two groups can't be merged by themselves.
BETWEEN = "another kernel has to run between them"

#: The part of a saving that a merge counts for where it is there only if the merged kernel moves less than its parts do.
LEAST_LIKELY = 0.001


def merge_best_first(grouper: Grouper) -> None:
    """Best merge first until none saves time."""
    state = grouper.state
    heap: list[tuple[float, int, int, int]] = []
    pushed = count()

    def push(a: int, b: int) -> None:
        a, b = min(a, b), max(a, b)
        saving = grouper.saving(a, b)
        if saving > 0:
            saving = max(grouper.likely_saving(a, b), LEAST_LIKELY * saving)
            heapq.heappush(heap, (-saving, a, b, next(pushed)))

    for k in list(state.members):
        if grouper.fusible(k):
            for other in grouper.candidates(k):
                if other > k:
                    push(k, other)
    while heap:
        saving, a, b, _ = heapq.heappop(heap)
        if a not in state.members or b not in state.members:
            continue
        reason = grouper.why_not(a, b)
        groups = [a, b]
        if reason == BETWEEN:
            groups = grouper.with_those_between(a, b)
            if len(groups) > 2 and grouper.saving(*groups) > 0:
                reason = grouper.why_not(*groups)
        if reason is not None:
            grouper.refuse(a, b, -saving, reason)
            continue
        now = grouper.saving(*groups)  # less than before where the kernel turned out to move more bytes
        if now < -saving / MOVES_MORE:
            if now > 0:
                heapq.heappush(heap, (-now, a, b, next(pushed)))
            else:
                grouper.refuse(a, b, -saving, "its parts would read the same one after the other")
            continue
        k = grouper.merge_in_order(groups)
        for other in grouper.candidates(k):
            push(k, other)
        for first, second in pairwise(grouper.fusible_consumers(k)):
            push(first, second)
