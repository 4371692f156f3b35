"""Removal of casts, copies, concatenations and views that change nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from rooffuse.passes.graph import (
    Forwarding,
    argument,
    aten,
    is_concrete,
    is_impure,
    packet_name,
    permutation,
    same_layout,
    same_sizes,
    same_strides,
    size_key,
    tensor_meta,
    viewed_arg,
)
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

_COPIES = frozenset({"aten.clone", "aten._to_copy", "aten.lift_fresh_copy"})
_RESHAPES = frozenset({aten.view.default, aten._unsafe_view.default, aten.reshape.default})
#: Views that may hold other values than their source although sizes, strides and offset agree.
_OTHER_VALUES = frozenset({"aten.as_strided", "aten._conj", "aten._neg_view", "aten.resolve_conj", "aten.resolve_neg"})
_PART_WRITES = frozenset({aten.slice_scatter.default, aten.select_scatter.default, aten.diagonal_scatter.default})
_PERMUTES = frozenset({aten.permute.default, aten.transpose.int, aten.t.default})


def redundant(gm: GraphModule) -> GraphModule:
    """Remove casts, copies and views that change nothing, and merge chains of reshapes, permutes and casts.

    Requires: ``meta["val"]`` with true strides. Ensures: every value that the caller receives keeps its sizes,
    dtype and strides; a copy stays where without it a result would share storage with an input or another result,
    or where the graph mutates either side.
    """
    forwarding = Forwarding(gm.graph)
    removed = 0
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or tensor_meta(node) is None or is_impure(node):
            continue
        for rule in _MERGES:
            rule(node, forwarding)
        source = _same_value(node)
        if source is not None and forwarding.replace(node, source):
            removed += 1
    log.debug("redundant: removed %d nodes", removed)
    return gm


def _same_value(node: Node) -> Node | None:
    """An earlier node that holds exactly what ``node`` holds, if one is known."""
    value = tensor_meta(node)
    if value is None:
        return None
    if packet_name(node.target) in _COPIES:
        source = node.args[0]
        origin = tensor_meta(source)
        # A copy of what is negated lazily is where it is negated.
        same = origin is not None and same_layout(origin, value) and origin.is_neg() == value.is_neg()
        return source if same else None
    if node.target is aten.cat.default:
        return _same_cat(node, value)
    if node.target is aten.slice_scatter.default:
        written = argument(node, "src")
        whole, part = tensor_meta(node.args[0]), tensor_meta(written)
        covers = whole is not None and part is not None and same_layout(whole, part)
        return written if covers and same_layout(part, value) and argument(node, "step") == 1 else None
    return _same_view(node, value)


def _same_view(node: Node, value: torch.Tensor) -> Node | None:
    """The first node up the chain of views with the same sizes, strides and offset into the storage."""
    found = None
    source = viewed_arg(node)
    while source is not None and packet_name(node.target) not in _OTHER_VALUES:
        origin = tensor_meta(source)
        if origin is None:
            break
        if same_layout(origin, value) and size_key(origin.storage_offset()) == size_key(value.storage_offset()):
            found = source
        node, source = source, viewed_arg(source)
    return found


# ---- chains: each rule lets a node read the source of its source, its value being the same --------------------------


def _merge_reshapes(node: Node, forwarding: Forwarding) -> None:
    """view(view(x, a), b) -> view(x, b)"""
    source = node.args[0] if node.target in _RESHAPES else None
    if not isinstance(source, Node) or source.target not in _RESHAPES:
        return
    origin = tensor_meta(source.args[0])
    if origin is not None and is_concrete(origin.shape) and origin.is_contiguous():
        node.update_arg(0, source.args[0])
        node.target = aten.view.default


def _merge_permutes(node: Node, forwarding: Forwarding) -> None:
    """permute(permute(x, p), q) -> permute(x, [p[i] for i in q])"""
    source = node.args[0] if node.target in _PERMUTES else None
    if not isinstance(source, Node) or source.target not in _PERMUTES:
        return
    inner = permutation(source)
    node.args = (source.args[0], [inner[dim] for dim in permutation(node)])
    node.kwargs = {}
    node.target = aten.permute.default


# Every value of the first type is one of the second.
_EXACT_IN = {
    torch.bfloat16: {torch.float32, torch.float64},
    torch.float16: {torch.float32, torch.float64},
    torch.float32: {torch.float64},
    torch.int8: {torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64},
    torch.uint8: {torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64},
    torch.int16: {torch.int32, torch.int64, torch.float32, torch.float64},
    torch.int32: {torch.int64, torch.float64},
    torch.bool: {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64},
    torch.float8_e4m3fn: {torch.bfloat16, torch.float16, torch.float32, torch.float64},
    torch.float8_e5m2: {torch.bfloat16, torch.float16, torch.float32, torch.float64},
}


def _merge_casts(node: Node, forwarding: Forwarding) -> None:
    """cast(cast(x, wide), narrow) -> cast(x, narrow), where ``wide`` holds every value of x's type"""
    source = node.args[0] if node.target is aten._to_copy.default else None
    if not isinstance(source, Node) or source.target is not aten._to_copy.default:
        return
    if forwarding.is_mutated(source.args[0]):
        return  # the first cast may have read another value than the second would
    origin, middle, value = tensor_meta(source.args[0]), tensor_meta(source), tensor_meta(node)
    if origin is None or middle is None or value is None:
        return
    exact = middle.dtype == origin.dtype or middle.dtype in _EXACT_IN.get(origin.dtype, ())
    if not exact or set(node.kwargs) - {"dtype"} or origin.device != value.device:
        return
    if same_sizes(origin.shape, value.shape) and same_strides(origin, value) and _is_dense(origin):
        node.update_arg(0, source.args[0])


def _is_dense(value: torch.Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, so that a copy keeps the strides."""
    if not is_concrete(value.shape) or not is_concrete(value.stride()):
        return False
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(value.stride(), value.shape) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _drop_empty_pieces(node: Node, forwarding: Forwarding) -> None:
    """cat([x, nothing]) -> cat([x]), where the type of the result stays: a cache before its first step is nothing"""
    pieces = node.args[0] if node.target is aten.cat.default else ()
    values = [tensor_meta(p) for p in pieces] if isinstance(pieces, (list, tuple)) else []
    kept = [p for p, v in zip(pieces, values) if v is None or not is_concrete(v.shape) or v.numel() > 0]  # type: ignore[arg-type]
    if not kept or len(kept) == len(values) or any(v is None for v in values):
        return
    if all(v.dtype == node.meta["val"].dtype for v in map(tensor_meta, kept) if v is not None):
        node.update_arg(0, kept)


def _repeat_piece(node: Node, forwarding: Forwarding) -> None:
    """cat([x, x]) -> x.repeat(2): one index into x, where two pieces would each be computed"""
    pieces = node.args[0] if node.target is aten.cat.default else ()
    value = tensor_meta(node)
    if not isinstance(pieces, (list, tuple)) or len(pieces) < 2 or len(set(pieces)) > 1 or value is None or (
            not is_concrete((*value.shape, *value.stride()))):
        return
    origin = tensor_meta(pieces[0])
    if origin is None or origin.dim() != value.dim() or origin.dtype != value.dtype or not value.is_contiguous():
        return
    times = [1] * value.dim()
    times[argument(node, "dim") % value.dim()] = len(pieces)
    node.target, node.args, node.kwargs = aten.repeat.default, (pieces[0], times), {}


def _write_source(node: Node, forwarding: Forwarding) -> None:
    """select_scatter(x, copy(old, new), ...) -> select_scatter(x, new, ...) where ``copy`` neither casts nor expands"""
    source = node.args[1] if node.target in _PART_WRITES else None
    if not isinstance(source, Node) or source.target is not aten.copy.default:
        return
    made, origin = tensor_meta(source), tensor_meta(source.args[1])
    if made is not None and origin is not None and made.dtype == origin.dtype and made.device == origin.device and (
            same_sizes(made.shape, origin.shape)):
        node.update_arg(1, source.args[1])


def _same_cat(node: Node, value: torch.Tensor) -> Node | None:
    """The only piece of a concatenation, if it has the layout of the result."""
    pieces = node.args[0]
    only = pieces[0] if isinstance(pieces, (list, tuple)) and len(pieces) == 1 else None
    origin = tensor_meta(only)
    return only if isinstance(only, Node) and origin is not None and same_layout(origin, value) else None


_MERGES: tuple[Callable[[Node, Forwarding], None], ...] = (
    _merge_reshapes,
    _merge_permutes,
    _merge_casts,
    _drop_empty_pieces,
    _repeat_piece,
    _write_source,
)
