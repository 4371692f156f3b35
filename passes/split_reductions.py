"""Two-stage reductions where one stage has too few results to keep a device busy.

``sum(x)`` has one result, so one program would read all of ``x``. Rewritten as ``sum(sum(view(x, [S, n/S]), -1))`` its
first stage has ``S`` results, which ``S`` programs compute side by side, in an order that is always the same.

A reduction of everything over rows that are reduced by themselves, too (a loss after a softmax), goes along the rows
first, so that one program has a row for both.

A reduction down the columns of what is also reduced along its rows is cut into as many strips of rows as programs run
at once: each can then go through its strip and have both at once, which reads the input once.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from rooffuse.passes.graph import argument, call_like, is_concrete, packet_name, tensor_meta
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.row_limits import (
    LONG_COLUMN,
    LONG_ROW,
    RowLimits,
    Rows,
    innermost,
    padded,
    reduced_dims,
    whole_rows,
)
from rooffuse.passes.scan_totals import TOTALS
from rooffuse.passes.strip_cuts import (
    Split,
    dims_of_rows_in,
    in_two_sweeps,
    results_together,
    rows_together,
    short_rows,
    strips_of,
)
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten

#: Fewest elements that one program reduces after the split, along rows and down columns.
ROW_SHARE, COLUMN_SHARE = 2048, 64
#: Columns that one program takes side by side.
STRIP = 64
#: Part of the programs that keep a device busy with which it is busy enough not to cut: parts are a launch more.
BUSY = 0.65
#: Longest rows, with room for powers of two, of which segments are reduced on the way: a few values of each element are
#: kept in registers.
SEGMENTED_ROW = 8192
_OPS = {"aten.sum": aten.sum.dim_IntList, "aten.mean": aten.sum.dim_IntList, "aten.amax": aten.amax.default,
        "aten.amin": aten.amin.default}


@dataclass(frozen=True)
class _RowsFirst:
    """Reduce the last ``along`` of the reduced ``dims`` before the others."""

    dims: tuple[int, ...]
    along: int


def split_reductions_pass(limits: RowLimits) -> Pass:
    """The pass for a device of these limits."""
    return Pass("split_reductions", functools.partial(split_reductions, limits=limits), split_reductions.__doc__ or "")


def split_reductions(gm: GraphModule, limits: RowLimits) -> GraphModule:
    """Rewrite long reductions with few results as two reductions, but for rows that are better gone through whole.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value; sums accumulate in float32 between the stages where the input is narrower.
    """
    meeting, wide = rows_reduced(gm)
    whole, short, dims_of_rows = whole_rows(gm, limits), short_rows(gm), dims_of_rows_in(gm)
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None:
        return gm
    count = 0
    work = list(gm.graph.nodes)
    for node in work:
        name = packet_name(node.target) if node.op == "call_function" else ""
        if name not in _OPS or _scanned(node):
            continue
        node = _in_segments(node, limits, meeting, mode) or node
        plan = (strips_of(node, limits, meeting) or _rows_first(node, meeting, wide) or rows_together(
            node, limits, short) or results_together(node, limits, dims_of_rows) or split_of(node, limits, whole))
        if plan is not None:
            stages = _rewrite(gm, node, name, plan, mode)
            count += 1
            work += stages if isinstance(plan, _RowsFirst) else ()
    log.debug("split_reductions: split %d for %d programs", count, limits.programs)
    return gm


def _scanned(node: Node) -> bool:
    """Whether what is reduced is scanned along the same dimension: by as few programs, whose total it is."""
    source = tensor_meta(node.args[0])
    scans = [u for u in node.args[0].users if packet_name(u.target) in TOTALS]  # type: ignore[union-attr]
    return source is not None and source.dim() > 0 and any(
        reduced_dims(node, source.dim()) == (argument(u, "dim") % source.dim(),) for u in scans)


def rows_reduced(gm: GraphModule) -> tuple[Rows, Rows]:
    """Numbers and sizes of the rows that the graph reduces: those of one dimension, and those of several."""
    rows, wide = set[tuple[int, int]](), set[tuple[int, int]]()
    for node in gm.graph.nodes:
        if node.op == "call_function" and packet_name(node.target) in _OPS:
            source = tensor_meta(node.args[0])
            if source is None or source.dim() < 2 or not is_concrete((*source.shape, *source.stride())):
                continue
            dims = reduced_dims(node, source.dim())
            along = _trailing(dims, source.dim())
            if along != len(dims) or not 0 < along < source.dim() or source.stride(-1) != 1:
                continue
            if along == 1:
                rows.add((prod(source.shape[:-1]), source.shape[-1]))
            elif source.is_contiguous():
                wide.add((prod(source.shape[:-along]), prod(source.shape[-along:])))
    return frozenset(rows), frozenset(wide)


def _in_segments(node: Node, limits: RowLimits, meeting: Rows, mode: FakeTensorMode) -> Node | None:
    """A reduction down columns of whose rows segments are reduced, as groups of channels are normalised, by segment,
    put in the place of ``node``; None where it couldn't be cut into strips then."""
    source, result = tensor_meta(node.args[0]), tensor_meta(node)
    if source is None or result is None or source.dim() < 2 or not is_concrete((*source.shape, *source.stride())):
        return None
    dims, rows, columns = reduced_dims(node, source.dim()), prod(source.shape[:-1]), source.shape[-1]
    sizes = [n for count, n in meeting if 1 < n < columns and columns % n == 0 and count * n == rows * columns]
    if not sizes or source.dim() - 1 in dims or (rows, columns) in meeting or source.stride(-1) != 1:
        return None
    call, size = functools.partial(call_like, node, mode), max(sizes)
    with node.graph.inserting_before(node):
        cut = call(aten.view.default, node.args[0], [*source.shape[:-1], columns // size, size])
        made = call(node.target, cut, list(dims), *node.args[2:], **node.kwargs)
        whole = call(aten.reshape.default, made, list(result.shape))
    if strips_of(made, limits, meeting) is None or whole.meta["val"].stride() != result.stride():
        for new in (whole, made, cut):
            node.graph.erase_node(new)
        return None
    node.replace_all_uses_with(whole)
    node.graph.erase_node(node)
    return made


def _rows_first(node: Node, meeting: Rows, wide: Rows) -> _RowsFirst | None:
    """The order for a reduction of rows, and of what is left of each, where the graph reduces such rows or such ones of
    which these are segments, as channels are of a normalised group."""
    source = tensor_meta(node.args[0])
    if source is None or source.dim() < 2 or not is_concrete((*source.shape, *source.stride())) or source.is_complex():
        return None
    if source.numel() == 0:
        return None
    dims, last = reduced_dims(node, source.dim()), source.dim() - 1
    if last not in dims or prod(source.shape[d] for d in dims[:-1]) == 1 or source.stride(-1) != 1:
        return None
    if len(dims) < source.dim() and in_two_sweeps(node):  # as each channel's variance: one sweep has both by itself
        return None
    if (prod(source.shape[:-1]), source.shape[-1]) in meeting:
        return _RowsFirst(dims, 1)
    for along in range(2, len(dims)):
        row = prod(source.shape[-along:])
        if dims[-along] == source.dim() - along and source.is_contiguous() and (source.numel() // row, row) in wide:
            return _RowsFirst(dims, along)
    along = _trailing(dims, source.dim())
    segment = prod(source.shape[-along:])
    whole = any(rows * row == source.numel() and row % segment == 0 and row > segment
                and padded(row // segment) * padded(segment) <= SEGMENTED_ROW for rows, row in meeting | wide)
    return _RowsFirst(dims, along) if whole and along < len(dims) and source.is_contiguous() else None


def _trailing(dims: tuple[int, ...], rank: int) -> int:
    """How many of the last dimensions are all in ``dims``."""
    return next((n for n in range(rank) if rank - 1 - n not in dims), rank)


def split_of(node: Node, limits: RowLimits, whole: Rows) -> Split | None:
    """How a long reduction with too few results to keep a device busy is cut; None for others, and for ``whole`` rows.

    Neighbours in memory stay together where another dimension is long enough: shares of a few of them would take a part
    of every cache line each.
    """
    source, result = tensor_meta(node.args[0]), tensor_meta(node)
    if source is None or result is None or not is_concrete((*source.shape, *source.stride())) or source.numel() == 0:
        return None
    dims = reduced_dims(node, source.dim())
    if not dims or source.is_complex():
        return None
    along_rows = innermost(source) in dims
    reduced = prod(source.shape[d] for d in dims)
    if along_rows and (result.numel(), reduced) in whole:
        return None
    running, programs = result.numel() if along_rows else max(result.numel() // STRIP, 1), limits.programs
    if running >= BUSY * programs or reduced < (LONG_ROW if along_rows else LONG_COLUMN):
        return None
    wanted = (parts_along_rows(running, reduced, programs) if along_rows else
              min(padded(-(-programs // running)), reduced // COLUMN_SHARE))
    dim = max(dims, key=lambda d: (source.shape[d] >= wanted and d != innermost(source), source.shape[d]))
    size = source.shape[dim]
    parts = min(wanted, size)
    if parts < 2:
        return None
    share = -(-size // parts)
    parts = -(-size // share)
    return Split(dims, dim, parts, share, parts * share - size)


def parts_along_rows(rows: int, length: int, programs: int) -> int:
    """Into how many parts each of a few rows is cut, so that ``programs`` have one: the same for all that is reduced of
    such rows."""
    return min(padded(-(-programs // rows)), length // ROW_SHARE)


def _rewrite(gm: GraphModule, node: Node, name: str, plan: Split | _RowsFirst, mode: FakeTensorMode
             ) -> tuple[Node, Node]:
    """Replace ``node`` by two reductions, which are returned."""
    graph, result = gm.graph, node.meta["val"]
    source = node.args[0]
    value = source.meta["val"]  # type: ignore[union-attr]

    call = functools.partial(call_like, node, mode)

    with graph.inserting_before(node):
        current: Any = source
        if isinstance(plan, _RowsFirst):
            first, second = list(plan.dims[-plan.along:]), list(plan.dims[:-plan.along])
        else:
            if plan.padding:
                pads = [0, 0] * (value.dim() - 1 - plan.dim) + [0, plan.padding]
                current = call(aten.constant_pad_nd.default, current, pads, neutral_element(name, value.dtype))
            beyond = plan.dims[-1] + 1 if plan.together else plan.dim + 1
            shape = [*value.shape[:plan.dim], plan.parts, plan.share, *value.shape[beyond:]]
            current = call(aten.reshape.default, current, shape)
            first = [plan.dim + 1] if plan.together else [d if d < plan.dim else d + 1 for d in plan.dims]
            earlier = [d for d in plan.dims if d < plan.dim]
            second = [*earlier, plan.dim] if plan.together else [plan.dim - len(earlier)]
        if name in ("aten.sum", "aten.mean"):
            wide = accumulation_type(value.dtype, result.dtype)
            stage = call(aten.sum.dim_IntList, current, first, dtype=wide)
            last = current = call(aten.sum.dim_IntList, stage, second)
            if name == "aten.mean":
                current = call(aten.div.Tensor, current, prod(value.shape[d] for d in plan.dims))
            if current.meta["val"].dtype != result.dtype:
                current = call(aten._to_copy.default, current, dtype=result.dtype)
        else:
            stage = call(_OPS[name], current, first)
            last = current = call(_OPS[name], stage, second)
        if tuple(current.meta["val"].shape) != tuple(result.shape):
            current = call(aten.view.default, current, list(result.shape))
    node.replace_all_uses_with(current)
    graph.erase_node(node)
    return stage, last


def accumulation_type(source: torch.dtype, result: torch.dtype) -> torch.dtype:
    if result in (torch.float16, torch.bfloat16) or source in (torch.float16, torch.bfloat16):
        return torch.float32 if result != torch.float64 else result
    return result


def neutral_element(name: str, dtype: torch.dtype) -> Any:
    if name in ("aten.sum", "aten.mean"):
        return 0
    largest = name == "aten.amin"
    if dtype.is_floating_point:
        return float("inf") if largest else float("-inf")
    if dtype == torch.bool:
        return largest
    limits = torch.iinfo(dtype)
    return limits.max if largest else limits.min


