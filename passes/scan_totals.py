"""The last element of a scan is the total of what is scanned.

Chunked linear attention and state-space models scan the decay within each chunk, and then need each position's
distance to the chunk's end:

    c = cumsum(g, dim);  exp(c[last:] - c)

Read from the scan, the last element is another place than the reader's own, and the scan has to go through memory
first. As a sum of what is scanned it shares the scan's nest.
"""

from __future__ import annotations

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
    if argument(node, "dim") % value.dim() != dim or not 1 < length <= _READ_TWICE:
        return False
    kept = packet_name(node.target) == "aten.slice"
    first = argument(node, "start" if kept else "index")
    # A slice may begin before or after the row, or hold nothing.
    if first not in (length - 1, -1) or (kept and node.meta["val"].shape[dim] != 1):
        return False
    total, listed = TOTALS[packet_name(scan.target)]
    dtype = {"dtype": value.dtype} if packet_name(scan.target) in ("aten.cumsum", "aten.cumprod") else {}
    views = _views_inside(node)
    if views is None:
        return False
    with node.graph.inserting_before(node):
        made = call_like(node, mode, total, scan.args[0], [dim] if listed else dim, kept, **dtype)
    node.replace_all_uses_with(made)
    for view in views:
        args, kwargs = map_arg((view.args, view.kwargs), lambda n: n.meta["val"])
        with mode:
            view.meta["val"] = view.target(*args, **kwargs)  # type: ignore[operator]
    return True


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
