"""Softmax denominators of few long rows from those of the rows' parts, so that each part is read once.

``Σ exp(x − max x)`` needs the maximum of a whole row before the sum begins. With ``m_i`` and ``s_i`` the maximum and
the sum of part ``i``,

    m = max_i m_i,    Σ exp(x − m) = Σ_i s_i exp(m_i − m)

(Milakov and Gimelshein, 2018, who combine single elements so), and one program has maximum and sum of its part. So it
is with the columns of a matrix whose rows have denominators of their own, as in a contrastive loss: one program has
both, for a strip of rows. The logarithm of a sum of exponentials takes zero for an infinite maximum, and so does each
of its parts.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

import torch
from rooffuse.passes.graph import call_like, packet_name, tensor_meta
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.row_limits import RowLimits, reduced_dims, whole_rows
from rooffuse.passes.split_reductions import rows_reduced, split_of
from rooffuse.passes.strip_cuts import Split, strips_of
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten


def split_softmax_pass(limits: RowLimits) -> Pass:
    """The pass for a device of these limits."""
    return Pass("split_softmax", functools.partial(split_softmax, limits=limits), split_softmax.__doc__ or "")


def split_softmax(gm: GraphModule, limits: RowLimits) -> GraphModule:
    """Rewrite sums of ``exp(x - amax(x))`` that one stage has too few programs for, and those down the columns of what
    is reduced along its rows, too; comes before split_reductions.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value; what isn't a number, and rows without a finite maximum, come out as they did.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None:
        return gm
    whole, (meeting, _), count = whole_rows(gm, limits), rows_reduced(gm), 0
    for total in list(gm.graph.nodes):
        found = _shifted(total)
        if found is None:
            continue
        found = _in_memory_order(found, mode)
        total = found.total
        cut = strips_of(total, limits, meeting) or split_of(total, limits, whole)
        if cut is not None:
            _rewrite(gm, found, cut, mode)
            count += 1
    log.debug("split_softmax: split %d for %d programs", count, limits.programs)
    return gm


@dataclass(frozen=True)
class _Shifted:
    """``total`` sums the exponentials of the distances of a tensor to its maximum ``largest`` over the same dimensions;
    ``finite`` if they are taken to zero where that is infinite."""

    total: Node
    largest: Node
    finite: bool


def _shifted(total: Node) -> _Shifted | None:
    if packet_name(total.target) != "aten.sum" or not isinstance(total.args[0], Node) or total.kwargs:
        return None
    power = total.args[0]
    if packet_name(power.target) != "aten.exp" or packet_name(power.args[0].target) != "aten.sub":
        return None
    away = power.args[0]
    x, shift = away.args[:2]
    largest = _finite(shift) or shift
    if away.kwargs or not isinstance(largest, Node) or packet_name(largest.target) != "aten.amax":
        return None
    value = tensor_meta(x)
    if value is None or value.dim() == 0 or largest.args[0] is not x or value.dtype not in (
            torch.float32, torch.float64):
        return None
    keeps = largest.args[2] if len(largest.args) > 2 else largest.kwargs.get("keepdim", False)
    if not keeps or reduced_dims(largest, value.dim()) != reduced_dims(total, value.dim()):
        return None
    return _Shifted(total, largest, largest is not shift)


def _finite(shift: Any) -> Node | None:
    """``m`` of ``where(isinf(m), 0, m)``, or None."""
    if not isinstance(shift, Node) or packet_name(shift.target) != "aten.where":
        return None
    infinite, zero, largest = shift.args
    is_zero = packet_name(zero.target) == "aten.full" and zero.args[1] == 0  # type: ignore[union-attr]
    tests = packet_name(infinite.target) == "aten.isinf" and infinite.args[0] is largest  # type: ignore[union-attr]
    return largest if is_zero and tests else None  # type: ignore[return-value]


def _in_memory_order(found: _Shifted, mode: FakeTensorMode) -> _Shifted:
    """The same sum of a tensor whose dimensions are in the order of memory, from which the other is taken: columns are
    columns however they are turned."""
    total, largest = found.total, found.largest
    x: Any = largest.args[0]
    value = x.meta["val"]
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    if order == list(range(value.dim())) or not value.permute(order).is_contiguous():
        return found
    call = functools.partial(call_like, total, mode)
    dims = [order.index(d) for d in reduced_dims(total, value.dim())]
    back = [order.index(d) for d in range(value.dim())]
    with total.graph.inserting_before(largest):
        turned = call(aten.permute.default, x, order)
        top = shift = call(aten.amax.default, turned, dims, True)
        if found.finite:
            zero = call(aten.full.default, [], 0.0, dtype=value.dtype, device=value.device)
            shift = call(aten.where.self, call(aten.isinf.default, top), zero, top)
        power = call(aten.exp.default, call(aten.sub.Tensor, turned, shift))
        sums = call(aten.sum.dim_IntList, power, dims, True)
        for old, new in ((largest, top), (total, sums)):
            result = call(aten.permute.default, new, back)
            if result.meta["val"].shape != old.meta["val"].shape:
                result = call(aten.view.default, result, list(old.meta["val"].shape))
            old.replace_all_uses_with(result)
    _erase_unused(total, largest)
    return _Shifted(sums, top, found.finite)


def _erase_unused(total: Node, largest: Node) -> None:
    power: Any = total.args[0]
    for node in (total, power, power.args[0], largest):
        if not node.users:
            node.graph.erase_node(node)


def _rewrite(gm: GraphModule, found: _Shifted, cut: Split, mode: FakeTensorMode) -> None:
    graph, total, largest = gm.graph, found.total, found.largest
    x = largest.args[0]
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
        zero = call(aten.full.default, [], 0.0, dtype=value.dtype, device=value.device)
        floor = highs
        if found.finite:
            floor = call(aten.where.self, call(aten.eq.Scalar, highs, float("inf")), zero, highs)
            high = call(aten.where.self, call(aten.isinf.default, high), zero, high)
        # A part without a finite maximum adds nothing, rather than what isn't a number.
        floor = call(aten.where.self, call(aten.eq.Scalar, floor, float("-inf")), zero, floor)
        sums = call(aten.sum.dim_IntList, call(aten.exp.default, call(aten.sub.Tensor, parts, floor)), inner, True)
        # An infinite sum stays so whatever it is multiplied by, and that of nothing but -inf is zero.
        shares = call(aten.mul.Tensor, sums, call(aten.exp.default, call(aten.sub.Tensor, highs, high)))
        whole = call(aten.sum.dim_IntList, shares, [cut.dim], True)
        new_total = call(aten.view.default, whole, list(total.meta["val"].shape))
    for old, new in ((largest, new_largest), (total, new_total)):
        old.replace_all_uses_with(new)
    _erase_unused(total, largest)
