"""The last element of a scan as a reduction.

Chunked linear attention and state-space models scan the decay within each chunk, and then need each position's
distance to the chunk's end:

    c = cumsum(g, dim);  exp(c[last:] - c)

Read from the scan, the last element is another place than the reader's own, and the scan has to go through memory
first. As a reduction it shares the scan's nest: the total of what is scanned where the scan itself isn't wanted, or
where both are exact; elsewhere the largest of minus infinity and, at the last place, the scan, which has the same bits.
Whoever divides a distribution by its end counts on ending at one.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from rooffuse.passes.decompose import decompose
from rooffuse.passes.graph import argument, aten, call_like, is_concrete, packet_name, tensor_meta, viewed_arg
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

log = logging.getLogger(__name__)

#: Scans and the reductions that end where they do, with whether those take a list of dimensions.
TOTALS = {"aten.cumsum": (aten.sum.dim_IntList, True), "aten.cumprod": (aten.prod.dim_int, False),
           "rooffuse.running_max": (aten.amax.default, True), "rooffuse.running_min": (aten.amin.default, True),
           "aten.logcumsumexp": (aten.logsumexp.default, True)}
#: Scans that round nothing.
_EXACT = frozenset({"rooffuse.running_max", "rooffuse.running_min"})
#: Longest rows that are read again where scan and total end up in two kernels.
_READ_TWICE = 32768


def scan_totals(gm: GraphModule) -> GraphModule:
    """Replace reads of a scan's last element by a reduction of what is scanned.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value that is no view of another.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    found = 0
    for node in list(gm.graph.nodes) if mode is not None else ():
        if node.op == "call_function" and packet_name(node.target) in ("aten.slice", "aten.select"):
            found += _replace(node, mode)
    log.debug("scan_totals: %d", found)
    return decompose(gm) if found else gm


def _replace(node: Node, mode: FakeTensorMode) -> bool:
    scan: Any = node.args[0]
    value, source = tensor_meta(scan), tensor_meta(scan.args[0]) if scan.args else None
    if packet_name(scan.target) not in TOTALS or value is None or source is None or value.dim() == 0 or (
            not is_concrete((*value.shape, *value.stride()))):
        return False
    dim = argument(scan, "dim") % value.dim()
    length = value.shape[dim]
    if not 1 < length <= _READ_TWICE:
        return False
    kept = packet_name(node.target) == "aten.slice"
    if not _is_last(node, dim, length):
        return False
    views = _views_inside(node)
    if views is None:
        return False
    with node.graph.inserting_before(node):
        call = functools.partial(call_like, node, mode)
        if not value.dtype.is_floating_point or packet_name(scan.target) in _EXACT or all(
                _is_last(user, dim, length) for user in scan.users):
            total, listed = TOTALS[packet_name(scan.target)]
            dtype = {"dtype": value.dtype} if packet_name(scan.target) in ("aten.cumsum", "aten.cumprod") else {}
            made = call(total, scan.args[0], [dim] if listed else dim, kept, **dtype)
        else:
            positions = call(aten.view.default, call(aten.arange.default, length, device=value.device),
                             [length if d == dim else 1 for d in range(value.dim())])
            nothing = call(aten.full.default, [], float("-inf"), dtype=value.dtype, device=value.device,
                           pin_memory=False)
            last = call(aten.where.self, call(aten.eq.Scalar, positions, length - 1), scan, nothing)
            made = call(aten.amax.default, last, [dim], kept)
    node.replace_all_uses_with(made)
    for view in views:
        args, kwargs = map_arg((view.args, view.kwargs), lambda n: n.meta["val"])
        with mode:
            view.meta["val"] = view.target(*args, **kwargs)  # type: ignore[operator]
    return True


def _is_last(node: Node, dim: int, length: int) -> bool:
    """Whether ``node`` takes just the last element along ``dim`` of its argument."""
    name = packet_name(node.target)
    if name not in ("aten.slice", "aten.select") or argument(node, "dim") % node.args[0].meta["val"].dim() != dim:  # type: ignore
        return False
    # A slice may begin before or after the row, or hold nothing.
    first = argument(node, "start" if name == "aten.slice" else "index")
    return first in (length - 1, -1) and (name == "aten.select" or node.meta["val"].shape[dim] == 1)


def _views_inside(node: Node) -> list[Node] | None:
    """Views of ``node`` in the order of the graph; None where the caller sees its strides or a view relies on them."""
    views = [node]
    for view in views:
        for user in view.users:
            if user.op == "output" or packet_name(user.target) == "aten.as_strided":
                return None
            if viewed_arg(user) is view:
                views.append(user)
    return sorted(views[1:])
