"""The graph of groups while merges are made."""
from __future__ import annotations

from dataclasses import dataclass, field

import networkx as nx
from torch.fx import Node


@dataclass
class GroupState:
    """The contracted graph while merges are made: node ``k`` of ``graph`` is a group.

    ``rank`` is a topological order of the groups, kept through merges, and ``at`` its inverse.
    """

    members: dict[int, frozenset[Node]]
    owner: dict[Node, int]
    graph: nx.DiGraph
    first: dict[int, int] = field(default_factory=dict)
    rank: dict[int, int] = field(default_factory=dict)
    at: dict[int, int] = field(default_factory=dict)

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
