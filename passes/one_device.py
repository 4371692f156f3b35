"""Operands where the graph computes: numbers that the host has are brought to the accelerator, constants made there."""

from __future__ import annotations

import logging
from typing import Any

import torch
from rooffuse.passes.graph import (
    aten,
    call_like,
    graph_device,
    is_impure,
    mutated_roots,
    packet_name,
    storage_roots,
    tensor_meta,
)
from rooffuse.passes.op_sets import POINTWISE, VIEWS
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

_FACTORIES = frozenset(f"aten.{name}" for name in ("full", "zeros", "ones", "arange", "scalar_tensor"))
_COPIED = ("layout", "device", "pin_memory", "non_blocking")


def one_device(gm: GraphModule) -> GraphModule:
    """On an accelerator, make constants there, and copy there what pointwise operators take from the host.

    A kernel can't read the host's memory, while eager takes operands without dimensions from there: a learned scale or
    an optimiser's step that was left on the CPU, ``torch.tensor(0.5)``.

    Requires: ``meta["val"]`` fake tensors; stored constants are folded. Ensures: constants that were made on the host
    and then copied are made on the accelerator, stored ones copied now if it is in this machine; no pointwise operator
    of the accelerator has an operand without dimensions on the host. Graphs of the host alone are left as they are.
    """
    device = graph_device(gm.graph)
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if device.type == "cpu" or mode is None:
        return gm
    mover = _Mover(gm, device, mode)
    for node in list(gm.graph.nodes):
        value = tensor_meta(node)
        if node.op != "call_function" or value is None or value.device != device or is_impure(node):
            continue
        if node.target is aten._to_copy.default:
            mover.move_copy(node)
        elif packet_name(node.target) in POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            mover.move_numbers(node)
    gm.graph.eliminate_dead_code(is_impure)
    return gm


class _Mover:
    """Makes what a graph has on the host anew on ``device``, each value once."""

    def __init__(self, gm: GraphModule, device: torch.device, mode: FakeTensorMode) -> None:
        self.gm, self.device, self.mode = gm, device, mode
        self.roots, self.mutated = storage_roots(gm.graph), frozenset(mutated_roots(gm.graph))
        self.there: dict[Node, Node] = {}

    def move_copy(self, node: Node) -> None:
        """A copy from the host of constants: made on the device, with the copy's type."""
        source = node.args[0]
        assert isinstance(source, Node)
        if not self._on_host(source) or not self._is_constant(source):
            return
        made = self._made_there(source, node)
        if made is None:
            return
        with self.gm.graph.inserting_before(node):
            kept = {k: v for k, v in node.kwargs.items() if k not in _COPIED}
            node.replace_all_uses_with(call_like(node, self.mode, node.target, made, **kept))

    def move_numbers(self, node: Node) -> None:
        """Operands without dimensions, from the host to the device."""
        for source in node.all_input_nodes:
            if not self._on_host(source) or source.meta["val"].dim():
                continue
            made = self._made_there(source, node) if self._is_constant(source) else None
            node.replace_input_with(source, made or self._copied(source, node))

    def _on_host(self, node: Node) -> bool:
        value = tensor_meta(node)
        return value is not None and value.device.type == "cpu"

    def _is_constant(self, node: Node) -> bool:
        """Whether the value follows from numbers and stored constants, by operators that work anywhere."""
        if self.roots[node] in self.mutated:
            return False
        if node.op == "get_attr":
            return tensor_meta(node) is not None
        name = packet_name(node.target)
        if name in _FACTORIES:
            return not node.all_input_nodes
        return bool(node.all_input_nodes) and not is_impure(node) and (name in POINTWISE or name in VIEWS) and all(
            self._on_host(n) and self._is_constant(n) for n in node.all_input_nodes)

    def _made_there(self, node: Node, before: Node) -> Node | None:
        """The constant, made on the device where it is first needed; None if it can't be had there yet."""
        if node in self.there:
            return self.there[node]
        made: dict[Node, Node] = {}
        for source in node.all_input_nodes:
            moved = self._made_there(source, before)
            if moved is None:
                return None
            made[source] = moved
        with self.gm.graph.inserting_before(before):
            found = self._stored(node) if node.op == "get_attr" else self._call(node, made)
        if found is not None:
            self.there[node] = found
        return found

    def _call(self, node: Node, made: dict[Node, Node]) -> Node:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: made[n])
        if packet_name(node.target) in _FACTORIES or kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": self.device}
        return call_like(node, self.mode, node.target, *args, **kwargs)

    def _stored(self, node: Node) -> Node | None:
        """A stored constant's copy, if the device is in this machine."""
        constant: Any = self.gm
        for name in str(node.target).split("."):
            constant = getattr(constant, name)
        try:
            with unset_fake_temporarily(), torch.no_grad():
                copied = constant.to(self.device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts that it has it
            log.debug("one_device: %s stays where it is: %s", node.name, error)
            return None
        name = f"_on_device_{node.name}"
        self.gm.register_buffer(name, copied)
        found = self.gm.graph.get_attr(name)
        found.meta = {**node.meta, "val": self.mode.from_tensor(copied)}
        return found

    def _copied(self, source: Node, before: Node) -> Node:
        """A copy on the device, which all that comes later shares unless the number is written in between."""
        if source in self.there:
            return self.there[source]
        with self.gm.graph.inserting_before(before):
            copied = call_like(before, self.mode, aten._to_copy.default, source, device=self.device)
        if self.roots[source] not in self.mutated:
            self.there[source] = copied
        return copied
