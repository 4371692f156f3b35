"""Variances of long rows from the variances of their parts, so that no part is read from memory twice.

``mean((x - mean(x))²)`` needs the mean of a whole row before the second sum begins: a row that doesn't stay on chip is
read twice, but where a kernel has both from one sweep, and few long rows keep few programs busy. With ``m_i`` and
``M_i`` the mean and the sum of squared differences of part ``i`` of ``n`` elements,

    mean = mean_i(m_i),    Σ (x − mean)² = Σ_i (M_i + n (m_i − mean)²)

(Chan, Golub and LeVeque, 1979), which is as exact as two sweeps over the whole: each part stays on chip for its own.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from rooffuse.passes.graph import call_like, is_concrete, packet_name, tensor_meta
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.row_limits import LONG_ROW, RowLimits, Rows, innermost, whole_rows, width_in_memory
from rooffuse.passes.split_reductions import parts_along_rows
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten


#: Columns that a program takes side by side.
COLUMNS = 32


@dataclass(frozen=True)
class _Variance:
    """``total`` sums (or averages) the squares of ``x - mean`` over ``dims``, over which ``mean`` is the mean of x."""

    total: Node
    mean: Node
    x: Node
    dims: tuple[int, ...]


@dataclass(frozen=True)
class _Means:
    """``x`` in parts, their means, and the mean of those."""

    cut: Node
    means: Node
    whole: Node


def split_variance_pass(limits: RowLimits) -> Pass:
    """The pass for a device of these limits."""
    return Pass("split_variance", functools.partial(split_variance, limits=limits), split_variance.__doc__ or "")


def split_variance(gm: GraphModule, limits: RowLimits) -> GraphModule:
    """Rewrite variances of rows that don't stay on chip, or of too few long ones.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    found = [v for v in map(_variance, list(gm.graph.nodes)) if v is not None] if mode is not None else []
    whole = whole_rows(gm, limits) if found else frozenset()
    means: dict[Node, _Means] = {}
    count = 0
    for variance in found:
        cut = _cut(variance, limits, whole)
        if cut is not None and mode is not None:
            if variance.mean not in means:  # else another variance has the same mean
                means[variance.mean] = _split_mean(gm, variance, *cut, mode)
            _rewrite(gm, variance, *cut, means[variance.mean], mode)
            count += 1
    log.debug("split_variance: split %d of %d", count, len(found))
    return gm


def _variance(total: Node) -> _Variance | None:
    if packet_name(total.target) not in ("aten.sum", "aten.mean") or not isinstance(total.args[0], Node):
        return None
    square = total.args[0]
    name = packet_name(square.target)
    if name == "aten.mul" and square.args[0] is square.args[1]:
        difference: Any = square.args[0]
    elif name == "aten.pow" and square.args[1] == 2:
        difference = square.args[0]
    else:
        return None
    if not isinstance(difference, Node) or packet_name(difference.target) != "aten.sub" or difference.kwargs:
        return None
    x, mean = difference.args[:2]
    if not (isinstance(mean, Node) and packet_name(mean.target) == "aten.mean" and mean.args[0] is x):
        return None
    dims = _dims(total)
    if dims is None or dims != _dims(mean) or not _keeps(mean) or not isinstance(x, Node):
        return None
    return _Variance(total, mean, x, dims)


def _dims(node: Node) -> tuple[int, ...] | None:
    """The reduced dimensions of a sum or mean without a type of its own, or None."""
    value = tensor_meta(node.args[0])
    dims = node.args[1] if len(node.args) > 1 else None
    if value is None or not isinstance(dims, (list, tuple)) or not dims or node.kwargs.get("dtype") is not None:
        return None
    return tuple(sorted(d % value.dim() for d in dims))  # type: ignore[operator]


def _keeps(node: Node) -> bool:
    return bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))


def _cut(variance: _Variance, limits: RowLimits, whole: Rows) -> tuple[int, int] | None:
    """``(dimension, parts)``: the fewest parts that stay on chip and keep the device busy, or None. Where neighbours in
    memory belong to different rows, a program has several of them side by side."""
    value = tensor_meta(variance.x)
    if value is None or not is_concrete((*value.shape, *value.stride())) or value.numel() == 0:
        return None
    if value.dtype not in (torch.float32, torch.float64):
        return None
    row = prod(value.shape[d] for d in variance.dims)
    results, row_elements, programs = value.numel() // row, limits.elements or row, limits.programs
    shortest = LONG_ROW
    if innermost(value) not in variance.dims:
        results, row_elements = max(results // COLUMNS, 1), limits.elements // COLUMNS or row
        shortest //= COLUMNS
    else:
        row_elements = max(row_elements, limits.held(results) // width_in_memory(variance.x))
        if (results, row) in whole and row <= row_elements:
            return None
    if row <= row_elements and (results >= programs or row < shortest):
        return None
    wanted = -(-row // row_elements)
    if results < programs:
        along_rows = innermost(value) in variance.dims
        wanted = max(wanted, parts_along_rows(results, row, programs) if along_rows else -(-programs // results))
    # Neighbours in memory stay together where another dimension is long enough.
    dim = max(variance.dims, key=lambda d: (value.shape[d] >= wanted and d != innermost(value), value.shape[d]))
    size = value.shape[dim]
    parts = next((p for p in range(wanted, min(8 * wanted, size) + 1) if size % p == 0), None)
    return None if parts is None or parts < 2 else (dim, parts)


def _split_mean(gm: GraphModule, variance: _Variance, dim: int, parts: int, mode: FakeTensorMode) -> _Means:
    x, mean = variance.x, variance.mean
    value = x.meta["val"]

    call = functools.partial(call_like, variance.total, mode)

    shape = [*value.shape[:dim], parts, value.shape[dim] // parts, *value.shape[dim + 1:]]
    with gm.graph.inserting_before(mean):
        cut = call(aten.reshape.default, x, shape)
        means = call(aten.mean.dim, cut, _inner(variance, dim), True)
        whole = call(aten.mean.dim, means, [dim], True)
        new_mean = call(aten.view.default, whole, list(mean.meta["val"].shape))
    mean.replace_all_uses_with(new_mean)
    gm.graph.erase_node(mean)
    return _Means(cut, means, whole)


def _inner(variance: _Variance, dim: int) -> list[int]:
    """The reduced dimensions of a part, once ``dim`` is two."""
    return [d if d < dim else d + 1 for d in variance.dims]


def _rewrite(gm: GraphModule, variance: _Variance, dim: int, parts: int, split: _Means, mode: FakeTensorMode) -> None:
    graph, total = gm.graph, variance.total
    value = variance.x.meta["val"]
    row = prod(value.shape[d] for d in variance.dims)

    call = functools.partial(call_like, total, mode)

    with graph.inserting_before(total):
        away = call(aten.sub.Tensor, split.cut, split.means)
        squares = call(aten.sum.dim_IntList, call(aten.mul.Tensor, away, away), _inner(variance, dim), True)
        offset = call(aten.sub.Tensor, split.means, split.whole)
        between = call(aten.mul.Tensor, call(aten.mul.Tensor, offset, offset), row // parts)
        result = call(aten.sum.dim_IntList, call(aten.add.Tensor, squares, between), [dim], True)
        if packet_name(total.target) == "aten.mean":
            result = call(aten.div.Tensor, result, row)
        result = call(aten.view.default, result, list(total.meta["val"].shape))
    square: Any = total.args[0]
    total.replace_all_uses_with(result)
    for node in (total, square, square.args[0]):
        if not node.users:
            graph.erase_node(node)
