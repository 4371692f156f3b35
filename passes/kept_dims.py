"""Reductions that differ only in whether they keep the reduced dimensions, as one."""

from __future__ import annotations

import logging
from typing import Any

import torch
from rooffuse.passes.graph import (
    argument,
    call_like,
    mutated_roots,
    returned_nodes,
    same_strides,
    storage_roots,
    tensor_meta,
)
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten

_KEEPING = {aten.sum.dim_IntList: ("dtype",), aten.mean.dim: ("dtype",), aten.amax.default: (),
            aten.amin.default: ()}
#: Reductions of everything, and those that do the same along dimensions.
_OF_ALL = {aten.sum.default: aten.sum.dim_IntList, aten.mean.default: aten.mean.dim}


def kept_dims(gm: GraphModule) -> GraphModule:
    """Let what is reduced with and without its dimensions be reduced once: a standard deviation keeps those of the mean
    in it, and the mean beside it seldom does.

    Requires: ``meta["val"]`` fake tensors (those without are left alone). Ensures: equal values, sizes and strides;
    what the caller receives is no view of anything else that it receives.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None:
        return gm
    roots, mutated = storage_roots(gm.graph), set(mutated_roots(gm.graph))
    alike: dict[Any, list[Node]] = {}
    for node in gm.graph.nodes:
        key = _key(node)
        if key is not None and roots[key[1]] not in mutated:
            alike.setdefault(key, []).append(node)
    returned, merged = set(returned_nodes(gm.graph)), 0
    for (target, source, dims, *kinds), nodes in alike.items():
        if len(nodes) > 1 and sum(n in returned for n in nodes) <= 1:
            _merge(nodes, target, (source, list(dims), True), dict(zip(_KEEPING[target], kinds)), mode)
            merged += 1
    log.debug("kept_dims: %d reductions instead of several each", merged)
    return gm


def _key(node: Node) -> tuple[Any, ...] | None:
    """What is reduced, how, and along which dimensions; None for other nodes."""
    target = _OF_ALL.get(node.target, node.target)  # type: ignore[arg-type]
    value = tensor_meta(node.args[0]) if target in _KEEPING else None
    if value is None or value.dim() == 0:
        return None
    dims = argument(node, "dim") if target is node.target else None
    if not isinstance(dims, (list, tuple)) or not dims:
        dims = range(value.dim())
    return (target, node.args[0], tuple(sorted(d % value.dim() for d in dims)),
            *(argument(node, name) for name in _KEEPING[target]))


def _keeps(node: Node) -> bool:
    return node.target not in _OF_ALL and bool(argument(node, "keepdim"))


def _merge(nodes: list[Node], target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mode: FakeTensorMode) -> None:
    """Replace ``nodes``, the first of which comes first, by one that keeps its dimensions."""
    graph = nodes[0].graph
    with graph.inserting_before(nodes[0]):
        kept = call_like(nodes[0], mode, target, *args, **kwargs)
    for node in nodes:
        same = kept
        if not _keeps(node):
            with graph.inserting_before(node):
                same = call_like(node, mode, aten.squeeze.dims, kept, args[1])
        if same_strides(same.meta["val"], node.meta["val"]):
            node.replace_all_uses_with(same)
            graph.erase_node(node)
