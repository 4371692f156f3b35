"""Cumulative sums of few long rows in parts, which as many programs go along side by side.

With ``t_i`` the sum of part ``i``, an element's sum is that inside of its part and what the parts before come to:

    cumsum(x)[i, k] = cumsum(x[i])[k] + Σ_{j < i} t_j

(reduce, then scan: Blelloch, 1990). What is scanned is read, or computed, once more than by a scan that waits for its
neighbours, and nothing else has to be in memory: a library's scan reads and writes all of its elements.
"""

from __future__ import annotations

import functools
import logging
from math import prod
from typing import Any

import torch
from rooffuse.passes.graph import argument, call_like, is_concrete, packet_name, tensor_meta
from rooffuse.passes.op_sets import POINTWISE
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.row_limits import LONG_COLUMN, LONG_ROW, RowLimits
from rooffuse.passes.split_reductions import ROW_SHARE
from rooffuse.passes.strip_cuts import RUNNING
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten

#: Fewest elements of a part of a column.
SHORTEST_PART = 32
#: Columns that one program goes down side by side at the least.
COLUMNS = 16


def split_scans_pass(limits: RowLimits) -> Pass:
    """The pass for a device of these limits."""
    return Pass("split_scans", functools.partial(split_scans, limits=limits), split_scans.__doc__ or "")


def split_scans(gm: GraphModule, limits: RowLimits) -> GraphModule:
    """Rewrite cumulative sums down few columns, and along few rows that are computed or read by kernels.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value; sums accumulate in float32 between the parts where the input is narrower.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    count = 0
    for node in list(gm.graph.nodes) if mode is not None else ():
        if packet_name(node.target) == "aten.cumsum":
            parts = _parts(node, limits)
            if parts > 1:
                _rewrite(gm, node, parts, mode)
                count += 1
    log.debug("split_scans: split %d for %d programs", count, limits.programs)
    return gm


def _parts(node: Node, limits: RowLimits) -> int:
    """Into how many parts of equal length the rows of a scan are cut: 1 for none."""
    x = tensor_meta(node.args[0])
    if x is None or x.dim() == 0 or x.is_complex() or not is_concrete((*x.shape, *x.stride())) or not x.numel():
        return 1
    dim = argument(node, "dim") % x.dim()
    size = x.shape[dim]
    others = x.numel() // size
    along_rows = prod(x.shape[dim + 1:]) == 1
    running, shortest, longest = (others, ROW_SHARE, LONG_ROW) if along_rows else (
        max(others // COLUMNS, 1), SHORTEST_PART, LONG_COLUMN)
    programs = limits.programs
    enough = 4 * running >= programs or (along_rows and limits.whole(running, size * x.dtype.itemsize, sweeps=1))
    if enough or size <= longest or (along_rows and not _is_computed(node)):
        return 1
    # Rows that are reduced as well go through a program whole, with all of their columns: one for each processor.
    wanted = min(-(-programs // running) if along_rows else programs // RUNNING, size // shortest)
    return max(p for p in range(1, wanted + 1) if size % p == 0)


def _is_computed(node: Node) -> bool:
    """Whether what is scanned, or what comes of it, would have to be stored for a library's scan alone."""
    return any(packet_name(n.target) in POINTWISE for n in (node.args[0], *node.users) if isinstance(n, Node))


def _rewrite(gm: GraphModule, node: Node, parts: int, mode: FakeTensorMode) -> None:
    x, result = node.args[0], node.meta["val"]
    shape = list(result.shape)
    dim = argument(node, "dim") % len(shape)
    wide = torch.float32 if result.dtype in (torch.float16, torch.bfloat16) else result.dtype
    call = functools.partial(call_like, node, mode)
    with gm.graph.inserting_before(node):
        cut = call(aten.reshape.default, x, [*shape[:dim], parts, shape[dim] // parts, *shape[dim + 1:]])
        totals = call(aten.sum.dim_IntList, cut, [dim + 1], dtype=wide)
        first = [0, 0] * (len(shape) - 1 - dim) + [1, 0]
        before = call(aten.constant_pad_nd.default, call(aten.slice.Tensor, totals, dim, 0, parts - 1), first, 0)
        before = call(aten.unsqueeze.default, call(aten.cumsum.default, before, dim, dtype=wide), dim + 1)
        inside: Any = call(aten.cumsum.default, cut, dim + 1, dtype=wide)
        made = call(aten.view.default, call(aten.add.Tensor, inside, before), shape)
        if wide != result.dtype:
            made = call(aten._to_copy.default, made, dtype=result.dtype)
        if made.meta["val"].stride() != result.stride():
            order = sorted(range(result.dim()), key=result.stride, reverse=True)
            back = [order.index(d) for d in range(result.dim())]
            made = call(aten.permute.default, call(aten.clone.default, call(aten.permute.default, made, order),
                                                   memory_format=torch.contiguous_format), back)
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
