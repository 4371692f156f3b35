"""Kernels that have nothing to do with each other, put into one launch: small ones, and updates and norms of any size.

An optimiser's step over a hundred small parameters is a hundred chains that share no buffer, so that no merge of
neighbours finds them; each costs a launch and next to no bytes. Groups at one depth of the graph of groups (the length
of the longest path to them) can't depend on each other, and putting some together at every depth can't close a cycle.
A large kernel that runs earlier or later keeps its results or its operands in memory for longer; not so the update or
the norm of a large parameter, which lies there anyway, nor the results of a graph that are made of its arguments alone:
they can as well be made last.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import networkx as nx
from rooffuse.codegen.errors import NotLowerable
from rooffuse.codegen.lower_reductions import is_reduction, reduction_of
from torch.fx import Node

from .extract import extract
from .node_facts import distinct_bytes

if TYPE_CHECKING:
    from .grouping import Grouper

#: Pointer arguments and members of a launch of several kernels: with twice as many, Triton takes ten times as long.
MAX_BUFFERS, MAX_MEMBERS = 96, 384
#: A kernel is small if it takes at most so many times what launching one costs.
SMALL = 2


def pack_small(grouper: Grouper) -> int:
    """Merge small groups at the same depth into common launches; returns how many groups were merged away."""
    state = grouper.state
    depths: dict[int, int] = {}
    for k in nx.lexicographical_topological_sort(state.graph, key=lambda g: state.first[g]):
        depths[k] = max((depths[p] + 1 for p in state.graph.predecessors(k)), default=0)
    levels: dict[int, list[int]] = {}
    for k, depth in depths.items():
        if _is_kernel(grouper, k) and _is_packed(grouper, k):
            levels.setdefault(depth, []).append(k)
    merged = 0
    for _, groups in sorted(levels.items()):
        for launch in _launches(grouper, sorted(groups, key=state.first.__getitem__)):
            merged += _merge(grouper, launch)
    return merged + _pack_last(grouper)


def _pack_last(grouper: Grouper) -> int:
    """Merge groups from which no other reads, of any size, if they reduce rows of the same lengths or none: others
    would want another number of threads."""
    state = grouper.state
    alike: dict[tuple[int, ...], list[int]] = {}
    for k in sorted(state.members, key=state.first.__getitem__):
        if _is_kernel(grouper, k) and not state.graph.out_degree(k) and _can_wait(grouper, k):
            rows = {reduction_of(n).count for n in state.members[k] if is_reduction(n)}
            alike.setdefault(tuple(sorted(rows)), []).append(k)
    merged = 0
    for groups in alike.values():
        for launch in _launches(grouper, groups):
            merged += _merge(grouper, launch)
    return merged


def _is_kernel(grouper: Grouper, k: int) -> bool:
    """Whether a group is a kernel by itself, none of whose operators is computed in another, too."""
    members = grouper.state.members[k]
    return (grouper.fusible(k) and not grouper.pricer.is_library_call(members)
            and all(grouper.state.owner[n] == k for n in members))


def _can_wait(grouper: Grouper, k: int) -> bool:
    """Whether no buffer of any size has to be kept for a group when it runs last."""
    return sum(map(distinct_bytes, _made_before(grouper, k))) <= _small_bytes(grouper)


def _made_before(grouper: Grouper, k: int) -> set[Node]:
    """What a group reads that isn't its caller's."""
    members, units = grouper.state.members[k], grouper.units
    return {r.source for n in members for r in units.reads(n)
            if r.source not in members and r.source.op != "placeholder"}


def _small_bytes(grouper: Grouper) -> float:
    """Bytes that move in the time of a launch."""
    return grouper.pricer.device.launch_s * grouper.pricer.device.bandwidth


def _is_packed(grouper: Grouper, k: int) -> bool:
    """Whether a group takes little more than its launch, or keeps nothing large in memory for longer: of all that it
    reads and gives out, what isn't its caller's is small."""
    if grouper.time_of(k) <= SMALL * grouper.pricer.device.launch_s:
        return True
    kept = _made_before(grouper, k).union(grouper.outputs_of(k))
    return sum(map(distinct_bytes, kept)) <= _small_bytes(grouper)


def _buffers(grouper: Grouper, k: int) -> set[Node]:
    """What a group reads, writes and gives out."""
    members, units = grouper.state.members[k], grouper.units
    touched = {r.source for n in members for r in units.reads(n) if r.source not in members}
    touched |= {units.source(n.args[0]) for n in members if n.target._schema.is_mutable}
    return touched | set(grouper.outputs_of(k))


def _launches(grouper: Grouper, groups: Sequence[int]) -> list[list[int]]:
    """Consecutive groups that fit into one launch."""
    launches: list[list[int]] = []
    buffers: set[Node] = set()
    members = 0
    for k in groups:
        mine, size = _buffers(grouper, k), len(grouper.state.members[k])
        if not launches or len(buffers | mine) > MAX_BUFFERS or members + size > MAX_MEMBERS:
            launches.append([])
            buffers, members = set(), 0
        launches[-1].append(k)
        buffers |= mine
        members += size
    return launches


def _merge(grouper: Grouper, groups: Sequence[int]) -> int:
    """Merge ``groups`` if they lower to one kernel, else each half of them; returns how many are gone."""
    if len(groups) < 2:
        return 0
    members = frozenset().union(*(grouper.state.members[k] for k in groups))
    outputs = [o for k in groups for o in grouper.outputs_of(k)]
    try:
        grouper.lower(extract(grouper.units, members, sorted(outputs, key=grouper.units.position.__getitem__)))
    except NotLowerable:
        half = len(groups) // 2
        return _merge(grouper, groups[:half]) + _merge(grouper, groups[half:])
    last = max(grouper.state.first[k] for k in groups)
    k = groups[0]
    for other in groups[1:]:
        k = grouper.merge(k, other)
    if not grouper.state.graph.out_degree(k):  # nobody waits for it, so that nothing has to be allocated earlier
        grouper.state.first[k] = last
    return len(groups) - 1
