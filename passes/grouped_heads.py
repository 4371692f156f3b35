"""Attention on the key and value heads that there are, in place of copies of them for each query head.

Models with grouped heads often repeat each key and value head for all query heads of its group before they call
attention: a copy of the whole key-value cache, several times its size, at every step. Attention kernels that take fewer
key and value heads than query heads compute the same from the cache itself.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from rooffuse.passes.graph import is_concrete, packet_name, tensor_meta
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

#: Forward attention operators that take grouped heads as they are.
_TAKE_GROUPS = frozenset(
    {"aten._scaled_dot_product_flash_attention_for_cpu", "aten._scaled_dot_product_flash_attention"}
)
_COPIES = frozenset({"aten.clone", "aten.contiguous"})
_VIEWS = frozenset({"aten.view", "aten.reshape", "aten._unsafe_view"})


def grouped_heads(gm: GraphModule) -> GraphModule:
    """Give attention the heads that were repeated for it.

    Requires: ``meta["val"]`` fake tensors; symbolic sizes and attention whose backward is in another graph (which gets
    the repeated heads saved) are left alone. Ensures: results of equal sizes, dtype and strides.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    for node in gm.graph.nodes if mode is not None else ():
        if node.op != "call_function" or packet_name(node.target) not in _TAKE_GROUPS:
            continue
        key, value = (_unrepeated(a) for a in node.args[1:3])
        if key is None or value is None or key[1] != value[1]:
            continue
        arguments = (node.args[0], key[0], value[0], *node.args[3:])
        try:
            made = _called(node, arguments, mode)
        except (RuntimeError, ValueError) as refusal:
            log.info("%s keeps its repeated heads: %s", node.name, refusal)
            continue
        if _same(made[0], node.meta["val"][0]):
            node.args = arguments
            log.debug("%s reads %s and %s as they are", node.name, key[0].name, value[0].name)
    return gm


def _called(node: Node, arguments: tuple[Any, ...], mode: Any) -> Any:
    """The fake results of ``node``'s operator on other arguments. Raises what the operator raises."""
    def fake(argument: Node) -> Any:
        value = argument.meta["val"]
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
            return mode.from_tensor(value)  # a constant of the graph
        return value

    values, keywords = torch.fx.node.map_arg((arguments, dict(node.kwargs)), fake)
    with mode:
        return node.target(*values, **keywords)  # type: ignore[operator]


def _unrepeated(argument: Any) -> tuple[Node, int] | None:
    """``(x, n)`` where ``argument`` is ``x [B, H, S, D]`` with each head repeated ``n`` times for attention alone."""
    result = tensor_meta(argument)
    if result is None or result.dim() != 4 or not is_concrete(result.shape):
        return None
    chain: list[Node] = []
    node: Any = argument
    for names in (_VIEWS, _COPIES, frozenset({"aten.expand"}), frozenset({"aten.unsqueeze"})):
        if isinstance(node, Node) and node.op == "call_function" and packet_name(node.target) in names:
            if len(node.users) != 1:
                return None
            chain.append(node)
            node = node.args[0]
        elif names is not _COPIES:
            return None
    source = tensor_meta(node)
    if source is None or source.dim() != 4 or not is_concrete((*source.shape, *source.stride())):
        return None
    batch, heads, length, width = source.shape
    repeated = chain[-2].meta["val"].shape
    count = repeated[2] if len(repeated) == 5 else 0
    if tuple(repeated) != (batch, heads, count, length, width) or chain[-1].args[1] not in (2, -3):
        return None
    if tuple(result.shape) != (batch, heads * count, length, width) or source.stride(3) != 1 or count < 2:
        return None
    return node, count


def _same(made: torch.Tensor, declared: torch.Tensor) -> bool:
    return (made.shape, made.dtype, made.stride()) == (declared.shape, declared.dtype, declared.stride())
