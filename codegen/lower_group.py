"""From a fusion group (an FX module) to one kernel of the loop IR: which nest stores what, on which buffers.

Reductions fix the axes: the nest runs over the elements of the reduced tensor, and an output joins the nest if its
coordinates follow from those of the reduced tensor by maps that hit each element once. Outputs that follow from
nothing get a nest of their own.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rooffuse.passes.extremes import compared_with_extremes, is_computed
from torch.fx import Graph, Node

from . import lower_pieces, lower_stores, lower_views
from .errors import NotLowerable
from .fxinfo import dtype_of, numel_of, op_name, shape_of, span_of, strides_of
from .index import dot
from .ir import Buffer, Kernel, Load, Nest, Store
from .lower import Coords, NestLowering
from .lower_cutouts import inside
from .lower_domain import (
    Domain,
    column_domain,
    first_domain,
    folded_domain,
    open_domain,
    own_domain,
    strip_domain,
)
from .lower_needs import RowNeeds
from .lower_pieces import Part
from .lower_strips import refuse_early_sums
from .recursion import deep_recursion
from .scatter import is_scatter
from .simplify import simplify_nest
from .sweeps import stored_again


@dataclass(frozen=True)
class LoweredGroup:
    """A kernel and what its buffers are: ``inputs[k]`` is the placeholder position of the buffer, or
    ``outputs[k]`` the position among the group's outputs. A mutated placeholder is in ``inputs`` and is stored to."""

    kernel: Kernel
    inputs: dict[str, int]
    outputs: dict[str, int]


#: Opens a domain for a target, or says by None that the target has no such form.
Form = Callable[[Node, set[Node], RowNeeds, bool], Domain | None]


#: In which order a nest of a target's own is tried.
_FORMS: tuple[Form, ...] = (folded_domain, open_domain, strip_domain, first_domain, own_domain, column_domain)


@dataclass
class _OpenNest:
    domain: Domain
    lowering: NestLowering


def lower_group(graph: Graph, name: str = "fused", eager_rounding: bool = False, strips: bool = True) -> LoweredGroup:
    """Lower a whole group to one kernel, or raise NotLowerable with the node and the reason.

    ``graph``'s placeholders are the input buffers, its outputs (and the destinations of its in-place writes) what the
    kernel stores. Every node carries ``meta["val"]`` with static sizes. Without ``strips``, what goes along rows and
    what goes down columns are nests of their own.
    """
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    buffers = {n: f"i{k}" for k, n in enumerate(placeholders)}
    members = set(graph.nodes)
    outputs = list(graph.output_node().all_input_nodes)
    targets: list[Part] = []
    for k, node in enumerate(outputs):
        if node not in buffers and not lower_stores.is_store(node):
            targets += lower_pieces.parts_of(node, f"o{k}", buffers.__contains__)
    targets += [Part(n, "") for n in graph.nodes if lower_stores.is_store(n)]
    with deep_recursion():
        nests = _fewest_nests(targets, members, buffers, RowNeeds(graph, buffers, strips), eager_rounding)
        finished = tuple(simplify_nest(n.domain.builder.finish()) for n in nests)
        _refuse_twice(graph, [n.lowering.computed(nest) for n, nest in zip(nests, finished)],
                      set().union(*(n.lowering.reduced_apart(nest) for n, nest in zip(nests, finished))))
    return _assemble(name, finished, placeholders, buffers, outputs)


def lower_finished(graph: Graph, finish: Callable[[Kernel], Kernel], eager_rounding: bool = False) -> LoweredGroup:
    """The same with the kernel as ``finish`` makes it; without strips where it raises NotLowerable for some."""
    lowered = lower_group(graph, eager_rounding=eager_rounding)
    try:
        return replace(lowered, kernel=finish(lowered.kernel))
    except NotLowerable:
        if not any(nest.strip for nest in lowered.kernel.nests):
            raise
    lowered = lower_group(graph, eager_rounding=eager_rounding, strips=False)
    return replace(lowered, kernel=finish(lowered.kernel))


def _fewest_nests(targets: list[Part], members: set[Node], buffers: dict[Node, str], needs: RowNeeds,
                  eager_rounding: bool) -> list[_OpenNest]:
    """Nests that store the targets, the widest rows first."""
    targets.sort(key=lambda t: (-needs.elements(t.node), needs.across(t.node), -needs.longest(t.node),
                                -numel_of(t.node)))
    nests = _nests(targets, members, buffers, needs, eager_rounding, _FORMS)
    for order, forms in _other_ways(nests, targets, needs) if len(nests) > 1 else ():
        try:
            nests = min(nests, _nests(order, members, buffers, needs, eager_rounding, forms), key=len)
        except NotLowerable:
            continue
    return nests


def _other_ways(nests: list[_OpenNest], targets: list[Part], needs: RowNeeds
                ) -> list[tuple[list[Part], tuple[Form, ...]]]:
    """Orders of targets and of forms in which several nests may turn out fewer: what is in nests of its own may fit
    into one with strips, pieces of rows of different lengths into one of whole rows, what there is one of for each row
    into one that has its rows for others, and what reduces rows into one of what is computed from their elements."""
    found: list[tuple[list[Part], tuple[Form, ...]]] = []
    if any(a.strip for n in nests for a in n.domain.builder.axes):
        found.append((targets, (strip_domain, folded_domain, open_domain)))
    if any(t.way and needs.elements(t.node) for t in targets):
        found.append((targets, (open_domain, folded_domain, strip_domain, first_domain)))
    own = {n.domain.own[0] for n in nests if n.domain.own is not None}
    if own:
        found.append((sorted(targets, key=lambda t: shape_of(t.node) not in own), _FORMS))
    rows = {t.node: needs.rows_beside(t.node, [other.node for other in targets]) for t in targets}
    if any(rows.values()):
        def beside(target: Node, inside: set[Node], needs: RowNeeds, eager_rounding: bool) -> Domain | None:
            return own_domain(target, inside, needs, eager_rounding, rows[target]) if rows.get(target) else None

        found.append((sorted(targets, key=lambda t: not rows[t.node]), (beside, *_FORMS)))
    return found


def _nests(targets: list[Part], members: set[Node], buffers: dict[Node, str], needs: RowNeeds, eager_rounding: bool,
           forms: tuple[Form, ...]) -> list[_OpenNest]:
    """Nests that store the targets, opened in the first of ``forms`` that can be; NotLowerable without one."""
    nests: list[_OpenNest] = []
    for target in targets:
        _place(target, nests, members, buffers, needs, eager_rounding, forms)
    return nests


def _place(target: Part, nests: list[_OpenNest], members: set[Node], buffers: dict[Node, str], needs: RowNeeds,
           eager_rounding: bool, forms: tuple[Form, ...]) -> None:
    """Add the store of ``target`` to the first nest that visits its elements once, else to a nest of its own."""
    node = target.node
    visited = lower_stores.iterated(node) if target.in_place else node
    source = lower_stores.written_value(node) if target.in_place else node
    start = source if numel_of(source) == numel_of(visited) else visited
    if target.in_place and not needs.rows(start):  # places that are found in rows, as the likeliest class of each
        reduced = (n for n in lower_stores.positions(node) if needs.rows(n) and numel_of(n) == numel_of(visited))
        start = next(reduced, start)
    reason = NotLowerable(f"{node.name}: no axes visit each of its elements once")
    for form in (None, *forms):
        domain = form(start, members, needs, eager_rounding) if form is not None else None
        own = [] if domain is None else [_OpenNest(domain, NestLowering(domain.builder, buffers, domain.coords))]
        for nest in nests if form is None else own:
            places = _places(nest.domain, target, visited, form is open_domain)
            if not places:
                continue
            nest.lowering.widens = form is not None
            try:
                _store(nest, target, places, buffers)
            except NotLowerable as refused:
                reason = refused
                continue
            if form is not None:
                nests.append(nest)
            return
    raise reason


def _refuse_twice(graph: Graph, computed: list[set[Node]], apart: set[Node]) -> None:
    """Raise NotLowerable if several nests compute what is looked for by its value, or one of them in two ways: one that
    goes along rows may take other steps than one that goes from element to element. ``apart`` are reductions that a
    nest computes at several places; it may compute in two ways what is made of them, and so what it compares."""
    sought, compared = compared_with_extremes(graph, returned=True), compared_with_extremes(graph)
    for node in graph.nodes if sought else ():
        if node.op != "placeholder" and not apart.isdisjoint(node.all_input_nodes):
            apart.add(node)
        twice = sum(node in nodes for nodes in computed) > 1 or (node in apart and node in compared)
        if node in sought and is_computed(node) and twice:
            raise NotLowerable(f"{node.name} would be computed twice, and is looked for by its extreme value")


def _places(domain: Domain, target: Part, visited: Node, own: bool) -> tuple[Coords, ...]:
    """Coordinates at which the points of a nest visit each element of ``visited`` once; ``own`` is whether the nest was
    opened for it."""
    coords = domain.placed(visited, target.in_place)
    if coords is None and not target.in_place and (slices := domain.sliced(visited)):
        return slices
    if coords is None and not target.in_place:
        coords = domain.cut_out(visited)
    if coords is None and own:
        coords = domain.counted(visited)
    elif coords is None and (domain.folded or domain.own or (
            target.way and len(domain.builder.body) < lower_pieces.JOINED_STATEMENTS)):
        coords = domain.alike(visited)
    return () if coords is None else (coords,)


def _store(nest: _OpenNest, target: Part, places: tuple[Coords, ...], buffers: dict[Node, str]) -> None:
    b, node = nest.domain.builder, target.node
    if not target.in_place:
        conditions = [inside(b, node, coords) for coords in places]
        values = [target.converted(nest.lowering.value_where(condition, node, coords), b)
                  for condition, coords in zip(conditions, places)]
        for coords, value in zip(places, values):
            refuse_early_sums(b.body, b.axes, value, coords)
        for coords, value, condition in zip(places, values, conditions):
            place = dot(target.coords(coords, b.ranges), strides_of(target.output))
            b.store(target.buffer, dtype_of(target.output), place, value, condition)
        return
    coords, = places
    destination, visited = node.args[0], coords
    value, coords, condition = lower_stores.place(nest.lowering, node, coords)
    refuse_early_sums(b.body, b.axes, value, coords)
    while destination not in buffers:
        if not lower_views.is_alias(destination) or lower_views.is_reinterpretation(destination):
            raise NotLowerable(f"{node.name} writes into {destination.name}, which isn't a view of an input")
        destination, coords = lower_views.INDEX_MAPS[op_name(destination)](destination, coords, b.ranges)
    value = b.cast(value, dtype_of(node))
    adds = lower_stores.accumulates(node)
    b.store(buffers[destination], dtype_of(node), dot(coords, strides_of(destination)), value, condition, adds)
    if adds:
        b.require_scope({s for c in visited for s in c.free_symbols}, node.name)


def _assemble(name: str, nests: tuple[Nest, ...], placeholders: list[Node], buffers: dict[Node, str],
              outputs: list[Node]) -> LoweredGroup:
    used = {s.buffer for n in nests for s in n.body if isinstance(s, Load | Store)}
    arguments, inputs, stored = [], {}, {}
    for k, node in enumerate(placeholders):
        if buffers[node] in used:
            arguments.append(Buffer(buffers[node], dtype_of(node), span_of(node)))
            inputs[buffers[node]] = k
    for k, node in enumerate(outputs):
        if f"o{k}" in used:
            arguments.append(Buffer(f"o{k}", dtype_of(node), span_of(node)))
            stored[f"o{k}"] = k
    kernel = Kernel(name, tuple(arguments), nests)
    _check_mutations(kernel)
    return LoweredGroup(kernel, inputs, stored)


def _check_mutations(kernel: Kernel) -> None:
    """A kernel may overwrite an input only where the same point of the same nest has read it."""
    for buffer in kernel.written & kernel.read:
        writers = [(n, s) for n in kernel.nests for s in n.body if isinstance(s, Store) and s.buffer == buffer]
        if any(is_scatter(s) for _, s in writers):
            raise NotLowerable(f"{buffer} would be read while a scatter writes it")
        for nest in kernel.nests:
            for stmt in nest.body:
                if isinstance(stmt, Load) and stmt.buffer == buffer and any(
                        n is not nest or s.index != stmt.index or s in stored_again(n) for n, s in writers):
                    raise NotLowerable(f"{buffer} would be read at other places than it is written")
