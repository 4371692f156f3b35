"""Sums of a tensor and of a scatter onto zeros, as a scatter onto the tensor.

The gradient of an embedding that is the output layer's weight, too, is a matrix product and a scatter:

    add(mm(g, h), index_put(full(0), [ids], rows, accumulate))  →  index_put(mm(g, h), [ids], rows, accumulate)

As it stands a table of zeros is written and read, and the sum is a third table. Added where the product lies, only the
rows that ids name are touched again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from rooffuse.passes.graph import argument, aten, call_like, is_concrete, same_layout, tensor_meta, viewed_arg
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

_PUTS = (aten.index_put.default, aten._unsafe_index_put.default)
#: Narrower types would round after each of an element's terms.
_TYPES = (torch.float32, torch.float64)


def added_scatters(gm: GraphModule) -> GraphModule:
    """Scatter onto a tensor what is scattered onto zeros and added to it.

    Requires: a functional graph with ``meta["val"]`` fake tensors of concrete sizes (others are left alone). Ensures:
    equal sizes, dtype and strides of every value; an element's terms are added in another order.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    found = 0
    for node in gm.graph.find_nodes(op="call_function", target=aten.add.Tensor) if mode is not None else ():
        first, second = node.args[:2]
        if argument(node, "alpha") == 1:
            found += _replace(node, first, second, mode) or _replace(node, second, first, mode)
    log.debug("added_scatters: %d", found)
    return gm


def _replace(node: Node, base: Any, scatter: Any, mode: FakeTensorMode) -> bool:
    value = tensor_meta(base)
    if value is None or not is_concrete((*value.shape, *value.stride())) or value.dtype not in _TYPES:
        return False
    if not base.all_input_nodes or viewed_arg(base) is not None or len(base.users) > 1 or base is scatter:
        return False
    same = [tensor_meta(n) for n in (node, scatter)]
    if any(v is None or v.dtype != value.dtype or v.shape != value.shape for v in same) or len(scatter.users) > 1:
        return False
    if not same_layout(value, node.meta["val"]):
        return False
    with node.graph.inserting_before(node):
        made = _onto(base, scatter, functools.partial(call_like, node, mode))
    if made is None:
        return False
    node.replace_all_uses_with(made)
    return True


def _onto(base: Node, scatter: Node, call: Callable[..., Node]) -> Node | None:
    """The scatter onto ``base``, or None for what isn't one onto zeros."""
    if scatter.target is aten.embedding_dense_backward.default:
        if argument(scatter, "scale_grad_by_freq"):
            return None
        return call(aten.index_put.default, base, [scatter.args[1]], embedding_terms(scatter, call), True)
    zeros: Any = scatter.args[0] if scatter.args else None
    if not isinstance(zeros, Node) or zeros.target is not aten.full.default or zeros.args[1] != 0:
        return None
    if scatter.target in _PUTS and argument(scatter, "accumulate"):
        return call(aten.index_put.default, base, *scatter.args[1:])
    if scatter.target is aten.index_add.default:
        return call(aten.index_add.default, base, *scatter.args[1:], **scatter.kwargs)
    return None


def embedding_terms(node: Node, call: Callable[..., Node]) -> Node:
    """What an ``embedding_dense_backward`` adds up where its indices point: the gradient, zero for the padding row.
    ``call`` makes the nodes for that."""
    gradient: Any = node.args[0]
    indices, padding = node.args[1], argument(node, "padding_idx")
    if padding < 0:
        return gradient  # type: ignore[no-any-return]
    kept = call(aten.unsqueeze.default, call(aten.ne.Scalar, indices, padding), -1)
    value = gradient.meta["val"]
    nothing = call(aten.full.default, [], 0, dtype=value.dtype, device=value.device, pin_memory=False)
    return call(aten.where.self, kept, gradient, nothing)
