"""The graph as the grouping sees it: units that do work, and the views and constants between them that cost nothing."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from rooffuse.codegen import lower_special
from rooffuse.codegen.fxinfo import op_name
from rooffuse.codegen.lower import refusal
from rooffuse.codegen.lower_contractions import is_matrix_product
from rooffuse.codegen.lower_stores import is_store, written_value
from rooffuse.codegen.lower_views import SPLITTERS, is_alias
from rooffuse.passes.graph import storage_roots
from torch.fx import Graph, Node


@dataclass(frozen=True)
class Read:
    """A unit reads ``argument``; ``source`` is the buffer behind it, once views are followed."""

    argument: Node
    source: Node


class Units:
    """Which nodes do work (``units``), which of them can be in a kernel (``fusible``), and who reads whom.

    Views that a kernel reads through, and constants such as ``full`` and ``arange``, belong to no unit: each kernel
    that needs one makes it inside, and a library call gets it when the program runs.
    """

    def __init__(self, graph: Graph, multiplies: Callable[[Node], bool] = lambda product: False) -> None:
        """``multiplies`` says which matrix products may be part of kernels; the others are library calls."""
        self.graph = graph
        self.position = {node: k for k, node in enumerate(graph.nodes)}
        self.reasons: dict[Node, str] = {}
        self.inline: set[Node] = set()
        self.units: list[Node] = []
        self.fusible: set[Node] = set()
        self._reads: dict[Node, tuple[Read, ...]] = {}
        self._users: dict[Node, tuple[Node, ...]] = {}
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            if self._is_part(node):
                continue
            reason = None if op_name(node) in SPLITTERS else refusal(node)
            if reason is None and is_matrix_product(node) and not multiplies(node):
                reason = f"{node.target} of this size and type is left to the library"
            if is_alias(node) and reason is None:
                self.inline.add(node)
                continue
            self.units.append(node)
            if reason is None:
                self.fusible.add(node)
                if is_constant(node):
                    self.inline.add(node)
            else:
                self.reasons[node] = reason

    @staticmethod
    def _is_part(node: Node) -> bool:
        """A single result of a call with several: it belongs to that call."""
        return op_name(node) == "getitem" and op_name(node.args[0]) not in SPLITTERS

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

    def source(self, node: Node) -> Node:
        """The buffer behind a chain of views; a constant is its own."""
        while node in self.inline and not is_constant(node):
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

    def _find_users(self, buffer: Node) -> Iterator[Node]:
        seen: set[Node] = set()
        work = [buffer]
        while work:
            for user in work.pop().users:
                if user in seen:
                    continue
                seen.add(user)
                if (user in self.inline and not is_constant(user)) or self._is_part(user) or (
                        op_name(user) in SPLITTERS and user not in self._unit_set):
                    work.append(user)
                else:
                    yield user


def is_constant(node: Node) -> bool:
    """A tensor made from nothing but numbers, which a kernel can make for itself at no cost in bytes."""
    return op_name(node) in lower_special.RULES and not node.all_input_nodes
