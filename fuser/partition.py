"""The graph after grouping: an FX module of ``fused_0``, ``fused_1``, … submodules and plain library calls.

It runs like any FX module, so that grouping can be compared with eager before any kernel exists, and so that a group
whose kernel can't be built still has something to run. Most never do, so Python code is generated at the first call.
"""
from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from rooffuse.codegen.lower_stores import is_store
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.node import map_arg

from .grouping import Group, Grouping


@dataclass(frozen=True)
class FusedModule:
    """``module`` calls a submodule for each fused group; ``groups`` gives the group by submodule name."""

    module: GraphModule
    groups: dict[str, Group]


def fused_module(gm: GraphModule, grouping: Grouping) -> FusedModule:
    """Rewrite ``gm`` in the order of ``grouping``; views and constants stand right before their first use."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    root = torch.nn.Module()
    groups: dict[str, Group] = {}

    def get(node: Node) -> Node:
        if node not in copies:
            for argument in node.all_input_nodes:
                get(argument)
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            copies[node].meta = dict(node.meta)
        return copies[node]

    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            get(node)
            if node.op == "get_attr":
                _copy_attribute(gm, root, str(node.target))
    for group in grouping.groups:
        if not group.fused:
            for node in group.nodes:
                get(node)
            continue
        assert group.extracted is not None
        name = f"fused_{len(groups)}"
        groups[name] = group
        root.add_module(name, _LazyGraphModule(torch.nn.Module(), group.extracted.graph, class_name=name))
        call = graph.call_module(name, tuple(get(n) for n in group.extracted.inputs))
        call.meta = {"val": tuple(n.meta["val"] for n in group.outputs)}
        for k, node in enumerate(group.outputs):
            part = graph.call_function(operator.getitem, (call, k))
            part.meta = dict(node.meta)
            copies[node] = part
        for node in group.nodes:
            if is_store(node) and node.users:
                copies[node] = get(node.args[0])
    output = gm.graph.output_node()
    graph.output(map_arg(output.args[0], get)).meta = dict(output.meta)
    return FusedModule(_LazyGraphModule(root, graph, class_name="Fused"), groups)


def _copy_attribute(source: torch.nn.Module, target: torch.nn.Module, name: str) -> None:
    """Make the tensor attribute ``name`` of one module an attribute of another."""
    value = operator.attrgetter(name)(source)
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(target, part):
            target.add_module(part, torch.nn.Module())
        target = getattr(target, part)
    if isinstance(value, torch.Tensor):
        target.register_buffer(leaf, value, persistent=False)
    else:
        setattr(target, leaf, value)
