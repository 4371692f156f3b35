"""Common-subexpression elimination."""

from __future__ import annotations

import logging
from typing import Any

from rooffuse.passes.graph import (
    argument_key,
    is_impure,
    mutated_roots,
    packet_name,
    returned_nodes,
    rounding_marks,
    storage_roots,
    viewed_arg,
    written_args,
)
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

# Uninitialised memory: two calls may hold different garbage, and each is usually made to be written to.
_UNINITIALISED = frozenset(
    f"aten.{name}" for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "resize_")
)


def cse(gm: GraphModule) -> GraphModule:
    """Let equal calls on equal arguments be one node.

    Requires: ``meta["val"]`` on operator calls. Ensures: no two pure nodes compute the same thing, except where
    merging would be seen: random draws, effects, uninitialised memory, storages that the graph mutates, reads on
    different sides of a mutation, and two results that the caller receives as separate tensors.
    """
    graph = gm.graph
    roots = storage_roots(graph)
    mutated = set(mutated_roots(graph))
    version: dict[Node, int] = {}
    returned = set(returned_nodes(graph))
    returned_roots = {roots[node] for node in returned}
    known: dict[Any, Node] = {}
    merged = 0
    for node in list(graph.nodes):
        for source in written_args(node):
            version[roots[source]] = version.get(roots[source], 0) + 1
        if node.op not in ("call_function", "get_attr") or is_impure(node):
            continue
        if packet_name(node.target) in _UNINITIALISED:
            continue
        source = viewed_arg(node)
        root = node if source is None else roots[source]
        roots[node] = root
        if root is node and root in mutated:
            continue
        reads = tuple(version.get(roots[argument], 0) for argument in node.all_input_nodes)
        key = (node.op, node.target, argument_key(node.args, _itself), argument_key(node.kwargs, _itself), reads,
               rounding_marks(node))
        earlier = known.setdefault(key, node)
        if earlier is node:
            continue
        both_returned = node in returned and earlier in returned
        if both_returned or (root is node and node in returned_roots and roots[earlier] in returned_roots):
            continue
        if root is node and node in returned_roots:
            returned_roots.add(roots[earlier])
        if node in returned:
            returned.add(earlier)
        node.replace_all_uses_with(earlier)
        graph.erase_node(node)
        merged += 1
    log.debug("cse: merged %d nodes", merged)
    return gm


def _itself(node: Node) -> Node:
    return node
