"""Looks again at groups that would gain from each other but for a kernel that has to run between them.

The best merge first may be one that keeps others from being made: a norm's gradient to its weight, merged with the sums
that its gradient to the input needs, has to wait for the norm's statistics, and with it the sums, which could be had
together with these. Where the kernel between needs but a part of the earlier group, or a part of the later group
doesn't need it, such a part goes to the other group, and what stays behind is merged anew; where all paths from one to
the other lead through a part of the kernel between, that part joins them.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.fx import Node

from .merging import merge_best_first

if TYPE_CHECKING:
    from .grouping import Grouper

#: How many times groups are taken apart for a graph at most: each time, what is left of them is merged anew.
MOST_TRIES = 24
#: Kernels between two groups at most.
MOST_BETWEEN = 6

Members = frozenset[Node]


@dataclass(frozen=True)
class _Parting:
    """Other groups in the place of some: the parts ``joined`` together, and each of ``left`` by itself."""

    groups: tuple[int, ...]
    joined: tuple[Members, ...]
    left: tuple[Members, ...]


def part_and_join(grouper: Grouper) -> int:
    """Part groups for merges that another kernel is in the way of, as long as that saves time; returns how many."""
    made = tries = 0
    work = _pairs_apart(grouper, list(grouper.state.members))
    while work and tries < MOST_TRIES:
        _, a, b = work.pop(0)
        if a not in grouper.state.members or b not in grouper.state.members:
            continue
        for parting in _partings(grouper, a, b):
            if tries < MOST_TRIES and _promises(grouper, parting):
                tries += 1
                changed = _try(grouper, parting)
                if changed:
                    made += 1
                    work = sorted({*work, *_pairs_apart(grouper, changed)})
                    break
    return made


def _pairs_apart(grouper: Grouper, groups: list[int]) -> list[tuple[float, int, int]]:
    """Pairs of ``groups`` and others, the earlier one first, that would save time as one but have a kernel between
    them; with what they would save, negated, the most first."""
    state, found = grouper.state, set()
    for k in groups:
        if k in state.members and grouper.fusible(k):
            for other in grouper.candidates(k):
                a, b = (k, other) if state.rank[k] < state.rank[other] else (other, k)
                if (a, b) not in found and (saving := grouper.saving(a, b)) > 0 and state.path_between(a, b):
                    found.add((-saving, a, b))
    return sorted(found)


def _partings(grouper: Grouper, a: int, b: int) -> Iterator[_Parting]:
    """Ways in which a part of ``a`` and a part of ``b`` can be together, with what is left of them."""
    state, needs = grouper.state, grouper.needs
    between = state.between(a, b)
    if not 0 < len(between) <= MOST_BETWEEN:
        return
    first, second = state.members[a], state.members[b]
    inside = frozenset().union(*(state.members[k] for k in between))
    order = grouper.units.position.__getitem__
    late = set[Node]()
    for node in sorted(second, key=order):
        if any(p in inside or p in late for p in needs.predecessors(node)):
            late.add(node)
    early = set[Node]()
    for node in sorted(first, key=order, reverse=True):
        if any(s in inside or s in early for s in needs.successors(node)):
            early.add(node)
    if late < second:
        yield _Parting((a, b), (first, second - late), (frozenset(late),))
    if early < first:
        yield _Parting((a, b), (first - early, second), (frozenset(early),))
    if all(map(grouper.fusible, between)):
        path, on_path = set(first), set(second)
        for node in sorted(inside, key=order):
            if any(p in path for p in needs.predecessors(node)):
                path.add(node)
        for node in sorted(inside, key=order, reverse=True):
            if any(s in on_path for s in needs.successors(node)):
                on_path.add(node)
        joining = frozenset(path & on_path & inside)
        if joining and joining < inside:
            left = [part for k in between for part in _apart(state.members[k] - joining, path)]
            yield _Parting((a, b, *between), (first, joining, second), tuple(part for part in left if part))


def _apart(members: Members, path: Collection[Node]) -> tuple[Members, Members]:
    """Those of ``members`` that wait for what is on ``path`` and those that don't: others may wait for these."""
    return members.intersection(path), members.difference(path)


def _promises(grouper: Grouper, parting: _Parting) -> bool:
    """Whether the parts take less time than the groups by their unique bytes, what is left joining a neighbour of
    theirs if it can."""
    before = sum(map(grouper.time_of, parting.groups))
    after = _price(grouper, frozenset().union(*parting.joined))
    near = {n for k in parting.groups for n in grouper.candidates(k)} - {*parting.groups}
    for part in parting.left:
        joined = [_price(grouper, part | grouper.state.members[n]) - grouper.time_of(n) for n in near]
        after += min([_price(grouper, part), *joined])
    return after < before


def _price(grouper: Grouper, members: Members) -> float:
    return grouper.price(members, grouper.outputs(members))


def _try(grouper: Grouper, parting: _Parting) -> list[int]:
    """Make the parting and the merges that follow from it; the new groups, or none if all that doesn't save time."""
    before = grouper.state
    grouper.state = before.copy()
    new = grouper.regroup(parting.groups, (*parting.joined, *parting.left))
    if new:
        together, left = new[:len(parting.joined)], new[len(parting.joined):]
        if grouper.why_not(*together) is None:
            merge_best_first(grouper, [grouper.merge_in_order(together), *left])
            gone, made = before.members.keys() - grouper.state.members, grouper.state.members.keys() - before.members
            if sum(map(grouper.time_of, made)) < sum(_price(grouper, before.members[k]) for k in gone):
                return sorted(made)
    grouper.state = before
    return []
