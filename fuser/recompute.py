"""Computes a producer again in each of its consumers where that is cheaper than to write it and read it back.

``x.float()`` read by three kernels costs one write and three reads of twice the bytes of ``x``; computed in each of
them it costs three reads of ``x``, or none where ``x`` is read there anyway. Where the producer's kernel overwrites
what it reads, as an optimiser's moments are, the write goes to the last of the consumers, too.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import networkx as nx
from rooffuse.codegen.errors import NotLowerable
from rooffuse.codegen.lower_reductions import is_reduction
from rooffuse.codegen.lower_scans import is_scan
from rooffuse.codegen.lower_stores import is_store
from rooffuse.passes.extremes import compared_with_extremes
from rooffuse.passes.graph import mutated_roots
from torch.fx import Node

from .extract import extract
from .pricing import HIDDEN

if TYPE_CHECKING:
    from .grouping import Grouper

#: Longest chain of operators that is computed again.
MAX_CHAIN = 32
#: How many times fewer the results of a reduction are than what is computed from them, so that to store them is next
#: to nothing.
SMALLER = 16


def recompute_producers(grouper: Grouper) -> int:
    """Move every stored value that is cheaper to compute again into its consumers; returns how many were moved. What
    the changed groups store is looked at again, until nothing saves bytes any more."""
    moved, changed = 0, set(grouper.state.members)
    mutated, sought = set(mutated_roots(grouper.units.graph)), compared_with_extremes(
        grouper.units.graph, returned=True)
    again = False
    while changed:
        looked_at, changed = sorted(changed, key=lambda g: grouper.state.first.get(g, 0), reverse=True), set()
        for k in looked_at:
            if k not in grouper.state.members or not grouper.fusible(k):
                continue
            for values in _values(grouper, k):
                found = _move(grouper, k, values, mutated, sought, again) if k in grouper.state.members else frozenset()
                moved += bool(found)
                changed |= found
        again = True
    return moved


def _values(grouper: Grouper, k: int) -> Iterator[tuple[Node, ...]]:
    """What group ``k`` stores, one by one, and then what is still stored for the same consumers together: only if none
    is stored any more may nobody have to read what they are made of."""
    outputs = grouper.outputs_of(k)
    yield from ((value,) for value in outputs)
    together: dict[tuple[int, ...], list[Node]] = {}
    for value in grouper.outputs_of(k) if k in grouper.state.members else ():
        together.setdefault(tuple(_consumers(grouper, k, (value,))), []).append(value)
    yield from (tuple(values) for values in together.values() if len(values) > 1)


def _consumers(grouper: Grouper, k: int, values: Collection[Node]) -> list[int]:
    """The groups other than ``k`` that read ``values``, the last one at the end; none if a library call or the caller
    needs one of these."""
    state, units = grouper.state, grouper.units
    users = {u for v in values for u in units.users(v) if u not in state.members[k]}
    if any(u not in units.fusible or u not in state.owner for u in users):
        return []
    return sorted({g for u in users for g in state.groups[u]} - {k}, key=state.rank.__getitem__)


def _move(grouper: Grouper, k: int, values: Collection[Node], mutated: Collection[Node], sought: frozenset[Node],
          again: bool) -> frozenset[int]:
    """Compute ``values`` of group ``k`` in all their consumers, if that saves time and every one still lowers, and
    ``again`` only if it saves bytes; returns the changed groups. Nothing in ``sought`` is computed twice."""
    state, units = grouper.state, grouper.units
    consumers = _consumers(grouper, k, values)
    if not consumers or any(v in mutated for v in values):
        return frozenset()
    last = consumers[-1]
    chain, stored = _chain(grouper, k, values)
    overwriting = {w for n in chain for r in units.reads(n) for w in units.writes_after(r.source, n)}
    late = frozenset(overwriting - state.members[last])
    if not chain or chain & sought or not all(w in state.members[k] and is_store(w) for w in late):
        return frozenset()
    writing, also_stored = _chain(grouper, k, late)
    rest = _still_needed(grouper, k, {*values, *late}, stored | also_stored)
    if late and not (writing and _may_be_written_by(grouper, k, last, late, rest)):
        return frozenset()
    moving, before = _bytes(grouper, (*consumers, k)), sum(grouper.time_of(g) for g in (*consumers, k))
    computing = sum(_computed_now(grouper, g) for g in (*consumers, k))
    changed = {c: state.members[c] | chain for c in consumers} | {k: rest}
    changed[last] |= writing
    old = state.replace(changed)
    after = sum(grouper.price(changed[g], grouper.outputs_of(g)) for g in changed if changed[g])
    kernels = [g for g in changed if changed[g] and not grouper.pricer.is_library_call(changed[g])]
    spared = moving - _bytes(grouper, [g for g in changed if changed[g]])
    worth = HIDDEN * max(spared, 0) / grouper.pricer.device.bandwidth
    # Lowered kernels are priced more closely than members are: what they compute is compared with what others did.
    worse = after >= before + worth or (again and spared <= 0)
    if worse or not _affordable(grouper, kernels, max(before, computing) + worth):
        state.replace(old)
        return frozenset()
    for c in consumers:
        grouper.times.pop(c, None)
        for node in chain | writing if c == last else chain:
            for read in units.reads(node):
                source = units.unit_of(read.source)
                if source is not None and source not in changed[c] and state.owner.get(source, c) != c:
                    state.graph.add_edge(state.owner[source], c)
        state.graph.add_edges_from((p, c) for p in list(state.graph.predecessors(k)) if p != c)  # what wrote it before
    if overwriting:
        state.owner.update(dict.fromkeys(late, last))
        state.graph.add_edges_from((last, g) for g in _after(grouper, k, late))
        state.graph.add_edges_from((c, last) for c in consumers[:-1])
        state.put_in_order()
    grouper.times.pop(k, None)
    if not rest:
        state.graph.remove_node(k)
    return frozenset(changed)


def _after(grouper: Grouper, k: int, writes: Collection[Node]) -> set[int]:
    """The groups that have to run after ``writes`` of group ``k``."""
    state = grouper.state
    return {g for w in writes for s in grouper.needs.successors(w) for g in state.groups[s]} - {k}


def _may_be_written_by(grouper: Grouper, k: int, last: int, writes: frozenset[Node], rest: Collection[Node]) -> bool:
    """Whether group ``last`` can make the ``writes`` of group ``k``, of which ``rest`` stays: nothing that has to come
    after them runs before ``last``, or in it."""
    state = grouper.state
    after = {s for w in writes for s in grouper.needs.successors(w)}
    return not after & {*rest, *state.members[last]} and not any(
        nx.has_path(state.graph, g, last) for g in _after(grouper, k, writes))


def _bytes(grouper: Grouper, groups: Collection[int]) -> int:
    """Bytes that kernels of these groups move."""
    return sum(int(grouper.pricer.cost(grouper.state.members[g], grouper.outputs_of(g)).bytes) for g in groups)


def _chain(grouper: Grouper, k: int, values: Collection[Node]) -> tuple[frozenset[Node], frozenset[Node]]:
    """``values`` and what they need inside of their group up to the results of reductions, which are stored instead,
    and those; empty if that isn't elementwise and short."""
    members, units = grouper.state.members[k], grouper.units
    chain, work, stored = set(values), [*values], set[Node]()
    size = max((v.meta["val"].numel() for v in values), default=0)
    while work:
        node = work.pop()
        written = is_store(node) and node not in values
        if is_reduction(node) or is_scan(node) or written or len(chain) > MAX_CHAIN:
            return frozenset(), frozenset()
        for read in units.reads(node):
            if read.source not in members or read.source in chain | stored:
                continue
            if is_reduction(read.source) and SMALLER * read.source.meta["val"].numel() <= size:
                stored.add(read.source)
            else:
                chain.add(read.source)
                work.append(read.source)
    return frozenset(chain), frozenset(stored)


def _still_needed(grouper: Grouper, k: int, values: Collection[Node], stored: Collection[Node]) -> frozenset[Node]:
    """Members of the group that stores ``stored`` instead of ``values``: what these, the other outputs and copies
    need."""
    members, units = grouper.state.members[k], grouper.units
    work = [*stored, *(o for o in grouper.outputs_of(k) if o not in values)]
    work += [n for n in members if is_store(n) and n not in values]
    needed = set(work)
    while work:
        for read in units.reads(work.pop()):
            if read.source in members and read.source not in needed:
                needed.add(read.source)
                work.append(read.source)
    return frozenset(needed)


def _affordable(grouper: Grouper, groups: Collection[int], seconds: float) -> bool:
    """Whether every group still lowers, to kernels that compute for no more than ``seconds`` in all."""
    try:
        return _computing(grouper, groups) <= seconds
    except NotLowerable:
        return False


def _computed_now(grouper: Grouper, k: int) -> float:
    """Seconds that the kernel of a group computes; 0 for one that isn't a kernel, as a call that runs as it is."""
    if grouper.pricer.is_library_call(grouper.state.members[k]):
        return 0.0
    try:
        return _computing(grouper, [k])
    except NotLowerable:
        return 0.0


def _computing(grouper: Grouper, groups: Collection[int]) -> float:
    """Seconds that the kernels of these groups compute; raises NotLowerable if one isn't a kernel."""
    return sum(grouper.pricer.computing(grouper.lower(
        extract(grouper.units, grouper.state.members[k], grouper.outputs_of(k))).kernel) for k in groups)
