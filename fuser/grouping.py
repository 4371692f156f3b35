"""Chooses fusion groups by seconds saved.

Every unit starts alone. Merging groups ``a`` and ``b`` is worth ``T(a) + T(b) - T(a ∪ b)``, where ``T`` is the time of
a kernel that moves the group's unique bytes; producer into consumer and side by side compete in that one currency.
The best merge comes first. It is refused, with a reason, if the contracted graph would get a cycle or the merged
group would not lower to one kernel.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import networkx as nx
from rooffuse.codegen.errors import NotLowerable
from rooffuse.codegen.fxinfo import op_name
from rooffuse.codegen.ir import Kernel
from rooffuse.codegen.lower_group import LoweredGroup, lower_finished
from rooffuse.codegen.verify import verify
from rooffuse.passes import hazard_edges
from rooffuse.passes.graph import is_impure
from torch.fx import GraphModule, Node

from .extract import GroupGraph, extract
from .group_state import GroupState
from .merging import BETWEEN, merge_best_first
from .parting import part_and_join
from .pricing import GroupPricer
from .recompute import recompute_producers
from .side_by_side import pack_small
from .traffic_prices import TrafficPrices
from .units import Units

log = logging.getLogger(__name__)

#: Members of one group; past this a kernel compiles slowly and runs out of registers.
MAX_MEMBERS = 240
#: Pointer arguments of one kernel.
MAX_BUFFERS = 48
#: Groups that are merged at once because they run between two that gain from it.
MOST_BETWEEN = 6
#: How much longer than all else a kernel may read rows that several of its programs share.
MOST_REREADING = 1
#: Why a matrix product that could be part of a kernel isn't.
NOTHING_JOINED = "a matrix product that gains nothing in a kernel is the library's"


@dataclass(frozen=True)
class Refusal:
    """A merge that would have saved ``seconds`` and was not made."""

    first: str
    second: str
    seconds: float
    reason: str


@dataclass(frozen=True)
class Group:
    """One launch: a fused kernel's nodes, or a single library call (``lowered`` is None)."""

    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]
    extracted: GroupGraph | None = None
    lowered: LoweredGroup | None = None
    reason: str = ""

    @property
    def fused(self) -> bool:
        return self.lowered is not None


@dataclass(frozen=True)
class Grouping:
    """Groups in an order in which they can run, and the merges that were refused and not made later on."""

    groups: tuple[Group, ...]
    refusals: tuple[Refusal, ...]
    units: Units


Lower = Callable[[GroupGraph], LoweredGroup]


def memoised_lowering(eager_rounding: bool, finish: Callable[[Kernel], Kernel] = lambda kernel: kernel) -> Lower:
    """Lowering that does equal structures once, refusals included; ``finish`` makes a kernel fit its target."""
    known: dict[Hashable, LoweredGroup | NotLowerable] = {}

    def lower(group: GroupGraph) -> LoweredGroup:
        if group.key not in known:
            try:
                lowered = lower_finished(group.graph, finish, eager_rounding)
                verify(lowered.kernel)
                known[group.key] = lowered
            except NotLowerable as reason:
                known[group.key] = reason
        result = known[group.key]
        if isinstance(result, NotLowerable):
            raise NotLowerable(str(result))
        return result

    return lower


class Grouper:
    """Makes groups for one graph on one device."""

    def __init__(self, gm: GraphModule, pricer: GroupPricer, lower: Lower) -> None:
        self.units, self.pricer, self.lower = pricer.units, pricer, lower
        self.refusals: dict[tuple[str, str], Refusal] = {}
        self.times: dict[int, float] = {}
        self._outputs: dict[frozenset[Node], tuple[Node, ...]] = {}
        self.traffic = TrafficPrices(pricer)
        self.apart: dict[Node, set[Node]] = {}
        self.state = self._initial(gm)
        #: Which units need which, by data or by order.
        self.needs = nx.relabel_nodes(self.state.graph, {k: node for node, k in self.state.owner.items()})
        self._next = len(self.state.members)

    # -- the contracted graph -----------------------------------------------------------------------------------

    def _initial(self, gm: GraphModule) -> GroupState:
        units = self.units
        alone = [n for n in units.units if not (units.is_constant(n) and not self._needed_outside(n))]
        members = {k: frozenset([n]) for k, n in enumerate(alone)}
        owner = {n: k for k, n in enumerate(alone)}
        graph = nx.DiGraph()
        graph.add_nodes_from(members)
        state = GroupState(members, owner, graph)
        for k, node in enumerate(alone):
            state.first[k] = units.position[node]
            for read in units.reads(node):
                source = units.unit_of(read.source)
                if source is not None and source in owner:
                    graph.add_edge(owner[source], k)
            for argument in node.all_input_nodes:
                source = units.unit_of(units.source(argument))
                if source is not None and source is not node and source in owner:
                    graph.add_edge(owner[source], k)
        for before, after in hazard_edges(gm):
            if before in owner and after in owner and before is not after:
                graph.add_edge(owner[before], owner[after])
                if op_name(before).endswith("_"):
                    self.apart.setdefault(before, set()).add(after)
                    self.apart.setdefault(after, set()).add(before)
        ordered = [n for n in alone if n not in units.fusible and is_impure(n)]
        for a, b in zip(ordered, ordered[1:]):
            graph.add_edge(owner[a], owner[b])
        state.put_in_order()
        return state

    def _needed_outside(self, constant: Node) -> bool:
        """Whether a library call or the caller wants the constant as a tensor."""
        return any(u not in self.units.fusible for u in self.units.users(constant))

    def outputs(self, members: Collection[Node]) -> tuple[Node, ...]:
        """Members that somebody outside of the group reads from memory."""
        return self._read_outside(members, members)

    def _read_outside(self, nodes: Iterable[Node], members: Collection[Node]) -> tuple[Node, ...]:
        found = [n for n in nodes if any(u not in members for u in self.units.users(n))
                 and not self.pricer.facts(n).stores]
        return tuple(sorted(found, key=self.units.position.__getitem__))

    def merged(self, *groups: int) -> tuple[frozenset[Node], tuple[Node, ...]]:
        """The members and outputs of what groups would be together: no others than they have by themselves."""
        parts = [self.state.members[k] for k in groups]
        for part in parts:
            if part not in self._outputs:
                self._outputs[part] = self.outputs(part)
        union = parts[0].union(*parts[1:])
        if union not in self._outputs:
            self._outputs[union] = self._read_outside({n for part in parts for n in self._outputs[part]}, union)
        return union, self._outputs[union]

    def outputs_of(self, k: int) -> tuple[Node, ...]:
        """The same for group ``k`` once producers are computed in several groups: what a group that doesn't compute
        it for itself reads, and only if ``k`` is its owner."""
        members = self.state.members[k]
        found = [n for n in members if not self.pricer.facts(n).stores and self.state.owner[n] == k
                 and any(self._needs_stored(n, user) for user in self.units.users(n))]
        return tuple(sorted(found, key=self.units.position.__getitem__))

    def _needs_stored(self, node: Node, user: Node) -> bool:
        if user not in self.state.owner:
            return True
        return not self.state.groups[user] <= self.state.groups[node]

    def with_those_between(self, a: int, b: int) -> list[int]:
        """``a``, ``b`` and all groups on paths from one to the other; nothing where those are many, or one of them is a
        library call."""
        state = self.state
        if state.rank[a] > state.rank[b]:
            a, b = b, a
        after, between = state.reachable(a, state.rank[b] - 1), [b]
        for k in between:
            more = [p for p in state.graph.predecessors(k) if p in after and p not in between]
            between += more
            if len(between) > MOST_BETWEEN or not all(map(self.fusible, more)):
                return []
        return [a, *between]

    # -- prices -------------------------------------------------------------------------------------------------

    def time_of(self, k: int) -> float:
        """Seconds of group ``k``."""
        if k not in self.times:
            self.times[k] = self.price(*self.merged(k))
        return self.times[k]

    def price(self, members: Collection[Node], outputs: Iterable[Node]) -> float:
        """Seconds of one kernel of these members that stores these outputs."""
        return self.traffic.seconds(members, tuple(outputs))

    def saving(self, *groups: int) -> float:
        """Seconds that it saves to merge groups, as far as is known."""
        return sum(map(self.time_of, groups)) - self.price(*self.merged(*groups))

    def likely_saving(self, a: int, b: int) -> tuple[float, float]:
        """The same if what both kernels move beyond their unique bytes is moved by the merged one, too; and the seconds
        that its unique bytes take less than theirs by themselves."""
        saved = spared = 0.0
        for sign, groups in ((1, (a,)), (1, (b,)), (-1, (a, b))):
            seconds, moving = self.traffic.promised(*self.merged(*groups))
            saved += sign * seconds
            spared += sign * moving
        return saved, spared

    def candidates(self, k: int) -> Iterable[int]:
        """Groups that may merge with ``k``: its producers, its consumers, and neighbours that read the same buffer or
        results of the same producer."""
        state = self.state
        found = dict.fromkeys([*state.graph.predecessors(k), *state.graph.successors(k)])
        for producer in state.graph.predecessors(k):
            if self.fusible(producer):
                self._add_neighbours(found, k, state.graph.successors(producer))
        for node in state.members[k]:
            for read in self.units.reads(node):
                if read.source in state.members[k] or self.units.is_constant(read.source):
                    continue
                readers = [u for u in self.units.users(read.source) if u in self.units.fusible and u in state.owner]
                self._add_neighbours(found, k, {state.owner[u] for u in readers})
        found.pop(k, None)
        return [g for g in found if self.fusible(g)]

    def _add_neighbours(self, found: dict[int, None], k: int, groups: Iterable[int]) -> None:
        """Those of ``groups`` that run shortly before or after ``k``."""
        ordered = sorted(groups, key=lambda g: self.state.first[g])
        if k in ordered:
            at = ordered.index(k)
            found.update(dict.fromkeys(ordered[max(at - 2, 0):at + 3]))

    def fusible_consumers(self, k: int) -> list[int]:
        found = [s for s in self.state.graph.successors(k) if self.fusible(s)]
        return sorted(found, key=self.state.first.__getitem__)

    def fusible(self, k: int) -> bool:
        """Whether group ``k`` is a kernel rather than a library call."""
        return all(n in self.units.fusible for n in self.state.members[k])

    # -- merging ------------------------------------------------------------------------------------------------

    def why_not(self, *groups: int) -> str | None:
        """The reason against merging groups, or None; they are two, or all on the paths from one to another."""
        members = [self.state.members[k] for k in groups]
        union, outputs = self.merged(*groups)
        if len(union) > MAX_MEMBERS:
            return f"the kernel would have more than {MAX_MEMBERS} operators"
        if self.apart and any(x in a and y in b for a, b in combinations(members, 2)
                              for x in a if x in self.apart for y in self.apart[x]):
            return "one reads what the other has overwritten"
        if self.state.path_outside(groups):
            return BETWEEN
        sources = {r.source for n in union for r in self.units.reads(n) if r.source not in union}
        if len(outputs) + len(sources) > MAX_BUFFERS:
            return f"the kernel would have more than {MAX_BUFFERS} arguments"
        if self._needs_lowering(union):
            try:
                kernel = self.lower(extract(self.units, union, outputs)).kernel
            except NotLowerable as reason:
                return str(reason)
            if self.pricer.rereading(kernel) > MOST_REREADING * self.price(union, outputs):
                return "its programs would read the same rows again and again"
            if self.traffic.exceeds(kernel, union, outputs):
                self._note_traffic(groups)
            computing = self.pricer.computing(kernel)
            if computing > sum(map(self.time_of, groups)) and computing > sum(map(self._running, groups)):
                return "the kernel would compute the same again and again"
        return None

    def _running(self, k: int) -> float:
        """Seconds of group ``k`` by what its own kernel computes, where that takes longer than its bytes."""
        members = self.state.members[k]
        if self.pricer.is_library_call(members):
            return self.time_of(k)
        try:
            kernel = self.lower(extract(self.units, members, self.outputs(members))).kernel
        except NotLowerable:
            return self.time_of(k)
        return max(self.time_of(k), self.pricer.computing(kernel))

    def _note_traffic(self, groups: Sequence[int]) -> None:
        """Price groups, too, by what their kernels move, once that is known of what they would be together."""
        for k in groups:
            members, outputs = self.state.members[k], self.outputs(self.state.members[k])
            if self._needs_lowering(members) and not self.pricer.is_library_call(members):
                try:
                    self.traffic.exceeds(self.lower(extract(self.units, members, outputs)).kernel, members, outputs)
                except NotLowerable:
                    continue
                self.times.pop(k, None)

    def _needs_lowering(self, union: Collection[Node]) -> bool:
        """Whether a merge can fail or compute more than the graph says: with reductions, writes, and parts of values
        taken apart inside of the kernel. Plain elementwise chains can't."""
        facts = [self.pricer.facts(n) for n in union]
        return any(f.needs_lowering for f in facts) or any(not f.parts_of.isdisjoint(union) for f in facts)

    def merge_in_order(self, groups: Sequence[int]) -> int:
        """Merge groups between which no other has to run, the first ones first."""
        first, *others = sorted(groups, key=self.state.rank.__getitem__)
        for other in others:
            first = self.merge(first, other)
        return first

    def merge(self, a: int, b: int) -> int:
        state, k = self.state, self._next
        self._next += 1
        state.put(k, state.take(a) | state.take(b))
        state.first[k] = min(state.first.pop(a), state.first.pop(b))
        state.rank_merged(a, b, k)
        before = (set(state.graph.predecessors(a)) | set(state.graph.predecessors(b))) - {a, b}
        after = (set(state.graph.successors(a)) | set(state.graph.successors(b))) - {a, b}
        state.graph.remove_nodes_from((a, b))
        state.graph.add_node(k)
        state.graph.add_edges_from((p, k) for p in before)
        state.graph.add_edges_from((k, s) for s in after)
        for node in state.members[k]:
            state.owner[node] = k
        return k

    def regroup(self, groups: Collection[int], parts: Sequence[frozenset[Node]]) -> list[int]:
        """Put other groups of the same members in the place of some; returns these, none if they would wait for each
        other."""
        new = list(range(self._next, self._next + len(parts)))
        self._next += len(parts)
        first = [min(map(self.units.position.__getitem__, part)) for part in parts]
        return new if self.state.regroup(groups, new, parts, first, self.needs) else []

    def refuse(self, a: int, b: int, seconds: float, reason: str) -> None:
        names = [min(self.state.members[k], key=self.units.position.__getitem__).name for k in (a, b)]
        key = (names[0], names[1])
        if key not in self.refusals or self.refusals[key].seconds < seconds:
            self.refusals[key] = Refusal(*key, seconds, reason)

    # -- the result ---------------------------------------------------------------------------------------------

    def finish(self) -> Grouping:
        """Lower every group and put them in running order; a group that won't lower is taken apart."""
        state = self.state
        order = list(nx.lexicographical_topological_sort(state.graph, key=lambda k: state.first[k]))
        groups: list[Group] = []
        for k in order:
            members = sorted(state.members[k], key=self.units.position.__getitem__)
            if not self.fusible(k):
                groups.append(Group(tuple(members), tuple(members), reason=self.units.reasons.get(members[0], "")))
            elif self.pricer.is_library_call(members):
                groups.append(Group(tuple(members), tuple(members), reason=NOTHING_JOINED))
            else:
                groups.extend(self._lowered(members, self.outputs_of(k)))
        made = {(a.name, b.name) for g in groups for a in g.nodes for b in g.nodes if (a.name, b.name) in self.refusals}
        left = [r for pair, r in self.refusals.items() if pair not in made]
        return Grouping(tuple(groups), tuple(sorted(left, key=lambda r: (-r.seconds, r.first, r.second))), self.units)

    def _lowered(self, members: Sequence[Node], outputs: tuple[Node, ...]) -> list[Group]:
        if self.pricer.is_library_call(members):
            return [Group(tuple(members), tuple(members), reason=NOTHING_JOINED)]
        try:
            extracted = extract(self.units, members, outputs)
            return [Group(tuple(members), outputs, extracted, self.lower(extracted))]
        except NotLowerable as reason:
            if len(members) == 1:
                log.info("%s runs as a library call: %s", members[0].name, reason)
                return [Group(tuple(members), tuple(members), reason=str(reason))]
            log.info("a group of %d nodes is taken apart: %s", len(members), reason)
            return [group for node in members for group in self._lowered([node], self.outputs([node]))]


def group_graph(gm: GraphModule, pricer: GroupPricer, lower: Lower) -> Grouping:
    """Fusion groups of ``gm`` in running order."""
    grouper = Grouper(gm, pricer, lower)
    merge_best_first(grouper)
    part_and_join(grouper)
    recompute_producers(grouper)
    pack_small(grouper)
    return grouper.finish()
