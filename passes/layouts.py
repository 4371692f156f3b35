"""A graph rebuilt with some values in other strides than they were traced with, and the copies that this takes.

Every other value follows from its operands, as the operator itself would choose, where the operator means the same in
any layout; before all others the traced strides are restored.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from rooffuse.passes.graph import (
    argument_key,
    argument_nodes,
    aten,
    is_random,
    mutated_roots,
    packet_name,
    returned_nodes,
    same_strides,
    schema_of,
    storage_roots,
    tensor_meta,
    viewed_arg,
)
from rooffuse.passes.rule_base import memory_order
from rooffuse.passes.rules import RULES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node

#: Views that say the same of a tensor in any layout.
_VIEWS = frozenset(f"aten.{name}" for name in (
    "permute transpose t expand slice select unsqueeze squeeze alias detach diagonal unfold split split_with_sizes "
    "unbind chunk").split())
#: Views that join and cut dimensions, which not every layout allows.
_RESHAPES = frozenset({"aten.view", "aten._unsafe_view", "aten.reshape"})
_PRODUCTS = frozenset({"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"})
#: Results that hold nothing yet, or whose strides are asked for.
_PLACES = frozenset({"aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty",
                     "aten.new_empty_strided", "aten.as_strided"})
_CONVOLUTIONS = frozenset({aten.convolution.default, aten.convolution_backward.default})
#: Compound operators that sum products of their first two operands, which in different layouts no loop goes along.
_PAIRED = frozenset({aten.native_batch_norm_backward.default, aten.native_group_norm_backward.default})
#: Library calls whose results follow the layout of their input as their fake values say.
_FOLLOWING = frozenset({"aten.upsample_bicubic2d"})


_RANKS = {torch.channels_last: 4, torch.channels_last_3d: 5}


class NotRestorable(Exception):
    """The traced strides of a value are not those of a dense tensor, so no copy has them."""


class Relayout:
    """What doesn't change from one rebuilding of a graph to the next: who takes which layout, and fake results."""

    def __init__(self, graph: Graph, mode: FakeTensorMode, lowers: Callable[[Node], bool],
                 inputs: Mapping[Node, torch.Tensor], free: Collection[int]) -> None:
        """``lowers`` says which primitive operators kernels are generated for; ``inputs`` are placeholders that come
        with other strides than traced; the results at positions ``free`` may leave in any. ``generated`` has the nodes
        that kernels are generated for, once compound operators are decomposed."""
        self.graph, self.mode, self.inputs = graph, mode, inputs
        self.roots = storage_roots(graph)
        self.written = frozenset(mutated_roots(graph))
        self.generated = frozenset(
            n for n in graph.nodes if n.op == "call_function" and n.target not in _CONVOLUTIONS
            and packet_name(n.target) not in _PRODUCTS and (n.target in RULES or lowers(n)))
        results = returned_nodes(graph)
        kept = {self.roots[n] for k, n in enumerate(results) if k not in free}
        self.free = frozenset(n for k, n in enumerate(results) if k in free and self.roots[n] not in kept
                              and self.roots[n].op == "call_function")
        self._made: dict[Any, Any] = {}

    def is_flexible(self, node: Node) -> bool:
        """Whether ``node`` means the same for operands in any layout, and its users know the layout of its result."""
        schema, name = schema_of(node), packet_name(node.target)
        if node.target is operator.getitem:
            return True
        if schema is None or schema.is_mutable or is_random(node) or self.roots[node] in self.written:
            return False
        if name in _PLACES or node.target is aten.view.dtype:
            return False
        return name in _VIEWS | _RESHAPES | _FOLLOWING | _PRODUCTS or node in self.generated

    def call(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The fake result of a call on nodes of a rebuilt graph; raises what the operator raises."""
        key = (target, argument_key(args, _described), argument_key(kwargs, _described))
        if key not in self._made:
            values, keywords = torch.fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
            with self.mode, torch.no_grad():
                self._made[key] = target(*values, **keywords)
        return self._made[key]


def _described(node: Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), tuple(value.stride()), value.storage_offset(), value.dtype, value.device)
    if isinstance(value, (list, tuple)):
        return (node.name, *(tuple(v.stride()) if isinstance(v, torch.Tensor) else v for v in value))
    return (node.name, str(value))


class Rebuilt:
    """One rebuilding: ``of`` maps nodes to those that stand for them, ``copies`` are the clones put in."""

    def __init__(self, relayout: Relayout, wanted: Mapping[Node, Mapping[int, torch.memory_format]],
                 early: Mapping[Node, torch.memory_format]) -> None:
        """``wanted`` gives calls and which of their arguments they get in which format; ``early`` values that are put
        into a format where they are made, for all that read them. Raises NotRestorable."""
        self.relayout, self.wanted = relayout, wanted
        self.graph = Graph()
        self.of: dict[Node, Node] = {}
        self.copies: dict[Node, Node] = {}
        self.formatted: dict[Node, torch.memory_format] = {}
        self._restored: dict[Node, Node] = {}
        self._copied: dict[tuple[Node, torch.memory_format], Node] = {}
        for node in relayout.graph.nodes:
            if node.op == "output":
                copied = self.graph.output(torch.fx.map_arg(node.args[0], self._result))
                copied.meta = dict(node.meta)
                continue
            self.of[node] = self._rebuild(node)
            if node in early and not self.is_in(self.of[node], early[node]):
                if not self.changed(node):
                    self._restored.setdefault(node, self.of[node])
                self.of[node] = self._in_format(node, early[node])

    def changed(self, node: Node) -> bool:
        """Whether what stands for ``node`` has other strides than it was traced with."""
        return not _alike(self.of[node].meta.get("val"), node.meta.get("val"))

    @staticmethod
    def is_in(node: Node, form: torch.memory_format) -> bool:
        """Whether a value lies in a memory format already."""
        value = tensor_meta(node)
        return value is not None and value.is_contiguous(memory_format=form)

    # -- nodes --------------------------------------------------------------------------------------------------

    def _rebuild(self, node: Node) -> Node:
        if node.op != "call_function":
            copied = self._copy(node, self.of.__getitem__, self.relayout.inputs.get(node, node.meta.get("val")))
            if node not in self.relayout.inputs:
                self._restored[node] = copied
            return copied
        if node in self.wanted:
            return self._wanted(node)
        if self.relayout.is_flexible(node):
            followed = self._followed(node)
            if followed is not None:
                return followed
        return self._as_traced(node)

    def _copy(self, node: Node, arguments: Callable[[Node], Node], value: Any) -> Node:
        copied = self.graph.node_copy(node, arguments)
        copied.meta = {**node.meta, "val": value} if "val" in node.meta else dict(node.meta)
        return copied

    def _wanted(self, node: Node) -> Node:
        forms = self.wanted[node]
        args = tuple(self._in_format(a, forms[k]) if k in forms else torch.fx.map_arg(a, self.restored)
                     for k, a in enumerate(node.args))
        kwargs = torch.fx.map_arg(node.kwargs, self.restored)
        return self._made(node, args, kwargs, self.relayout.call(node.target, args, kwargs))

    def _followed(self, node: Node) -> Node | None:
        """The call on its operands in the strides that they have now, or None where it doesn't apply to those."""
        sources = argument_nodes((node.args, node.kwargs))
        if not any(self.changed(s) for s in sources):
            return self._copy(node, self.of.__getitem__, node.meta.get("val"))
        if packet_name(node.target) in _PRODUCTS and not all(_is_matrix(self.of[s].meta["val"]) for s in sources):
            return None
        if node.target is operator.getitem:
            value = self.of[sources[0]].meta["val"][node.args[1]]
            traced = node.meta.get("val")
            return self._copy(node, self.of.__getitem__, traced if _alike(value, traced) else value)
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self.of.__getitem__)
        if node.target in _PAIRED:
            args = (*self._paired(node.args[:2]), *args[2:])
        target = aten.view.default if packet_name(node.target) in _RESHAPES else node.target
        try:
            value = self.relayout.call(target, args, kwargs)
        except (RuntimeError, ValueError):  # a view of a layout that doesn't allow it
            return None
        traced = node.meta["val"]
        return self._made(node, args, kwargs, traced if _alike(value, traced) else value)

    def _paired(self, operands: tuple[Any, ...]) -> list[Node]:
        """Two operands of equal shapes in one memory format, if one of them is in such."""
        for form in (torch.channels_last, torch.channels_last_3d):
            values = [self.of[n].meta["val"] for n in operands]
            if any(v.is_contiguous(memory_format=form) and not v.is_contiguous() for v in values
                   if v.dim() == _RANKS[form]):
                return [self._in_format(n, form) for n in operands]
        return [self.of[n] for n in operands]

    def _made(self, node: Node, args: Any, kwargs: Any, value: Any) -> Node:
        made = self.graph.create_node(node.op, node.target, args, kwargs, node.name)
        made.meta = {**node.meta, "val": value}
        return made

    def _as_traced(self, node: Node) -> Node:
        made = self._copy(node, self.restored, node.meta.get("val"))
        self._restored[node] = made
        return made

    # -- copies -------------------------------------------------------------------------------------------------

    def _result(self, node: Node) -> Node:
        return self.of[node] if node in self.relayout.free else self.restored(node)

    def restored(self, node: Node) -> Node:
        """What stands for ``node`` with the strides that it was traced with, a view of the same storage if it was."""
        if node not in self._restored:
            source = viewed_arg(node)
            part = source is not None and node.target is operator.getitem and viewed_arg(source) is None
            if source is None or part:
                self._restored[node] = self._copy_to_traced(node) if self.changed(node) else self.of[node]
            elif all(self.restored(s) is self.of[s] for s in node.all_input_nodes):
                self._restored[node] = self.of[node]
            else:
                self._restored[node] = self._copy(node, self.restored, node.meta.get("val"))
        return self._restored[node]

    def _copy_to_traced(self, node: Node) -> Node:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return self.of[node]  # several results, restored one by one
        order, inverse = memory_order(value)
        made = self.of[node]
        if order != sorted(order):
            made = self._call(node, aten.permute.default, made, order)
        made = self.copies_made(node, made, torch.contiguous_format)
        if order != sorted(order):
            made = self._call(node, aten.permute.default, made, inverse)
        if not same_strides(made.meta["val"], value):
            raise NotRestorable(f"{node.name} was traced with strides {tuple(value.stride())}")
        return made

    def _in_format(self, node: Node, form: torch.memory_format) -> Node:
        if self.is_in(self.of[node], form):
            return self.of[node]
        if (node, form) not in self._copied:
            self._copied[node, form] = self.copies_made(node, self.of[node], form)
            self.formatted[node] = form
        return self._copied[node, form]

    def copies_made(self, origin: Node, source: Node, form: torch.memory_format) -> Node:
        """A clone of ``source`` in a memory format, noted in ``copies`` with the traced node that it stands for."""
        made = self._call(origin, aten.clone.default, source, memory_format=form)
        self.copies[made] = origin
        return made

    def _call(self, origin: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
        made = self.graph.call_function(target, args, kwargs)
        inherited = {k: v for k, v in origin.meta.items() if k not in ("val", "tensor_meta")}
        made.meta = {**inherited, "val": self.relayout.call(target, args, kwargs)}
        return made


def _alike(left: Any, right: Any) -> bool:
    """Whether values agree in strides, offset into their storage and, of several, all of them."""
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return all(map(_alike, left, right))
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        return True
    return same_strides(left, right) and left.storage_offset() == right.storage_offset()


def _is_matrix(value: torch.Tensor) -> bool:
    """Whether the last two dimensions are a matrix as BLAS takes it, one of them with neighbours in memory."""
    return value.dim() < 2 or 1 in value.stride()[-2:]
