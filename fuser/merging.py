"""Merges groups, the best merge first.

A merge is taken off a queue with what it was thought to save. Lowered, its kernel may turn out to move more bytes than
its members' unique ones; then the merge goes back with what it really saves.
"""
from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import TYPE_CHECKING

from .merge_queue import MergeQueue

if TYPE_CHECKING:
    from .grouping import Grouper

#: What part of what it was thought to save a merge has to save if it isn't to wait until others are made.
CLOSE = 0.98
#: Why two groups can't be merged by themselves.
BETWEEN = "another kernel has to run between them"


def merge_best_first(grouper: Grouper, starting: Collection[int] | None = None) -> None:
    """Best merge first until none saves time; ``starting`` with those of some groups if there are any such."""
    queue = MergeQueue(grouper)
    for k in list(grouper.state.members) if starting is None else starting:
        if grouper.fusible(k):
            for other in grouper.candidates(k):
                if other > k or (starting is not None and other not in starting):
                    queue.push(k, other)
    for a, b, saving in queue:
        reason = grouper.why_not(a, b)
        groups = [a, b]
        if reason == BETWEEN:
            groups = grouper.with_those_between(a, b)
            if len(groups) > 2 and grouper.saving(*groups) > 0:
                reason = grouper.why_not(*groups)
        if reason is not None:
            grouper.refuse(a, b, saving, reason)
            if reason != BETWEEN:
                queue.refuse(a, b)
            continue
        now = grouper.saving(*groups)  # less than before where the kernel turned out to move more bytes
        if now < CLOSE * saving:
            if now > 0:
                queue.push_back(a, b, now, now / saving)
            else:
                grouper.refuse(a, b, saving, "its parts would read the same one after the other")
                queue.refuse(a, b)
            continue
        k = grouper.merge_in_order(groups)
        queue.merged(groups, k)
        for other in grouper.candidates(k):
            queue.push(k, other)
        for first, second in pairwise(grouper.fusible_consumers(k)):
            queue.push(first, second)
