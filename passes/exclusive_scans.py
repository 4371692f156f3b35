"""Scans that begin with the neutral element: what lies before each element, as offsets of packed sequences have it.

Programs write them as a scan behind which something is put in front:

    pad(cumsum(x), (1, 0)),  cat([ones, cumprod(x)[:-1]])

Put in front of what is scanned, the neutral element gives the same rows, and the scan can share the nest of its
readers, where otherwise each would read it at another place than its own.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from typing import Any

from rooffuse.passes.graph import argument, aten, call_like, is_concrete, packet_name, tensor_meta
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

#: Scans and what they begin with.
_NEUTRAL = {"aten.cumsum": 0.0, "aten.cumprod": 1.0, "rooffuse.running_max": -math.inf,
            "rooffuse.running_min": math.inf, "aten.logcumsumexp": -math.inf}
#: What a constant goes through and keeps its number.
_SAME_NUMBERS = frozenset({aten.expand.default, aten.view.default, aten._to_copy.default, aten.unsqueeze.default})
#: Longest rows that are scanned once more where others read the scan as it was.
_SCANNED_TWICE = 32768


@dataclass(frozen=True)
class _Front:
    """``scan`` along ``dim``, all of it or the first ``kept`` elements, and ``lead`` neutral elements before it."""

    scan: Node
    dim: int
    kept: int
    lead: int


def exclusive_scans(gm: GraphModule) -> GraphModule:
    """Put the neutral elements before a scan's results before what is scanned.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    moved = 0
    for node in list(gm.graph.nodes) if mode is not None else ():
        front = _front(node) if node.op == "call_function" else None
        if front is None:
            continue
        source: Any = front.scan.args[0]
        shape = source.meta["val"].shape
        call = functools.partial(call_like, node, mode)
        with gm.graph.inserting_before(node):
            if front.kept < shape[front.dim]:
                source = call(aten.slice.Tensor, source, front.dim, 0, front.kept)
            pads = [0, 0] * (len(shape) - 1 - front.dim) + [front.lead, 0]
            source = call(aten.constant_pad_nd.default, source, pads, _NEUTRAL[packet_name(front.scan.target)])
            made = call(front.scan.target, source, front.dim, **front.scan.kwargs)
        if made.meta["val"].stride() != node.meta["val"].stride():
            gm.graph.erase_node(made)
            continue
        node.replace_all_uses_with(made)
        moved += 1
    log.debug("exclusive_scans: moved %d", moved)
    return gm


def _front(node: Node) -> _Front | None:
    """What ``node`` puts before which scan, if it is the scan's neutral element."""
    value = tensor_meta(node)
    if value is None or not is_concrete((*value.shape, *value.stride())):
        return None
    found = _padded(node) if packet_name(node.target) == "aten.constant_pad_nd" else (
        _joined(node) if packet_name(node.target) == "aten.cat" else None)
    if found is None:
        return None
    tail, dim, lead, fill = found
    scan, kept = tail, tail.meta["val"].shape[dim]
    if packet_name(tail.target) == "aten.slice":
        if (argument(tail, "dim") % value.dim(), argument(tail, "start") or 0, argument(tail, "step")) != (dim, 0, 1):
            return None
        scan = tail.args[0]  # type: ignore[assignment]
    if packet_name(scan.target) not in _NEUTRAL or (not value.dtype.is_floating_point and abs(fill) == math.inf):
        return None
    source = tensor_meta(scan.args[0])
    alone = all(user in (tail, node) for user in scan.users) and (tail is scan or len(tail.users) == 1)
    if source is None or argument(scan, "dim") % value.dim() != dim or (
            not alone and source.shape[dim] > _SCANNED_TWICE):
        return None
    return _Front(scan, dim, kept, lead) if fill == _NEUTRAL[packet_name(scan.target)] else None


def _padded(node: Node) -> tuple[Node, int, int, float] | None:
    """``(padded, dim, how many, with what)`` of a pad at the front of one dimension."""
    tail, pads = argument(node, "self"), list(argument(node, "pad"))
    leads = {node.meta["val"].dim() - 1 - k // 2: n for k, n in enumerate(pads) if n}
    if len(leads) != 1 or any(pads[1::2]) or min(leads.values()) < 0:
        return None
    (dim, lead), = leads.items()
    return tail, dim, lead, float(argument(node, "value") or 0)


def _joined(node: Node) -> tuple[Node, int, int, float] | None:
    """The same of a concatenation of a constant and something."""
    parts, rank = argument(node, "tensors"), node.meta["val"].dim()
    if len(parts) != 2 or any(tensor_meta(p) is None or p.meta["val"].dim() != rank for p in parts):
        return None
    first, tail = parts
    while first.target in _SAME_NUMBERS:
        first = first.args[0]
    dim = argument(node, "dim") % rank
    fills = {"aten.full": "fill_value", "aten.scalar_tensor": "s"}
    if packet_name(first.target) in fills:
        fill = argument(first, fills[packet_name(first.target)])
    else:
        fill = {"aten.zeros": 0.0, "aten.ones": 1.0}.get(packet_name(first.target))
    if not isinstance(fill, (int, float)) or parts[0].meta["val"].dtype != tail.meta["val"].dtype:
        return None
    return tail, dim, parts[0].meta["val"].shape[dim], float(fill)
