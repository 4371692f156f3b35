"""Pads of reduced rows as concatenations, whose pieces are stored where they are computed.

A pad asks each element of its result whether it is one of the padded tensor: its kernel goes over the result, whose
rows are other ones than those that a norm before it reduces. As a concatenation with constants, each row is padded by
the kernel that has it on chip. What is written into a constant is the same.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rooffuse.passes.graph import aten, call_like, packet_name, same_layout, tensor_meta
from rooffuse.passes.op_sets import POINTWISE, REDUCTIONS
from rooffuse.passes.padding import padding_of
from rooffuse.passes.pipeline import Pass
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node

#: Operators that hand all elements on: a concatenation before them is stored piece by piece, too.
_PASSING = frozenset({"aten.clone", "aten._to_copy", "aten.view", "aten.reshape", "aten._unsafe_view", "aten.permute",
                      "aten.transpose", "aten.t", "aten.unsqueeze", "aten.squeeze", "aten.alias", "aten.detach"})
_REDUCING = REDUCTIONS | {"aten.cumsum", "aten.cumprod", "aten.logcumsumexp"}
#: Most operators from the padded tensor back to what is reduced.
MOST_STEPS = 64


def padded_results_pass(lowers: Callable[[Node], bool]) -> Pass:
    """The pass for a code generator that has kernels for the calls for which ``lowers`` holds."""
    return Pass("padded_results", functools.partial(padded_results, lowers=lowers), padded_results.__doc__ or "")


def padded_results(gm: GraphModule, lowers: Callable[[Node], bool]) -> GraphModule:
    """Pads, and ``slice_scatter`` into constants, become ``cat`` where they go to memory and rows are reduced before.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None:
        return gm
    for node in list(gm.graph.nodes):
        found = padding_of(node) if node.target is not aten.cat.default else None
        if found is None or not _goes_to_memory(node, lowers):
            continue
        source, pads, fill = found
        if not any(size for pad in pads for size in pad) or not _is_reduced(source):
            continue
        with gm.graph.inserting_before(node):
            current = source
            for dim, (before, after) in enumerate(pads):
                current = _lengthened(node, mode, current, dim, before, after, fill)
        if same_layout(current.meta["val"], node.meta["val"]):
            node.replace_all_uses_with(current)
    gm.graph.eliminate_dead_code()
    return gm


def _goes_to_memory(node: Node, lowers: Callable[[Node], bool]) -> bool:
    """Whether all that reads ``node`` are the caller and calls without kernels."""
    return all(u.op == "output" or (_goes_to_memory(u, lowers) if packet_name(u.target) in _PASSING else not lowers(u))
               for u in node.users)


def _is_reduced(source: Node) -> bool:
    """Whether rows are reduced of what ``source`` is computed of, or of what is computed of that."""
    size, work = source.meta["val"].numel(), [source]

    def elementwise(node: Node) -> bool:
        value = tensor_meta(node)
        return value is not None and 2 * value.numel() >= size and node.op == "call_function" and (
            packet_name(node.target) in POINTWISE | _PASSING)

    for node in work:
        for user in (node, *node.users):
            if packet_name(user.target) in _REDUCING and 2 * user.args[0].meta["val"].numel() >= size:
                return True
        if len(work) < MOST_STEPS:
            before = node.all_input_nodes if elementwise(node) else []
            near = [*(n for n in before if tensor_meta(n) is not None), *filter(elementwise, node.users)]
            work += [n for n in near if n not in work]
    return False


def _lengthened(node: Node, mode: Any, current: Node, dim: int, before: int, after: int, fill: Any) -> Node:
    """``current`` between constants along a dimension."""
    value = current.meta["val"]

    def constant(length: int) -> list[Node]:
        shape = [*value.shape[:dim], length, *value.shape[dim + 1:]]
        made = call_like(node, mode, aten.full.default, shape, fill, dtype=value.dtype, device=value.device)
        return [made] if length else []

    if not before and not after:
        return current
    return call_like(node, mode, aten.cat.default, [*constant(before), current, *constant(after)], dim)
