"""``_foreach_*`` operators as one operator for each tensor, which the grouping then puts side by side as it pays."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from rooffuse.passes.graph import packet_name, schema_of
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten

_UNARY = """abs acos asin atan ceil cos cosh erf erfc exp expm1 floor frac lgamma log log10 log1p log2 neg reciprocal
round rsqrt sigmoid sign sin sinh sqrt tan tanh trunc""".split()
_BINARY = "add sub mul div pow clamp_min clamp_max maximum minimum".split()
_TERNARY = ("addcmul", "addcdiv", "lerp")


_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _packets() -> dict[str, Any]:
    return {f"aten._foreach_{name}": getattr(aten, name) for name in (*_UNARY, *_BINARY, *_TERNARY)}


_SINGLE = _packets()


def expand_foreach(gm: GraphModule) -> GraphModule:
    """Replace functional ``_foreach_*`` calls by one call for each tensor of their lists.

    Requires: ``meta["val"]``; lists whose results are taken apart by ``getitem``. Ensures: each result keeps its
    sizes, strides and type; calls that it doesn't know stay.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None:
        return gm
    for node in list(gm.graph.nodes):
        schema = schema_of(node) if node.op == "call_function" else None
        if schema is None or packet_name(node.target) not in (*_SINGLE, "aten._foreach_norm") or schema.is_mutable:
            continue
        if not all(user.target is operator.getitem for user in node.users):
            continue
        _expand(gm, node, mode)
    return gm


def _expand(gm: GraphModule, node: Node, mode: Any) -> None:
    bound = _bound(node)
    count = len(node.meta["val"])
    parts: list[Node] = []
    for k in range(count):
        single = {name: value[k] if isinstance(value, list | tuple) else value for name, value in bound.items()}
        call = _single_call(node, single)
        if call is None:
            for part in reversed(parts):
                gm.graph.erase_node(part)
            return
        target, args, kwargs = call
        with gm.graph.inserting_before(node):
            part = gm.graph.call_function(target, args, kwargs)
        parts.append(part)
        values, keywords = torch.fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with mode, torch.no_grad():
            value = target(*values, **keywords)
        part.meta = {**{k: v for k, v in node.meta.items() if k not in ("val", "tensor_meta")}, "val": value}
        wanted = node.meta["val"][k]
        if (value.dtype, value.shape, value.stride()) != (wanted.dtype, wanted.shape, wanted.stride()):
            log.debug("expand_foreach: %s stays whole: its results aren't those of single calls", node.name)
            for part in reversed(parts):
                gm.graph.erase_node(part)
            return
    for user in list(node.users):
        user.replace_all_uses_with(parts[user.args[1]])
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def _bound(node: Node) -> dict[str, Any]:
    """Arguments by name, those left out missing."""
    names = [a.name for a in schema_of(node).arguments]
    return {**dict(zip(names, node.args)), **node.kwargs}


def _single_call(node: Node, values: dict[str, Any]) -> _Call | None:
    """The operator on one tensor with its arguments, or None where there is no such one."""
    packet, overload = packet_name(node.target), node.target._overloadname
    if packet == "aten._foreach_norm":
        order, dtype = values.pop("ord", 2), values.pop("dtype", None)
        return aten.linalg_vector_norm.default, (values["self"], order, None, False), {"dtype": dtype}
    name = packet.removeprefix("aten._foreach_")
    single = _SINGLE[packet]
    if name in _UNARY:
        return single.default, (values["self"],), {}
    alpha = {"alpha": values.pop("alpha")} if "alpha" in values else {}
    arguments = list(values.values())
    if name in ("addcmul", "addcdiv"):
        if any(isinstance(a, Node) for a in arguments[3:]):
            return None  # factors that are only known when it runs
        return single.default, tuple(arguments[:3]), {"value": arguments[3]} if len(arguments) > 3 else {}
    if name == "lerp":
        return (single.Tensor if isinstance(arguments[2], Node) else single.Scalar), tuple(arguments), {}
    if overload == "ScalarAndTensor":
        return single.Scalar, tuple(arguments), {}
    if isinstance(arguments[1], Node):
        kind = {"pow": "Tensor_Tensor", "clamp_min": "Tensor", "clamp_max": "Tensor", "maximum": "default",
                "minimum": "default"}.get(name, "Tensor")
        return getattr(single, kind), tuple(arguments), alpha
    if name in ("maximum", "minimum"):
        return (aten.clamp_min if name == "maximum" else aten.clamp_max).default, tuple(arguments), {}
    kind = {"pow": "Tensor_Scalar", "clamp_min": "default", "clamp_max": "default"}.get(name, "Scalar")
    return getattr(single, kind), tuple(arguments), alpha
