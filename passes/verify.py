"""What must hold of a graph between passes."""

from __future__ import annotations

import torch
from rooffuse.passes.graph import schema_of, storage_roots, viewed_arg, written_args
from torch.fx import GraphModule, Node


class GraphError(RuntimeError):
    """A graph breaks an invariant; the message names the node and the rule."""


def verify(gm: GraphModule) -> None:
    """Check the invariants that every pass may rely on and must keep.

    1. Every placeholder and every operator call with a result carries ``meta["val"]``, and a fake tensor there
       has the dtype it was declared with (nothing else is recomputed: a full propagation costs more than a pass).
    2. Every argument is defined before its use and belongs to this graph.
    3. After a node has mutated a storage, no view taken before that is read: a later read goes through the owner
       of the storage or through a view taken after the mutation.

    Raises:
        GraphError: naming the first node that breaks a rule.
    """
    seen: set[Node] = set()
    for node in gm.graph.nodes:
        for source in node.all_input_nodes:
            if source not in seen:
                raise GraphError(f"{node.format_node()} uses {source.name}, which is not defined before it")
        seen.add(node)
        schema = schema_of(node)
        needs_value = node.op == "placeholder" or (schema is not None and len(schema.returns) > 0)
        if needs_value and "val" not in node.meta:
            raise GraphError(
                f'{node.format_node()} has no meta["val"]; the pass that made the node must set it '
                "(graphs captured outside of AOTAutograd need a FakeTensorProp run first)"
            )
        if schema is not None and len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor":
            value = node.meta["val"]
            if value is not None and not isinstance(value, torch.Tensor):
                raise GraphError(f'{node.format_node()} returns a tensor but meta["val"] is {type(value).__name__}')
    stale = stale_reads(gm)
    if stale:
        reader, view, writer = stale[0]
        raise GraphError(
            f"{reader.name} reads {view.name}, a view taken before {writer.name} mutated its storage; "
            "read the storage's owner instead, or take the view after the mutation"
        )


def stale_reads(gm: GraphModule) -> list[tuple[Node, Node, Node]]:
    """``(reader, view, writer)`` for each read of a view that an earlier node's mutation made stale."""
    nodes = list(gm.graph.nodes)
    if not any(written_args(node) for node in nodes):
        return []
    roots = storage_roots(gm.graph)
    position = {node: index for index, node in enumerate(nodes)}
    last_write: dict[Node, Node] = {}
    found: list[tuple[Node, Node, Node]] = []
    for node in nodes:
        for source in node.all_input_nodes:
            writer = last_write.get(roots[source])
            if writer is None or roots[source] is source or viewed_arg(source) is None:
                continue
            if position[source] < position[writer]:
                found.append((node, source, writer))
        for source in written_args(node):
            last_write[roots[source]] = node
    return found
