"""Tensors that are written part by part until nothing of what they were is left: concatenations.

A loop that fills its result step by step is traced as a chain of writes, each of which copies the whole tensor. Where
they are all along one dimension, and cover it, what the chain began with is of no account.
"""

from __future__ import annotations

from typing import Any

from rooffuse.passes.dce import dce
from rooffuse.passes.graph import argument, aten, call_like, is_concrete, same_layout, tensor_meta
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node

_WRITES = frozenset({aten.slice_scatter.default, aten.select_scatter.default})


def whole_writes(gm: GraphModule) -> GraphModule:
    """Chains of ``slice_scatter`` and ``select_scatter`` that write all of a tensor become ``cat``.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None or not any(n.target in _WRITES for n in gm.graph.nodes):
        return gm
    dce(gm)  # what was read to be written over is read no more, and a chain has no other readers
    for node in list(gm.graph.nodes):
        if node.target in _WRITES and not any(u.target in _WRITES and u.args[0] is node for u in node.users):
            _join(node, mode)
    return dce(gm)


def _join(last: Node, mode: Any) -> None:
    """Replace the chain that ends in ``last`` if it writes everything."""
    value = tensor_meta(last)
    if value is None or not is_concrete((*value.shape, *value.stride())) or not value.is_contiguous():
        return
    dim = argument(last, "dim") % value.dim()
    writes: dict[range, Node] = {}
    left, node = value.shape[dim], last
    while left and node.target in _WRITES and (node is last or len(node.users) == 1):
        where, source = _written(node, dim), tensor_meta(node.args[1])
        if where is None or source is None or source.dtype != value.dtype or any(
                r.start < where.stop and where.start < r.stop for r in writes):
            return
        writes[where] = node
        left -= len(where)
        node = node.args[0]
    if left or len(writes) < 2:
        return
    with last.graph.inserting_before(last):
        parts = [w.args[1] if w.target is aten.slice_scatter.default else
                 call_like(w, mode, aten.unsqueeze.default, w.args[1], dim)
                 for _, w in sorted(writes.items(), key=lambda item: item[0].start)]
        joined = call_like(last, mode, aten.cat.default, parts, dim)
    if same_layout(joined.meta["val"], value):
        last.replace_all_uses_with(joined)


def _written(write: Node, dim: int) -> range | None:
    """Where along ``dim`` the call writes; None if it writes along another one or leaves gaps."""
    value = write.meta["val"]
    size = value.shape[dim]
    if argument(write, "dim") % value.dim() != dim:
        return None
    if write.target is aten.select_scatter.default:
        index = argument(write, "index")
        return range(index % size, index % size + 1) if isinstance(index, int) else None
    start, end, step = (argument(write, name) for name in ("start", "end", "step"))
    if step != 1 or not all(k is None or isinstance(k, int) for k in (start, end)):
        return None
    return range(*slice(start, end).indices(size)) or None
