"""Views that say "negated" become negations.

The gradient of a complex number's imaginary part negates lazily: ``_neg_view`` gives the same memory with a bit that
makes whoever reads it change the sign. Kernels read memory, and know of no such bit.
"""

from __future__ import annotations

import logging
from typing import Any

from rooffuse.passes.graph import aten, call_like, same_strides, tensor_meta
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

log = logging.getLogger(__name__)


def negated_views(gm: GraphModule) -> GraphModule:
    """Replace lazy negations by negations.

    Requires: ``meta["val"]`` fake tensors. Ensures: equal sizes, dtype and strides of every value. What the caller
    hands in negated stays so, and what is in strides that a negation doesn't make.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    calls = gm.graph.find_nodes(op="call_function", target=aten._neg_view.default) if mode is not None else ()
    found = 0
    for node in calls:
        with gm.graph.inserting_before(node):
            made = call_like(node, mode, aten.neg.default, node.args[0])
        if not same_strides(made.meta["val"], node.meta["val"]):
            gm.graph.erase_node(made)
            continue
        node.replace_all_uses_with(made)
        gm.graph.erase_node(node)
        found += 1
    for node in gm.graph.nodes if found else ():
        if node.op == "call_function" and _is_negated(node):
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            with mode:
                node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
    log.debug("negated_views: %d", found)
    return gm


def _is_negated(node: Node) -> bool:
    value: Any = tensor_meta(node)
    return value is not None and value.is_neg()
