"""Products in float32 where the processor is slower in the narrow type that they were written in.

A CPU without instructions for float16 multiplies its elements one by one: a matrix product takes some sixty times what
it takes in float32, next to which the casts around it are nothing. The price decides, and so does a calibration: what
is quick is left as it is.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Collection

import torch
from rooffuse.cost_model import Device, price
from rooffuse.passes.graph import call_like, is_concrete, same_strides, tensor_meta
from rooffuse.passes.pipeline import Pass
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

log = logging.getLogger(__name__)
aten = torch.ops.aten

_KINDS = frozenset({"matmul", "convolution", "attention"})
_NARROW = (torch.float16, torch.bfloat16)
#: Bytes that a cast there and back moves for each byte of a narrow operand or result: it is read, and its wide copy
#: written and read again.
CASTING = 5


def quick_types_pass(device: Device) -> Pass:
    """The pass for a device."""
    return Pass("quick_types", functools.partial(quick_types, device=device), quick_types.__doc__ or "")


def quick_types(gm: GraphModule, device: Device) -> GraphModule:
    """Cast the operands of matrix products, convolutions and attention to float32, and their results back, where that
    takes less time by the roofline of ``device``.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value; each result is rounded once, and its sums are at least as exact as the library's.
    """
    slow = frozenset(d for d in _NARROW if device.peak(d) < device.peak(torch.float32))
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes]) if slow else None
    count = 0
    for node in list(gm.graph.nodes) if mode is not None else ():
        if node.op == "call_function" and isinstance(node.target, OpOverload) and _saves(node, slow, device):
            count += _rewrite(node, slow, mode)
    log.debug("quick_types: %d", count)
    return gm


def _saves(node: Node, slow: Collection[torch.dtype], device: Device) -> bool:
    values = [v for v in (tensor_meta(n) for n in node.all_input_nodes) if v is not None]
    if not any(v.dtype in slow for v in values) or not all(is_concrete(v.shape) for v in values):
        return False
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    priced = price(node.target, args, kwargs, node.meta["val"])
    if priced.kind not in _KINDS or priced.dtype not in slow:
        return False
    seconds = int(priced.cost.flops) / device.peak(priced.dtype)
    wide = int(priced.cost.flops) / device.peak(torch.float32)
    return seconds > wide + CASTING * int(priced.cost.bytes) / device.bandwidth + 2 * device.launch_s


def _rewrite(node: Node, slow: Collection[torch.dtype], mode: FakeTensorMode) -> bool:
    parts = [node] if tensor_meta(node) is not None else list(node.users)
    if not all(part is node or part.target is operator.getitem for part in parts):
        return False
    call = functools.partial(call_like, node, mode)

    def widened(operand: Node) -> Node:
        value = tensor_meta(operand)
        narrow = value is not None and value.dtype in slow
        return call(aten._to_copy.default, operand, dtype=torch.float32) if narrow else operand

    with node.graph.inserting_before(node):
        before = node.prev
        made = call(node.target, *map_arg(node.args, widened), **map_arg(node.kwargs, widened))
        results: dict[Node, Node] = {}
        for part in parts:
            result = made if part is node else call(operator.getitem, made, part.args[1])
            value = tensor_meta(part)
            if value is not None and value.dtype != result.meta["val"].dtype:
                result = call(aten._to_copy.default, result, dtype=value.dtype)
            results[part] = result
    if not all(tensor_meta(part) is None or same_strides(part.meta["val"], result.meta["val"])
               for part, result in results.items()):
        while node.prev is not before:
            node.graph.erase_node(node.prev)
        return False
    for part, result in results.items():
        part.replace_all_uses_with(result)
        if part is not node:
            node.graph.erase_node(part)
    node.graph.erase_node(node)
    return True
