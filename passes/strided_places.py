"""Places in memory as places in tensors.

``as_strided`` and its kin, which ``fill_diagonal_`` and gradients of views become, count elements from where a storage
begins. What a graph computes lies elsewhere when it runs: in planned memory, beside other values. Seen as one
dimension, in the order of memory, a tensor has the same elements at places of its own, which need no storage.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from rooffuse.passes.graph import (
    argument,
    call_like,
    is_concrete,
    returned_nodes,
    storage_roots,
    tensor_meta,
    viewed_arg,
)
from rooffuse.passes.rule_base import memory_order
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

log = logging.getLogger(__name__)
aten = torch.ops.aten

_READING = frozenset({aten.as_strided.default, aten.as_strided_copy.default})
#: Operators that count places from where a storage begins.
STRIDED = _READING | {aten.as_strided_scatter.default}


def strided_places(gm: GraphModule) -> GraphModule:
    """Let what is read from and written to places of a storage be slices, or single elements, of the tensor in it.

    Requires: ``meta["val"]`` fake tensors. Ensures: equal values and sizes, and strides of what is written to. Left as
    they are: places outside of the tensor, tensors with gaps, views of the graph's inputs and of what it returns, and
    what is viewed as only its strides allow.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    found = [n for n in gm.graph.nodes if n.target in STRIDED]
    if mode is None or not found:
        return gm
    roots = storage_roots(gm.graph)
    returned = {roots[n] for n in returned_nodes(gm.graph)}
    count = 0
    for node in found:
        root = roots[node]
        shared = node.target is aten.as_strided.default and (root.op != "call_function" or root in returned)
        places = None if shared else _places(node)
        if places is not None:
            with gm.graph.inserting_before(node):
                made = _rewritten(node, *places, functools.partial(call_like, node, mode))
            seen = _views(node, made.meta["val"], mode)
            if seen is not None:
                for view, value in seen.items():
                    view.meta["val"] = value
                node.replace_all_uses_with(made)
                gm.graph.erase_node(node)
                count += 1
    log.debug("strided_places: %d of %d calls", count, len(found))
    return gm


def _places(node: Node) -> tuple[list[int], list[int], int] | None:
    """Sizes and strides of the places, and the first one, in a tensor seen in the order of memory; None where they
    aren't numbers, not all in it, or, for a write, one of them is met twice."""
    value: Any = tensor_meta(node.args[0])
    sizes, strides = list(argument(node, "size")), list(argument(node, "stride"))
    if value is None or not is_concrete((*value.shape, *value.stride(), value.storage_offset(), *sizes, *strides)):
        return None
    first = argument(node, "storage_offset")
    if first is not None and not is_concrete((first,)):
        return None
    begin = 0 if first is None else first - value.storage_offset()
    end = begin + sum((n - 1) * s for n, s in zip(sizes, strides))
    if 0 in sizes or value.numel() == 0 or not value.permute(memory_order(value)[0]).is_contiguous():
        return None
    wide = sorted((s, n) for n, s in zip(sizes, strides) if n > 1)
    beyond = [sum((n - 1) * s for s, n in wide[:k]) for k in range(len(wide))]
    if node.target not in _READING and any(s <= reached for (s, _), reached in zip(wide, beyond)):
        return None
    return (sizes, strides, begin) if begin >= 0 and end < value.numel() else None


def _rewritten(node: Node, sizes: list[int], strides: list[int], begin: int, call: Callable[..., Node]) -> Node:
    x: Any = node.args[0]
    value = x.meta["val"]
    order, inverse = memory_order(value)
    nested = _nested(sizes, strides)
    in_order = x if order == sorted(order) else call(aten.permute.default, x, order)
    flat = call(aten.view.default, in_order, [value.numel()])
    if nested is not None and node.target in _READING:
        whole = call(aten.slice.Tensor, flat, 0, begin, begin + prod(sizes))
        blocks = call(aten.view.default, whole, [sizes[d] for d in nested])
        seen = call(aten.permute.default, blocks, [nested.index(d) for d in range(len(sizes))])
        return _apart(node, seen, call)
    run = [(n, s) for n, s in zip(sizes, strides) if n > 1]
    piece = (0, begin, begin + (run[0][0] - 1) * run[0][1] + 1, run[0][1]) if len(run) == 1 and run[0][1] > 0 else None
    at = None if piece is not None else _each(sizes, strides, begin, value.device, call)
    if node.target in _READING:
        taken = call(aten.slice.Tensor, flat, *piece) if piece is not None else call(aten.index.Tensor, flat, [at])
        return _apart(node, call(aten.view.default, taken, sizes), call)
    written: Any = node.args[1]
    if piece is not None:
        changed = call(aten.slice_scatter.default, flat, call(aten.reshape.default, written, [run[0][0]]), *piece)
    else:
        changed = call(aten.index_put.default, flat, [at], written)
    back = call(aten.view.default, changed, list(in_order.meta["val"].shape))
    return back if in_order is x else call(aten.permute.default, back, inverse)


def _apart(node: Node, seen: Node, call: Callable[..., Node]) -> Node:
    """``seen`` in memory of its own where ``node`` is a copy."""
    if node.target is aten.as_strided.default:
        return seen
    return call(aten.clone.default, seen, memory_format=torch.contiguous_format)


def _views(node: Node, value: Any, mode: FakeTensorMode) -> dict[Node, Any] | None:
    """The values of all views of ``node`` if that has ``value``, with other strides; None where one can't be a view."""
    found: dict[Node, Any] = {}
    for view in (u for u in node.users if viewed_arg(u) is node):
        def of(argument: Node) -> Any:
            return value if argument is node else argument.meta["val"]

        try:
            with mode, torch.no_grad():
                found[view] = view.target(*map_arg(view.args, of), **map_arg(view.kwargs, of))  # type: ignore[operator]
        except (RuntimeError, ValueError):
            return None
        behind = _views(view, found[view], mode)
        if behind is None:
            return None
        found |= behind
    return found


def _nested(sizes: list[int], strides: list[int]) -> list[int] | None:
    """The dimensions from the widest to the nearest, if places along each begin where those of the next end."""
    order = sorted(range(len(sizes)), key=lambda d: (-strides[d], sizes[d] != 1))
    expected = 1
    for d in reversed(order):
        if sizes[d] > 1 and strides[d] != expected:
            return None
        expected *= sizes[d]
    return order


def _each(sizes: list[int], strides: list[int], begin: int, device: torch.device, call: Callable[..., Node]) -> Node:
    """The place of each element."""
    at = call(aten.full.default, [1] * len(sizes), begin, dtype=torch.int64, device=device)
    for d, (size, stride) in enumerate(zip(sizes, strides)):
        if size > 1:
            steps = call(aten.arange.start_step, 0, size, 1, dtype=torch.int64, device=device)
            along = call(aten.view.default, steps, [size if k == d else 1 for k in range(len(sizes))])
            at = call(aten.add.Tensor, at, call(aten.mul.Tensor, along, stride))
    return call(aten.expand.default, at, sizes)
