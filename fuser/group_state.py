"""The graph of groups while merges are made."""
from __future__ import annotations

from collections.abc import Mapping
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

    def replace(self, changed: Mapping[int, frozenset[Node]]) -> dict[int, frozenset[Node]]:
        """Let groups be other members, and be no more where these are none; returns what they were."""
        before = {k: self.take(k) for k in changed if k in self.members}
        for k, members in changed.items():
            if members:
                self.put(k, members)
        return before

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
