"""Max pooling whose positions only its own gradient reads keeps places within windows instead: a byte each, not eight.

The gradient asks which element of a window won; its place in the window answers that with less to keep from the forward
to the backward pass, and no position to compute. What the input was doesn't matter to it, either, nor to a rectifier's
gradient after it, which can ask the windows' values.
"""

from __future__ import annotations

import logging
import operator
from typing import Any

from rooffuse.passes.graph import argument, aten, call_like, is_concrete, same_layout
from rooffuse.passes.max_pool_places import max_pool_places, max_pool_places_backward
from rooffuse.passes.rule_base import Refusal
from rooffuse.passes.windows import windows_over
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

_GRADIENTS = {
    aten.max_pool2d_with_indices.default: aten.max_pool2d_with_indices_backward.default,
    aten.max_pool3d_with_indices.default: aten.max_pool3d_with_indices_backward.default,
}
_WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def pooled_places(gm: GraphModule) -> GraphModule:
    """Replace max poolings and their gradients by those with places where nothing else reads the positions.

    Requires: ``meta["val"]`` fake tensors. Ensures: equal sizes, dtype and strides of every value that is left.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    found = 0
    for node in list(gm.graph.nodes) if mode is not None else ():
        if node.op == "call_function" and node.target in _GRADIENTS:
            found += _replace(node, mode)
    log.debug("pooled_places: %d", found)
    return gm


def _window(node: Node) -> tuple[Any, ...]:
    kernel, stride, *others = (argument(node, name) for name in _WINDOW)
    return tuple(tuple(v) if isinstance(v, (list, tuple)) else v for v in (kernel, stride or kernel, *others))


def _replace(pool: Node, mode: FakeTensorMode) -> bool:
    """Put the two calls in place of a pooling and its gradients; whether that could be."""
    kernel, stride, padding, dilation, ceil_mode = _window(pool)
    positions = [part for part in pool.users if part.args[1] == 1]
    gradients = [user for part in positions for user in part.users]
    source = argument(pool, "self")
    shape = source.meta["val"].shape
    if not gradients or not is_concrete(shape) or any(d != 1 for d in dilation):
        return False
    if any(g.target is not _GRADIENTS[pool.target] or _window(g) != _window(pool) or g.args[0] in positions
           or argument(g, "self").meta["val"].shape != shape for g in gradients):
        return False
    window = (list(kernel), list(stride), list(padding), ceil_mode)
    try:
        windows_over(shape, kernel, stride, padding, 1, ceil_mode)
    except Refusal as reason:
        log.debug("pooled_places: %s: %s", pool.name, reason)
        return False
    graph, made = pool.graph, []
    with graph.inserting_before(pool):
        made.append(call_like(pool, mode, max_pool_places, source, *window))
        for k in range(2):
            part = graph.call_function(operator.getitem, (made[0], k))
            part.meta = {**made[0].meta, "val": made[0].meta["val"][k]}
            made.append(part)
    for gradient in gradients:
        with graph.inserting_before(gradient):
            call = (argument(gradient, "grad_output"), made[2], list(shape), *window)
            made.append(call_like(gradient, mode, max_pool_places_backward, *call))
    old = [part for part in pool.users if part.args[1] == 0] + gradients
    new = [made[1]] * (len(old) - len(gradients)) + made[3:]
    if not all(same_layout(a.meta["val"], b.meta["val"]) for a, b in zip(old, new, strict=True)):
        for node in reversed(made):
            graph.erase_node(node)
        return False
    for before, after in zip(old, new, strict=True):
        before.replace_all_uses_with(after)
        graph.erase_node(before)
    for node in (*positions, pool):
        graph.erase_node(node)
    for gradient in made[3:]:
        _mask_before(gradient, source, made[1], mode)
    return True


def _mask_before(gradient: Node, source: Node, values: Node, mode: FakeTensorMode) -> None:
    """Let a rectifier's gradient mask the windows' gradients rather than what the pooling's gives back: only winners
    get any, and a winner is what its window's value is. The rectifier's result needn't be read, or kept, for that."""
    masked = next(iter(gradient.users)) if len(gradient.users) == 1 else None
    if masked is None or masked.target is not aten.threshold_backward.default or masked.args[0] is not gradient:
        return
    if _origin(masked.args[1]) is not _origin(source) or not same_layout(gradient.meta["val"], masked.meta["val"]):
        return
    grad, *others = gradient.args
    with gradient.graph.inserting_before(gradient):
        grad = call_like(masked, mode, masked.target, grad, values, masked.args[2])
    if grad.meta["val"].dtype != gradient.args[0].meta["val"].dtype:  # type: ignore[union-attr]
        gradient.graph.erase_node(grad)
        return
    gradient.args = (grad, *others)
    masked.replace_all_uses_with(gradient)
    gradient.graph.erase_node(masked)


def _origin(node: Any) -> Any:
    """The tensor that ``node`` is under another name."""
    while isinstance(node, Node) and node.target in (aten.detach.default, aten.alias.default):
        node = node.args[0]
    return node
