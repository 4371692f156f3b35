"""Softmax denominators of few long rows from those of the rows' parts, so that each part is read once.

``Σ exp(x − max x)`` needs the maximum of a whole row before the sum begins. With ``m_i`` and ``s_i`` the maximum and
the sum of part ``i``,

    m = max_i m_i,    Σ exp(x − m) = Σ_i s_i exp(m_i − m)

(Milakov and Gimelshein, 2018, who combine single elements so), and one program has maximum and sum of its part.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from rooffuse.passes.graph import call_like, packet_name, tensor_meta
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.split_reductions import Split, split_of
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten


def split_softmax_pass(programs: int) -> Pass:
    """The pass for a device that needs ``programs`` concurrent programs to be busy."""
    return Pass("split_softmax", functools.partial(split_softmax, programs=programs), split_softmax.__doc__ or "")


def split_softmax(gm: GraphModule, programs: int) -> GraphModule:
    """Rewrite sums of ``exp(x - amax(x))`` that one stage has too few programs for; comes before split_reductions.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value; what isn't a number, and rows without a finite maximum, come out as they did.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None:
        return gm
    count = 0
    for total in list(gm.graph.nodes):
        largest = _maximum(total)
        cut = split_of(total, programs) if largest is not None else None
        if largest is not None and cut is not None:
            _rewrite(gm, total, largest, cut, mode)
            count += 1
    log.debug("split_softmax: split %d for %d programs", count, programs)
    return gm


def _maximum(total: Node) -> Node | None:
    """The maximum that ``total`` sums the exponentials of the distances to, over the same dimensions, or None."""
    if packet_name(total.target) != "aten.sum" or not isinstance(total.args[0], Node) or total.kwargs:
        return None
    power = total.args[0]
    if packet_name(power.target) != "aten.exp" or packet_name(power.args[0].target) != "aten.sub":
        return None
    away = power.args[0]
    x, largest = away.args[:2]
    if away.kwargs or not isinstance(largest, Node) or packet_name(largest.target) != "aten.amax":
        return None
    value = tensor_meta(x)
    if value is None or value.dim() == 0 or largest.args[0] is not x or value.dtype not in (
            torch.float32, torch.float64):
        return None
    keeps = largest.args[2] if len(largest.args) > 2 else largest.kwargs.get("keepdim", False)
    return largest if keeps and _dims(largest, value.dim()) == _dims(total, value.dim()) else None


def _dims(node: Node, rank: int) -> tuple[int, ...]:
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim") or range(rank)
    return tuple(sorted({d % rank for d in ([dims] if isinstance(dims, int) else dims)}))


def _rewrite(gm: GraphModule, total: Node, largest: Node, cut: Split, mode: FakeTensorMode) -> None:
    graph, x = gm.graph, largest.args[0]
    value = x.meta["val"]  # type: ignore[union-attr]

    call = functools.partial(call_like, total, mode)

    inner = [d if d < cut.dim else d + 1 for d in cut.dims]
    with graph.inserting_before(largest):
        parts: Any = x
        if cut.padding:
            pads = [0, 0] * (value.dim() - 1 - cut.dim) + [0, cut.padding]
            parts = call(aten.constant_pad_nd.default, parts, pads, float("-inf"))
        parts = call(aten.reshape.default, parts,
                     [*value.shape[:cut.dim], cut.parts, cut.share, *value.shape[cut.dim + 1:]])
        highs = call(aten.amax.default, parts, inner, True)
        high = call(aten.amax.default, highs, [cut.dim], True)
        new_largest = call(aten.view.default, high, list(largest.meta["val"].shape))
        # A part without a finite maximum adds nothing, rather than what isn't a number.
        zero = call(aten.full.default, [], 0.0, dtype=value.dtype, device=value.device)
        floor = call(aten.where.self, call(aten.eq.Scalar, highs, float("-inf")), zero, highs)
        sums = call(aten.sum.dim_IntList, call(aten.exp.default, call(aten.sub.Tensor, parts, floor)), inner, True)
        shares = call(aten.mul.Tensor, sums, call(aten.exp.default, call(aten.sub.Tensor, highs, high)))
        whole = call(aten.sum.dim_IntList, shares, [cut.dim], True)
        new_total = call(aten.view.default, whole, list(total.meta["val"].shape))
    power: Any = total.args[0]
    for old, new in ((largest, new_largest), (total, new_total)):
        old.replace_all_uses_with(new)
    for node in (total, power, power.args[0], largest):
        if not node.users:
            graph.erase_node(node)
