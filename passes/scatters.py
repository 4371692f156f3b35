"""Scatters as writes to places, in the few forms that a kernel generator takes.

A functional ``index_add(base, …)`` copies its whole base and writes a part of the copy. Here it becomes a write into
the base where nothing else reads that, else into an explicit ``clone``: what computes the written values and the
places can then be computed where they are written. Scatters that are really selections become those.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from rooffuse.passes.added_scatters import embedding_terms
from rooffuse.passes.graph import (
    argument,
    call_like,
    is_concrete,
    packet_name,
    reads_first_again,
    same_layout,
    schema_of,
    tensor_meta,
    viewed_arg,
)
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.rules_select import MOST_PICKED, PICKING_WORK
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten

_PUTS = frozenset({aten.index_put.default, aten._unsafe_index_put.default, aten.index_put_.default})
_SCATTERS = frozenset({aten.scatter.src, aten.scatter_.src, aten.scatter.value, aten.scatter_.value,
                       aten.scatter_add.default, aten.scatter_add_.default})
_ROWS = frozenset({aten.index_add.default, aten.index_add_.default, aten.index_copy.default,
                   aten.index_fill.int_Scalar, aten.index_fill_.int_Scalar})
_SUMS = frozenset({aten.scatter_reduce.two, aten.scatter_reduce_.two})
_EMBEDDING = aten.embedding_dense_backward.default
_KNOWN = frozenset({*_PUTS, *_SCATTERS, *_ROWS, *_SUMS, _EMBEDDING})
_MASKS = (torch.bool, torch.uint8)
#: Results that hold nothing yet: what isn't written to them may be anything.
_UNWRITTEN = frozenset({"aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty",
                        "aten.new_empty_strided", "aten.empty_permuted"})


def scatters_pass(lowers: Callable[[Node], bool]) -> Pass:
    """The pass for a code generator that takes the writes for which ``lowers`` holds."""
    return Pass("scatters", functools.partial(scatters, lowers=lowers), scatters.__doc__ or "")


def scatters(gm: GraphModule, lowers: Callable[[Node], bool]) -> GraphModule:
    """Rewrite scatters as in-place writes that ``lowers`` accepts, or as selections; the others stay as they are.

    Requires: ``meta["val"]`` fake tensors; comes after every pass that needs a functional graph. Ensures: what the
    caller sees is unchanged; the order of reads and writes of a storage is that of the nodes.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None:
        return gm
    for node in list(gm.graph.nodes):
        if node.target in _KNOWN and all(_is_concrete(n) for n in (node, *node.all_input_nodes)):
            _Rewrite(gm.graph, node, mode).run(lowers)
    return gm


def _is_concrete(node: Node) -> bool:
    value = tensor_meta(node)
    return value is not None and value.numel() > 0 and is_concrete(value.shape)


def _only_writes(user: Node, place: Node) -> bool:
    """Whether ``user`` is an earlier scatter's write into ``place``, as this pass leaves them."""
    schema = schema_of(user)
    return schema is not None and schema.is_mutable and user.args[0] is place and not user.users and not (
        reads_first_again(user))


class _Rewrite:
    """Replaces one scatter; what was made for it in vain is erased again."""

    def __init__(self, graph: Graph, node: Node, mode: FakeTensorMode) -> None:
        self.graph, self.node, self.mode = graph, node, mode
        self.made: list[Node] = []

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        result = call_like(self.node, self.mode, target, *args, **kwargs)
        self.made.append(result)
        return result

    def value(self, node: Any) -> torch.Tensor:
        return node.meta["val"]

    def run(self, lowers: Callable[[Node], bool]) -> None:
        node, in_place = self.node, self.node.target._schema.is_mutable
        with self.graph.inserting_before(node):
            selected = self._selection()
            if selected is not None:
                if in_place:
                    selected = self.call(aten.copy_.default, node.args[0], selected)
                self._finish(selected)
                return
            place = node.args[0] if in_place else self._place()
            write = None if place is None else self._write(place)
        if write is None or not lowers(write):
            for made in reversed(self.made):
                self.graph.erase_node(made)
            return
        self._finish(write if in_place else place)

    def _finish(self, result: Node) -> None:
        self.node.replace_all_uses_with(result)
        self.graph.erase_node(self.node)

    # -- selections ---------------------------------------------------------------------------------------------

    def _selection(self) -> Node | None:
        """The scatter as a choice between old and new made for each element, or None."""
        node = self.node
        if node.target in _PUTS:
            return self._masked_put()
        if node.target in (aten.scatter.src, aten.scatter.value, aten.scatter_add.default):
            return self._choices()
        return None

    def _masked_put(self) -> Node | None:
        """``x[mask] = number`` is ``where(mask, number, x)``."""
        base, indices, values = self.node.args[:3]
        if argument(self.node, "accumulate") or self.value(values).numel() != 1 or len(indices) != 1:
            return None
        mask = indices[0]
        if mask is None or self.value(mask).dtype != torch.bool or self.value(values).dtype != self.value(base).dtype:
            return None
        shape = [*self.value(mask).shape, *[1] * (self.value(base).dim() - self.value(mask).dim())]
        mask = self.call(aten.view.default, mask, shape) if len(shape) != self.value(mask).dim() else mask
        chosen = self.call(aten.where.self, mask, self.call(aten.view.default, values, []), base)
        return chosen if same_layout(self.value(chosen), self.value(self.node)) else None

    def _choices(self) -> Node | None:
        """A scatter of one or a few elements a row onto a constant compares positions with each index: the constant is
        never stored. The index is looked up in the positions, which checks that it is one."""
        node = self.node
        base, dim, index, source = node.args[:4]
        shape, chosen = list(self.value(base).shape), list(self.value(index).shape)
        if base.target is not aten.full.default or not shape:
            return None
        dim %= len(shape)
        count = chosen[dim]
        if [*chosen[:dim], shape[dim], *chosen[dim + 1:]] != shape:
            return None
        if count > 1 and (count > MOST_PICKED or count * shape[dim] > PICKING_WORK):
            return None
        positions = self.call(aten.arange.default, shape[dim], device=self.value(index).device)
        along = self.call(aten.view.default, positions, [-1 if d == dim else 1 for d in range(len(shape))])
        if not isinstance(source, Node):
            source = self.call(aten.full.default, chosen, source, dtype=self.value(base).dtype,
                               device=self.value(base).device)
        elif list(self.value(source).shape) != chosen:
            source = self._leading_part(source, chosen)
        result = base
        for k in range(count):
            place, value = index, source
            if count > 1:
                place, value = (self.call(aten.slice.Tensor, v, dim, k, k + 1) for v in (index, source))
            flat = self.call(aten.reshape.default, place, [-1])
            checked = self.call(aten.index_select.default, positions, 0, flat)
            here = self.call(aten.eq.Tensor, along, self.call(aten.reshape.default, checked,
                                                              [1 if d == dim else n for d, n in enumerate(shape)]))
            if node.target is aten.scatter_add.default and (k > 0 or base.args[1] != 0):
                value = self.call(aten.add.Tensor, value, result)
            result = self.call(aten.where.self, here, value, result)
        return result if same_layout(self.value(result), self.value(node)) else None

    def _leading_part(self, source: Node, shape: list[int]) -> Node:
        for dim, size in enumerate(shape):
            if self.value(source).shape[dim] != size:
                source = self.call(aten.slice.Tensor, source, dim, 0, size)
        return source

    # -- writes -------------------------------------------------------------------------------------------------

    def _place(self) -> Node | None:
        """Memory that holds the old value and that nothing else reads."""
        node = self.node
        if node.target is _EMBEDDING:
            gradient, _, rows = node.args[:3]
            if self.value(gradient).dtype not in (torch.float32, torch.float64) or argument(node, "scale_grad_by_freq"):
                return None
            value = self.value(node)
            zeros = self.call(aten.full.default, [rows, value.shape[1]], 0, dtype=value.dtype, device=value.device,
                              pin_memory=False)
            return self.call(aten.clone.default, zeros)
        base = node.args[0]
        if packet_name(base.target) in _UNWRITTEN and same_layout(self.value(base), self.value(node)):
            value = self.value(base)
            return self.call(aten.empty_strided.default, list(value.shape), list(value.stride()), dtype=value.dtype,
                             device=value.device)
        schema = schema_of(base)
        readers = [user for user in base.users if not _only_writes(user, base)]
        fresh = (schema is not None and not schema.is_mutable and viewed_arg(base) is None and readers == [node]
                 and bool(base.all_input_nodes) and not reads_first_again(node))
        place = base if fresh else self.call(aten.clone.default, base)
        return place if same_layout(self.value(place), self.value(node)) else None

    def _write(self, place: Node) -> Node | None:
        node, target = self.node, self.node.target
        if target is _EMBEDDING:
            return self._put(place, [node.args[1]], embedding_terms(node, self.call), True)
        if target in _PUTS:
            indices, values = node.args[1:3]
            if any(i is not None and self.value(i).dtype in _MASKS for i in indices):
                return None
            return self._put(place, list(indices), values, bool(argument(node, "accumulate")))
        dim, index = node.args[1:3]
        if target in (aten.index_fill.int_Scalar, aten.index_fill_.int_Scalar):
            shape = list(self.value(place).shape)
            if not shape or self.value(index).dim() != 1:
                return None
            shape[dim] = self.value(index).shape[0]
            return self.call(aten.index_copy_.default, place, dim, index, self._number(node.args[3], shape, place))
        if target in _ROWS:
            kind = aten.index_copy_ if target is aten.index_copy.default else aten.index_add_
            return self.call(kind.default, place, dim, index, node.args[3], **node.kwargs)
        if target in _SUMS and (node.args[4] != "sum" or not argument(node, "include_self")):
            return None
        source = node.args[3]
        if not isinstance(source, Node):
            source = self._number(source, list(self.value(index).shape), place)
        elif self.value(source).dim() == self.value(index).dim():
            source = self._leading_part(source, list(self.value(index).shape))
        adds = target in _SUMS or target in (aten.scatter_add.default, aten.scatter_add_.default)
        return self.call(aten.scatter_add_.default if adds else aten.scatter_.src, place, dim, index, source)

    def _number(self, number: Any, shape: list[int], like: Node) -> Node:
        value = self.value(like)
        return self.call(aten.full.default, shape, number, dtype=value.dtype, device=value.device, pin_memory=False)

    def _put(self, place: Node, indices: list[Node | None], values: Node, adds: bool) -> Node:
        with self.mode:
            region = aten.index.Tensor(self.value(place), [None if i is None else self.value(i) for i in indices]).shape
        if tuple(self.value(values).shape) != tuple(region):
            values = self.call(aten.expand.default, values, list(region))
        return self.call(aten.index_put_.default, place, indices, values, adds)
