"""The graph as the grouping sees it: units that do work, and the views and constants between them that cost nothing."""
from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from rooffuse.codegen import lower_special
from rooffuse.codegen.fxinfo import op_name
from rooffuse.codegen.lower import refusal
from rooffuse.codegen.lower_contractions import is_matrix_product
from rooffuse.codegen.lower_stores import is_store, written_value
from rooffuse.codegen.lower_views import SPLITTERS, is_alias
from rooffuse.passes.graph import (
    argument_key,
    graph_device,
    mutated_roots,
    rounding_marks,
    storage_roots,
    tensor_meta,
    written_args,
)
from torch.fx import Graph, Node

#: Operators on positions that kernels make anew wherever they need them.
_WHOLE_NUMBERS = frozenset("""add sub mul neg div remainder clamp clamp_min clamp_max minimum maximum lt le gt ge eq ne
logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not where _to_copy""".split())
#: Most of them in a value that isn't stored.
_MOST_WHOLE = 12


@dataclass(frozen=True)
class Read:
    """A unit reads ``argument``; ``source`` is the buffer behind it, once views are followed."""

    argument: Node
    source: Node


class Units:
    """Which nodes do work (``units``), which of them can be in a kernel (``fusible``), and who reads whom.

    Views that a kernel reads through, and constants such as ``full`` and ``arange`` with a little arithmetic on them
    (masks of positions, places in windows), belong to no unit: each kernel that needs one makes it inside, and a
    library call gets it when the program runs.
    """

    def __init__(self, graph: Graph, multiplies: Callable[[Node], bool] = lambda product: False) -> None:
        """``multiplies`` says which matrix products may be part of kernels; the others are library calls."""
        self.graph = graph
        self.device = graph_device(graph)
        self.position = {node: k for k, node in enumerate(graph.nodes)}
        self.reasons: dict[Node, str] = {}
        self.inline: set[Node] = set()
        self.units: list[Node] = []
        self.fusible: set[Node] = set()
        self._constants: dict[Node, int] = {}
        self._reads: dict[Node, tuple[Read, ...]] = {}
        self._users: dict[Node, tuple[Node, ...]] = {}
        self._spellings: dict[Node, Hashable] = {}
        self._equal_spellings: dict[Hashable, Hashable] = {}
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            if self._is_part(node) or self._is_memory(node):
                continue
            reason = None if op_name(node) in SPLITTERS else refusal(node)
            if reason is None and is_matrix_product(node) and not multiplies(node):
                reason = f"{node.target} of this size and type is left to the library"
            if is_alias(node) and reason is None:
                self.inline.add(node)
                continue
            value = tensor_meta(node)
            if reason is None and value is not None and value.device != self.device:
                reason = f"{node.name} is computed on {value.device}"
            self.units.append(node)
            if reason is None:
                self.fusible.add(node)
                if self._made_of_numbers(node):
                    self.inline.add(node)
            else:
                self.reasons[node] = reason

    def _made_of_numbers(self, node: Node) -> bool:
        """Note whether ``node`` is a constant, and how many operations it takes."""
        if op_name(node) in lower_special.RULES and not node.all_input_nodes:
            self._constants[node] = 0
        elif node.all_input_nodes and _whole_numbers(node) and not any(
                self.roots[n] in self._mutated for n in (node, *node.all_input_nodes)):
            sources = [self.source(n) for n in node.all_input_nodes]
            count = 1 + sum(self._constants.get(n, _MOST_WHOLE) for n in sources)
            if count <= _MOST_WHOLE:
                self._constants[node] = count
        return node in self._constants

    def is_constant(self, node: Node) -> bool:
        """A tensor made from nothing but numbers, which a kernel can make for itself at no cost in bytes."""
        return node in self._constants

    @staticmethod
    def _is_part(node: Node) -> bool:
        """A single result of a call with several: it belongs to that call."""
        return op_name(node) == "getitem" and op_name(node.args[0]) not in SPLITTERS

    def _is_memory(self, node: Node) -> bool:
        """Memory that others write into: nobody makes what it holds, as nobody makes an input of the graph."""
        return op_name(node) in lower_special.UNWRITTEN and not node.all_input_nodes and node in self._mutated

    def unit_of(self, node: Node) -> Node | None:
        """The unit that makes the buffer ``node``; None for inputs of the graph."""
        while self._is_part(node):
            node = node.args[0]
        return node if node in self._unit_set else None

    @cached_property
    def _unit_set(self) -> frozenset[Node]:
        return frozenset(self.units)

    @cached_property
    def roots(self) -> dict[Node, Node]:
        """The owner of each node's storage."""
        return storage_roots(self.graph)

    @cached_property
    def _mutated(self) -> frozenset[Node]:
        """Storages that the graph writes: made anew, they would be as they were before."""
        return frozenset(mutated_roots(self.graph))

    @cached_property
    def _writes(self) -> dict[Node, list[Node]]:
        """What writes into each storage that the graph writes, in order."""
        found: dict[Node, list[Node]] = {}
        for node in self.graph.nodes:
            for argument in written_args(node):
                found.setdefault(self.roots[argument], []).append(node)
        return found

    def writes_after(self, source: Node, reader: Node) -> list[Node]:
        """What writes into memory that ``reader`` reads later on: read again after that, it may not be what it was."""
        return [w for w in self._writes.get(self.roots[source], ()) if self.position[w] > self.position[reader]]

    def source(self, node: Node) -> Node:
        """The buffer behind a chain of views; a constant is its own."""
        while node in self.inline and not self.is_constant(node):
            node = node.args[0]
            if op_name(node) in SPLITTERS:
                node = node.args[0]
        return node

    def reads(self, unit: Node) -> tuple[Read, ...]:
        """What ``unit`` reads from memory: for a fusible unit each tensor argument but the destination of a copy."""
        if unit not in self._reads:
            arguments = dict.fromkeys(unit.all_input_nodes)
            if is_store(unit):
                arguments.pop(unit.args[0], None)
                if written_value(unit) is unit.args[0]:
                    arguments[unit.args[0]] = None
            self._reads[unit] = tuple(
                Read(a, self.source(a)) for a in arguments
                if isinstance(a.meta.get("val"), torch.Tensor) or a.op == "get_attr" or a in self._unit_set)
        return self._reads[unit]

    def users(self, buffer: Node) -> tuple[Node, ...]:
        """Units that read ``buffer``, and the graph's output node if it is returned; through views, each once."""
        if buffer not in self._users:
            self._users[buffer] = tuple(self._find_users(buffer))
        return self._users[buffer]

    def spelling(self, node: Node) -> Hashable:
        """A call without the names of its arguments: equal for calls that compute the same on inputs of equal kind, in
        the order of ``all_input_nodes``."""
        if node not in self._spellings:
            numbers = {n: k for k, n in enumerate(node.all_input_nodes)}

            def place(n: Node) -> Hashable:
                return "input", numbers[n]

            found = (str(node.target), argument_key(node.args, place), argument_key(node.kwargs, place),
                     tensor_kind(node), rounding_marks(node))
            self._spellings[node] = self._equal_spellings.setdefault(found, found)
        return self._spellings[node]

    def _find_users(self, buffer: Node) -> Iterator[Node]:
        seen: set[Node] = set()
        work = [buffer]
        while work:
            for user in work.pop().users:
                if user in seen:
                    continue
                seen.add(user)
                if (user in self.inline and not self.is_constant(user)) or self._is_part(user) or (
                        op_name(user) in SPLITTERS and user not in self._unit_set):
                    work.append(user)
                else:
                    yield user


def tensor_kind(node: Node) -> Hashable:
    """Shape, strides and type of a tensor; None for other results."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(value.shape), tuple(value.stride()), str(value.dtype)


def _whole_numbers(node: Node) -> bool:
    """Whether elementwise arithmetic takes and gives whole numbers or truth values."""
    tensors = [node, *node.all_input_nodes]
    return op_name(node) in _WHOLE_NUMBERS and not any(n.meta["val"].is_floating_point() for n in tensors) and not any(
        isinstance(a, float) for a in node.args)
