"""Cuts a group out of the graph as a graph of its own, and gives groups of equal structure equal keys."""
from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from rooffuse.codegen.errors import NotLowerable
from rooffuse.codegen.fxinfo import op_name
from rooffuse.codegen.lower_stores import is_store
from rooffuse.codegen.lower_views import SPLITTERS, is_reinterpretation
from torch.fx import Graph, Node

from .units import Units, tensor_kind


@dataclass(frozen=True)
class GroupGraph:
    """A group as a graph: its placeholders stand for ``inputs``, its results for ``outputs`` of the whole graph.

    ``body`` are its members with the views and constants between them. Most groups that are tried are like others that
    were, which ``key`` tells; the graph itself is made when somebody looks at it.
    """

    inputs: tuple[Node, ...]
    body: tuple[Node, ...]
    outputs: tuple[Node, ...]
    key: Hashable

    @cached_property
    def graph(self) -> Graph:
        graph = Graph()
        copies: dict[Node, Node] = {}
        for k, node in enumerate(self.inputs):
            copies[node] = graph.placeholder(f"arg{k}")
            copies[node].meta = {"val": node.meta["val"]}
        for node in self.body:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            copies[node].meta = node.meta
        graph.output(tuple(copies[n] for n in self.outputs))
        return graph


def extract(units: Units, members: Collection[Node], outputs: Sequence[Node]) -> GroupGraph:
    """Cut out ``members`` with the views and constants between them; every buffer outside becomes one input.

    ``outputs`` are the members that somebody outside reads; copies into an input return nothing. Raises NotLowerable
    where a member writes into memory that others read under another name.
    """
    inside = set(members)
    seen: set[Node] = set()
    inputs: list[Node] = []
    body: list[Node] = []

    def visit(node: Node) -> None:
        if node in seen:
            return
        seen.add(node)
        viewed = node in units.inline and not _reinterprets_outside(node, inside, units)
        if node in inside or viewed or (op_name(node) in SPLITTERS and node not in units.fusible
                                        and node.args[0] is not None and _splits_inside(node, units)):
            for source in node.all_input_nodes:
                visit(source)
            body.append(node)
        else:
            inputs.append(node)

    for node in sorted(inside, key=units.position.__getitem__):
        visit(node)
    inputs.sort(key=units.position.__getitem__)
    body.sort(key=units.position.__getitem__)
    _refuse_shared_writes(units, inside, inputs)
    return GroupGraph(tuple(inputs), tuple(body), tuple(outputs), structure_key(units, inputs, body, outputs))


def _refuse_shared_writes(units: Units, members: Collection[Node], inputs: Sequence[Node]) -> None:
    """A kernel orders its reads and writes of one buffer; of two that share storage, such as an input and a view of it
    that a library call made, it doesn't know that they do."""
    for node in members:
        if not is_store(node):
            continue
        written = node.args[0]
        while written not in inputs and written in units.inline and not units.is_constant(written):
            written = written.all_input_nodes[0]
        for other in inputs:
            if other is not written and units.roots[other] is units.roots[written]:
                raise NotLowerable(f"{node.name} writes into the memory of {other.name}, which the kernel has, too")


def _reinterprets_outside(node: Node, members: Collection[Node], units: Units) -> bool:
    """Whether a view sees memory from outside of the group as another type. The kernel gets that memory as of the new
    type: values would go through the old one's numbers, of which some, as NaNs, lose their bits."""
    if not is_reinterpretation(node):
        return False
    views, source = [node], node.args[0]
    while source in units.inline and source.all_input_nodes:
        views.append(source)
        source = source.args[0]
    return source not in members and _lies_as_traced(views[::-1], source)


def _lies_as_traced(views: Sequence[Node], source: Node) -> bool:
    """Whether ``views`` of ``source``, each of the one before, have the strides that they were traced with: what is
    written in place was a tensor of its own then."""
    value, traced = source.meta["val"], views[-1].meta["val"]
    try:
        with torch.no_grad():
            for view in views:
                value = view.target(value, *view.args[1:], **view.kwargs)  # type: ignore[operator]
    except (RuntimeError, ValueError, TypeError):
        return False
    strides = zip(value.shape, value.stride(), traced.stride())
    return value.storage_offset() == traced.storage_offset() and all(s == t for n, s, t in strides if n != 1)


def _splits_inside(node: Node, units: Units) -> bool:
    """Whether a split is read only through its parts, as a view."""
    return all(u in units.inline for u in node.users)


def structure_key(units: Units, inputs: Sequence[Node], body: Sequence[Node], outputs: Sequence[Node]) -> Hashable:
    """Equal for groups that compute the same on inputs of the same shapes, strides and types."""
    numbers = {node: k for k, node in enumerate((*inputs, *body))}
    calls = tuple((units.spelling(node), *(numbers[n] for n in node.all_input_nodes)) for node in body)
    return tuple(map(tensor_kind, inputs)), calls, tuple(numbers[n] for n in outputs)
