"""Constants computed at compile time, and arithmetic that changes nothing.

Two kinds of constant are told apart. A *uniform* tensor (``full``, ``zeros``, ``scalar_tensor``) and an ``arange``
cost a kernel no bytes, so they stay symbolic whatever their size. A *stored* tensor is one that the graph holds as
an attribute; it is read from memory, so computing one ahead pays only while it is small.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from rooffuse.passes.graph import (
    Forwarding,
    argument,
    aten,
    is_concrete,
    is_impure,
    packet_name,
    same_layout,
    schema_of,
    tensor_meta,
)
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

# A stored constant up to this size is a handful of cache lines; above, recomputing or reading are the kernel's choice.
STORED_LIMIT_BYTES = 1024

_UNIFORM = {
    "aten.full": "fill_value",
    "aten.full_like": "fill_value",
    "aten.new_full": "fill_value",
    "aten.scalar_tensor": "s",
    "aten.zeros": 0,
    "aten.zeros_like": 0,
    "aten.new_zeros": 0,
    "aten.ones": 1,
    "aten.ones_like": 1,
    "aten.new_ones": 1,
}
_SHAPE_ONLY = frozenset(f"aten.{name}" for name in (
    "view _unsafe_view reshape unsqueeze squeeze alias detach clone _to_copy expand permute transpose t slice select "
    "repeat flip").split())


def constant_fold(gm: GraphModule) -> GraphModule:
    """Compute at compile time what depends on constants alone, and drop arithmetic that is exact and changes nothing.

    Requires: ``meta["val"]``. Ensures: pointwise arithmetic on uniform constants is one ``full``; operators on
    stored constants and on ranges become a stored constant if the result has at most ``STORED_LIMIT_BYTES``, and a
    ``full`` if it has one element;
    x·1, x/1, x−0, x+(−0.0), x**1 and ``where`` on a uniform condition are replaced by their operand where dtype,
    sizes and strides agree. Random draws, effects, mutated storages and results that the caller receives as
    constants are left alone.
    """
    forwarding = Forwarding(gm.graph)
    uniform: dict[Node, Any] = {}
    stored: dict[Node, torch.Tensor] = {}
    folded = 0
    for node in list(gm.graph.nodes):
        if forwarding.is_mutated(node):
            continue
        if node.op == "get_attr":
            constant = _attribute(gm, node)
            if constant is not None and _stored_bytes(constant) <= STORED_LIMIT_BYTES:
                stored[node] = constant
            continue
        value = tensor_meta(node)
        if value is None or value.layout != torch.strided or is_impure(node):
            continue
        if node.op != "call_function" or not is_concrete(value.shape):
            continue
        source = _unchanged_operand(node, uniform)
        if source is not None and forwarding.replace(node, source):
            folded += 1
            continue
        number = _uniform_value(node, uniform)
        if number is not None:
            uniform[node] = number
            if packet_name(node.target) not in ("aten.full", "aten.scalar_tensor") and forwarding.roots[node] is node:
                folded += _become_full(node, number, value)
            continue
        folded += _store(gm, node, stored, uniform, forwarding)
    log.debug("constant_fold: folded %d nodes", folded)
    return gm


def _attribute(gm: GraphModule, node: Node) -> torch.Tensor | None:
    constant: Any = gm
    for name in str(node.target).split("."):
        constant = getattr(constant, name, None)
    return constant if type(constant) is torch.Tensor else None


def _stored_bytes(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()


# ---- uniform constants ------------------------------------------------------------------------------------------


def _uniform_value(node: Node, uniform: dict[Node, Any]) -> Any:
    """The number that every element of the result is known to be, as the result's dtype holds it; or None."""
    value = node.meta["val"]
    name = packet_name(node.target)
    if name in _UNIFORM:
        fill = _UNIFORM[name]
        fill = argument(node, fill) if isinstance(fill, str) else fill
        return _scalar(lambda: torch.full((), fill, dtype=value.dtype)) if isinstance(fill, (int, float)) else None
    sources = node.all_input_nodes
    if not sources or any(source not in uniform for source in sources):
        return None
    if name in _SHAPE_ONLY and node.target is not aten.view.dtype:
        return _scalar(lambda: torch.full((), uniform[sources[0]], dtype=value.dtype))
    if torch.Tag.pointwise not in node.target.tags:
        return None

    def evaluate() -> torch.Tensor:
        # One element with the operand's rank: a zero-dimensional operand takes part in type promotion differently.
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda source: _one_element(source, uniform))
        return node.target(*args, **{**kwargs, **({"device": "cpu"} if "device" in kwargs else {})}).to(value.dtype)

    return _scalar(evaluate)


def _one_element(source: Node, uniform: dict[Node, Any]) -> torch.Tensor:
    value = source.meta["val"]
    return torch.full((1,) * value.dim(), uniform[source], dtype=value.dtype)


def _scalar(evaluate: Any) -> Any:
    """The Python number that ``evaluate`` leaves in a one-element tensor, or None if it fails."""
    try:
        with unset_fake_temporarily(), torch.no_grad():
            return evaluate().item()
    except (RuntimeError, TypeError, ValueError) as error:
        log.debug("constant_fold: not evaluated: %s", error)
        return None


def _become_full(node: Node, number: Any, value: torch.Tensor) -> int:
    """Make the node a ``full`` of its own sizes, if that has its strides."""
    if not value.is_contiguous() or isinstance(number, complex):
        return 0
    node.target = aten.full.default
    node.args = (list(value.shape), number)
    node.kwargs = {"dtype": value.dtype, "layout": torch.strided, "device": value.device, "pin_memory": False}
    return 1


# ---- stored constants -------------------------------------------------------------------------------------------


def _store(
    gm: GraphModule, node: Node, stored: dict[Node, torch.Tensor], uniform: dict[Node, Any], forwarding: Forwarding
) -> int:
    """Compute a node of constant operands and hold the result; returns the number of nodes folded."""
    value = node.meta["val"]
    sources = node.all_input_nodes
    known = all(source in stored or source in uniform for source in sources)
    if not sources or not known or not any(source in stored for source in sources):
        return 0
    if value.device.type != "cpu" or _stored_bytes(value) > STORED_LIMIT_BYTES or not forwarding.is_private(node):
        return 0
    if any(_stored_bytes(source.meta["val"]) > STORED_LIMIT_BYTES for source in sources if source in uniform):
        return 0

    def operand(source: Node) -> torch.Tensor:
        if source in stored:
            return stored[source]
        fake = source.meta["val"]
        return torch.full(tuple(fake.shape), uniform[source], dtype=fake.dtype)

    try:
        with unset_fake_temporarily(), torch.no_grad():
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), operand)
            result = node.target(*args, **kwargs).clone(memory_format=torch.preserve_format)
    except (RuntimeError, TypeError, ValueError) as error:
        log.debug("constant_fold: %s not evaluated: %s", node.name, error)
        return 0
    if not same_layout(result, value):
        return 0
    number = _scalar(lambda: result) if result.numel() == 1 else None
    if number is not None and _become_full(node, number, value):
        uniform[node] = number
        return 1
    name = f"_folded_{node.name}"
    gm.register_buffer(name, result)
    with gm.graph.inserting_before(node):
        constant = gm.graph.get_attr(name)
    constant.meta = {**node.meta}
    stored[constant] = result
    forwarding.roots[constant] = constant
    node.replace_all_uses_with(constant)
    gm.graph.erase_node(node)
    return 1


# ---- arithmetic that changes nothing ----------------------------------------------------------------------------


def _unchanged_operand(node: Node, uniform: dict[Node, Any]) -> Node | None:
    """The operand that the result equals bit for bit, if there is one with the result's dtype, sizes and strides."""
    name = packet_name(node.target)
    if name == "aten.where" and len(node.args) == 3 and node.args[0] in uniform:
        return _if_alike(node.args[1] if uniform[node.args[0]] else node.args[2], node)
    schema = schema_of(node)
    if schema is None or len(node.args) < 2 or name not in ("aten.mul", "aten.div", "aten.add", "aten.sub", "aten.pow"):
        return None
    left, right = node.args[:2]
    number = _number(right, uniform)
    if number is not None and _is_neutral(name, number, node):
        return _if_alike(left, node)
    swapped = _number(left, uniform)
    if name in ("aten.mul", "aten.add") and swapped is not None and _is_neutral(name, swapped, node):
        return _if_alike(right, node)
    return None


def _number(value: Any, uniform: dict[Node, Any]) -> Any:
    if isinstance(value, Node):
        return uniform.get(value)
    return value if isinstance(value, (int, float)) else None


def _is_neutral(name: str, number: float, node: Node) -> bool:
    """Whether x ∘ number is x for every x, signed zeros included."""
    if name == "aten.mul" or name == "aten.pow":
        return number == 1
    if name == "aten.div":
        return number == 1 and node.meta["val"].is_floating_point() and "rounding_mode" not in node.kwargs
    if number != 0 or node.kwargs.get("alpha", 1) != 1:
        return False
    negative = isinstance(number, float) and str(number).startswith("-")
    if not node.meta["val"].is_floating_point():
        return True
    # −0.0 + 0.0 is +0.0, so only −0.0 is neutral in a sum and only +0.0 in a difference.
    return negative if name == "aten.add" else not negative


def _if_alike(source: Any, node: Node) -> Node | None:
    origin = tensor_meta(source)
    return source if origin is not None and same_layout(origin, node.meta["val"]) else None
