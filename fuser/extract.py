"""Cuts a group out of the graph as a graph of its own, and gives groups of equal structure equal keys."""
from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rooffuse.codegen.errors import NotLowerable
from rooffuse.codegen.fxinfo import op_name
from rooffuse.codegen.lower_stores import is_store
from rooffuse.codegen.lower_views import SPLITTERS
from rooffuse.passes.graph import rounding_marks
from torch.fx import Graph, Node

from .units import Units


@dataclass(frozen=True)
class GroupGraph:
    """A group as a graph: its placeholders stand for ``inputs``, its results for ``outputs`` of the whole graph."""

    graph: Graph
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    key: Hashable


def extract(units: Units, members: Collection[Node], outputs: Sequence[Node]) -> GroupGraph:
    """Copy ``members`` with the views and constants between them into a graph with one placeholder per outside buffer.

    ``outputs`` are the members that somebody outside reads; copies into an input return nothing. Raises NotLowerable
    where a member writes into memory that others read under another name.
    """
    inside = set(members)
    graph = Graph()
    copies: dict[Node, Node] = {}
    inputs: list[Node] = []
    body: list[Node] = []

    def visit(node: Node) -> None:
        if node in copies or node in seen:
            return
        seen.add(node)
        if node in inside or node in units.inline or (op_name(node) in SPLITTERS and node not in units.fusible and \
                node.args[0] is not None and _splits_inside(node, units)):
            for source in node.all_input_nodes:
                visit(source)
            body.append(node)
        else:
            inputs.append(node)

    seen: set[Node] = set()
    for node in sorted(inside, key=units.position.__getitem__):
        visit(node)
    inputs.sort(key=units.position.__getitem__)
    _refuse_shared_writes(units, inside, inputs)
    for k, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"arg{k}")
        copies[node].meta = {"val": node.meta["val"]}
    for node in sorted(body, key=units.position.__getitem__):
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        copies[node].meta = node.meta
    graph.output(tuple(copies[n] for n in outputs))
    return GroupGraph(graph, tuple(inputs), tuple(outputs), structure_key(graph))


def _refuse_shared_writes(units: Units, members: Collection[Node], inputs: Sequence[Node]) -> None:
    """A kernel orders its reads and writes of one buffer; of two that share storage, such as an input and a view of it
    that a library call made, it doesn't know that they do."""
    for node in members:
        if not is_store(node):
            continue
        written = units.source(node.args[0])
        for other in inputs:
            if other is not written and units.roots[other] is units.roots[written]:
                raise NotLowerable(f"{node.name} writes into the memory of {other.name}, which the kernel has, too")


def _splits_inside(node: Node, units: Units) -> bool:
    """Whether a split is read only through its parts, as a view."""
    return all(u in units.inline for u in node.users)


def structure_key(graph: Graph) -> Hashable:
    """Equal for graphs that compute the same on inputs of the same shapes, strides and types."""
    numbers: dict[Node, int] = {}

    def spell(value: Any) -> Hashable:
        if isinstance(value, Node):
            return ("node", numbers[value])
        if isinstance(value, list | tuple):
            return tuple(spell(v) for v in value)
        if isinstance(value, dict):
            return tuple((k, spell(v)) for k, v in value.items())
        if isinstance(value, slice):
            return ("slice", value.start, value.stop, value.step)
        return (type(value).__name__, repr(value)) if isinstance(value, float | bool) else str(value)

    rows = []
    for k, node in enumerate(graph.nodes):
        numbers[node] = k
        value = node.meta.get("val")
        kind = None
        if isinstance(value, torch.Tensor):
            kind = (tuple(value.shape), tuple(value.stride()), str(value.dtype))
        rows.append((node.op, str(node.target) if node.op == "call_function" else "", spell(node.args),
                     spell(node.kwargs), kind, rounding_marks(node)))
    return tuple(rows)
