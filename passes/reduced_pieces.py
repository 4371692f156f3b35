"""Reductions of a concatenation, along other dimensions than its own, piece by piece.

The gradient of a split is a concatenation, and the bias before the split wants its sum over the rows:

    grad = cat([a, b], 1);  sum(grad, 0)

As a whole the concatenation is summed in a nest of its own, which computes every piece under a condition. Piece by
piece the sums go with what computes the pieces, and only the short results are put together.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from rooffuse.passes.graph import argument, aten, call_like, is_concrete, packet_name, tensor_meta
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

_REDUCTIONS = frozenset({"aten.sum", "aten.mean", "aten.amax", "aten.amin"})
#: Most pieces whose sums are computed apart: the gates of a recurrent cell are four, queries, keys and values three.
_MOST_PIECES = 8


def reduced_pieces(gm: GraphModule) -> GraphModule:
    """Reduce the pieces of concatenations instead of the whole, where kernels compute them.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    found = 0
    for node in list(gm.graph.nodes) if mode is not None else ():
        if node.op == "call_function" and packet_name(node.target) in _REDUCTIONS:
            found += _replace(node, mode)
    log.debug("reduced_pieces: %d", found)
    return gm


def _replace(node: Node, mode: FakeTensorMode) -> bool:
    whole: Any = node.args[0]
    value, result = tensor_meta(whole), tensor_meta(node)
    if packet_name(whole.target) != "aten.cat" or value is None or result is None or len(node.args) < 2 or (
            not is_concrete((*value.shape, *value.stride()))):
        return False
    dims, cut = {d % value.dim() for d in node.args[1] or ()}, argument(whole, "dim") % value.dim()  # type: ignore
    pieces = argument(whole, "tensors")
    if not dims or cut in dims or len(pieces) > _MOST_PIECES or not any(map(_is_computed, pieces)) or any(
            p.meta["val"].dim() != value.dim() for p in pieces):
        return False
    settings = {"dtype": result.dtype} if "dtype" in {a.name for a in node.target._schema.arguments} else {}  # type: ignore
    keep = argument(node, "keepdim")
    with node.graph.inserting_before(node):
        call = functools.partial(call_like, node, mode)
        reduced = [call(node.target, p, sorted(dims), keep, **settings) for p in pieces]
        made = call(aten.cat.default, reduced, cut if keep else cut - sum(d < cut for d in dims))
    if made.meta["val"].stride() != result.stride() or made.meta["val"].dtype != result.dtype:
        for item in (made, *reversed(reduced)):
            node.graph.erase_node(item)
        return False
    node.replace_all_uses_with(made)
    return True


def _is_computed(piece: Node) -> bool:
    """Whether a kernel computes the piece element by element, maybe converted or seen through views."""
    while packet_name(piece.target) in ("aten._to_copy", "aten.view", "aten.permute", "aten.unsqueeze"):
        piece = piece.args[0]  # type: ignore[assignment]
    return torch.Tag.pointwise in getattr(piece.target, "tags", ())
