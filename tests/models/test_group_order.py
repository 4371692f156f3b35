"""The running order that grouping keeps while it merges: exact answers on random graphs."""

from __future__ import annotations

import random

import networkx as nx
import pytest
from rooffuse.group_state import GroupState
from rooffuse.grouping import MOST_BETWEEN, Grouper


def _grouper(seed: int, count: int = 24) -> Grouper:
    """A grouper over a random acyclic graph, without FX nodes behind it."""
    draw = random.Random(seed)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((i, j) for i in range(count) for j in range(i + 1, count) if draw.random() < 0.12)
    state = GroupState({k: frozenset() for k in range(count)}, {}, graph, {k: k for k in range(count)})
    for rank, k in enumerate(nx.topological_sort(graph)):
        state.rank[k], state.at[rank] = rank, k
    grouper = Grouper.__new__(Grouper)
    grouper.state, grouper._next = state, count
    return grouper


@pytest.mark.parametrize("seed", range(40))
def test_merges_keep_a_topological_order(seed: int) -> None:
    """Two groups merge exactly if no path leads from one to the other through a third; the order stays sound."""
    draw, grouper = random.Random(seed + 1000), _grouper(seed)
    state = grouper.state
    for _ in range(120):
        if len(state.members) < 2:
            break
        a, b = draw.sample(sorted(state.members), 2)
        between = any(
            nx.has_path(state.graph, s, y) for x, y in ((a, b), (b, a)) for s in state.graph.successors(x) if s != y
        )
        assert between == (grouper.state.path_between(a, b) or grouper.state.path_between(b, a))
        if not between:
            grouper.merge(a, b)
            assert nx.is_directed_acyclic_graph(state.graph)
            assert all(state.rank[u] < state.rank[v] for u, v in state.graph.edges)
            assert {k: state.at[state.rank[k]] for k in state.members} == {k: k for k in state.members}


@pytest.mark.parametrize("seed", range(40))
def test_groups_merge_together_with_those_between(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, grouper = random.Random(seed + 2000), _grouper(seed)
    state = grouper.state
    calls = {k for k in state.members if draw.random() < 0.1}
    monkeypatch.setattr(grouper, "fusible", lambda k: k not in calls)
    for _ in range(30):
        if len(state.members.keys() - calls) < 2:
            break
        a, b = draw.sample(sorted(state.members.keys() - calls), 2)
        after, before = (nx.descendants(state.graph, k) | {k} for k in (a, b)), nx.ancestors
        exact = {a, b}.union(*[reached & (before(state.graph, end) | {end}) for reached, end in zip(after, (b, a))])
        found = grouper.with_those_between(a, b)
        possible = len(exact) <= MOST_BETWEEN + 1 and not exact & calls - {a, b}
        assert set(found) == (exact if possible else set())
        if found:
            grouper.merge_in_order(found)
            assert nx.is_directed_acyclic_graph(state.graph)
            assert all(state.rank[u] < state.rank[v] for u, v in state.graph.edges)
