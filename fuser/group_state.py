"""The graph of groups while merges are made."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
from torch.fx import Node


@dataclass
class GroupState:
    """The contracted graph while merges are made: node ``k`` of ``graph`` is a group.

    ``rank`` is a topological order of the groups, kept through merges, and ``at`` its inverse; ``groups`` says which
    groups compute a node.
    """

    members: dict[int, frozenset[Node]]
    owner: dict[Node, int]
    graph: nx.DiGraph
    first: dict[int, int] = field(default_factory=dict)
    rank: dict[int, int] = field(default_factory=dict)
    at: dict[int, int] = field(default_factory=dict)
    groups: dict[Node, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for k, members in self.members.items():
            self.put(k, members)

    def put(self, k: int, members: frozenset[Node]) -> None:
        """Let a new group be these members."""
        self.members[k] = members
        for node in members:
            self.groups.setdefault(node, set()).add(k)

    def take(self, k: int) -> frozenset[Node]:
        """Take a group out; returns its members."""
        for node in self.members[k]:
            self.groups[node].remove(k)
        return self.members.pop(k)

    def put_in_order(self) -> None:
        """Give the groups ranks in which they can run."""
        order = list(nx.lexicographical_topological_sort(self.graph, key=self.first.__getitem__))
        self.rank, self.at = {k: rank for rank, k in enumerate(order)}, dict(enumerate(order))

    def regroup(self, groups: Collection[int], new: Sequence[int], parts: Sequence[frozenset[Node]],
                first: Sequence[int], needs: nx.DiGraph) -> bool:
        """Put groups ``new`` of these members, which come ``first`` so early, in the place of ``groups``; whether they
        don't wait for each other, as ``needs`` says which units need which."""
        for k in groups:
            self.take(k)
            del self.first[k]
        self.graph.remove_nodes_from(groups)
        for k, members, place in zip(new, parts, first):
            self.put(k, members)
            self.first[k] = place
            self.owner.update(dict.fromkeys(members, k))
        self.graph.add_nodes_from(new)
        for k, members in zip(new, parts):
            before = {self.owner[p] for node in members for p in needs.predecessors(node) if p not in members}
            after = {self.owner[s] for node in members for s in needs.successors(node) if s not in members}
            self.graph.add_edges_from([*((p, k) for p in before), *((k, s) for s in after)])
        if not nx.is_directed_acyclic_graph(self.graph):
            return False
        self.put_in_order()
        return True

    def replace(self, changed: Mapping[int, frozenset[Node]]) -> dict[int, frozenset[Node]]:
        """Let groups be other members, and be no more where these are none; returns what they were."""
        before = {k: self.take(k) for k in changed if k in self.members}
        for k, members in changed.items():
            if members:
                self.put(k, members)
        return before

    def copy(self) -> GroupState:
        """A state that changes by itself."""
        return GroupState(dict(self.members), dict(self.owner), self.graph.copy(), dict(self.first), dict(self.rank),
                          dict(self.at))

    def between(self, a: int, b: int) -> list[int]:
        """The groups on paths from ``a`` to ``b``, without these."""
        inside = self.reachable(a, self.rank[b] - 1)
        found = [p for p in self.graph.predecessors(b) if p in inside]
        for k in found:
            found += [p for p in self.graph.predecessors(k) if p in inside and p not in found]
        return found

    def reachable(self, start: int, last: int) -> set[int]:
        """Groups that come after ``start`` along edges, as far as rank ``last``, without ``start`` itself."""
        seen: set[int] = set()
        work = [start]
        while work:
            for s in self.graph.successors(work.pop()):
                if s not in seen and self.rank[s] <= last:
                    seen.add(s)
                    work.append(s)
        return seen

    def path_between(self, a: int, b: int) -> bool:
        """Whether ``b`` is reached from ``a`` through a third group."""
        if self.rank[a] > self.rank[b]:
            return False
        inside = self.reachable(a, self.rank[b] - 1)
        return any(p in inside for p in self.graph.predecessors(b))

    def path_outside(self, groups: Collection[int]) -> bool:
        """Whether one of ``groups`` is reached from one of them through a group that isn't."""
        last, work = max(map(self.rank.__getitem__, groups)), [*groups]
        seen = set(groups)
        while work:
            k = work.pop()
            for s in self.graph.successors(k):
                if s in groups and k not in groups:
                    return True
                if s not in seen and self.rank[s] <= last:
                    seen.add(s)
                    work.append(s)
        return False

    def rank_merged(self, a: int, b: int, k: int) -> None:
        """Give ``k``, which replaces ``a`` and ``b``, a rank: what follows the earlier one moves behind it."""
        if self.rank[a] > self.rank[b]:
            a, b = b, a
        low, high = self.rank[a], self.rank[b]
        between = [self.at[r] for r in range(low + 1, high) if r in self.at]
        ranks = [low, *[self.rank[g] for g in between]]
        behind = self.reachable(a, high - 1) if between else set()
        del self.rank[a], self.rank[b], self.at[high]
        ordered = [*[g for g in between if g not in behind], k, *[g for g in between if g in behind]]
        for rank, group in zip(ranks, ordered):
            self.rank[group], self.at[rank] = rank, group
