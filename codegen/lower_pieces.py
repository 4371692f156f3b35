"""Concatenations that a kernel stores piece by piece.

A concatenation that is pulled asks, at each of its elements, every piece under a condition. Where it only goes to
memory that isn't needed: each piece is stored to its own part of the result, at the points that visit the piece's
elements once, like any other output. Each piece is computed once, without conditions, and pieces may lie in
different nests.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sympy import Expr, Integer
from torch.fx import Node

from .builder import NestBuilder
from .fxinfo import argument, dtype_of, op_name, shape_of, wrap_dim
from .index import Ranges
from .lower_stores import is_store
from .lower_views import BIJECTIVE, forward_coords

Coords = tuple[Expr, ...]

CONCATENATIONS = frozenset({"cat", "concat", "stack"})
#: Copies of which each piece can be copied by itself, to another type or not.
_COPIES = frozenset({"clone", "_to_copy"})
#: What a piece may go through on its way to memory without being read: copies, and views that hit each element once.
PASSED_ON = CONCATENATIONS | _COPIES
#: Longest body that a piece joins without having anything to do with it: copies of several inputs are one loop, but
#: long computations side by side run out of registers.
JOINED_STATEMENTS = 64


@dataclass(frozen=True)
class Part:
    """Elements of an output that one store writes: those of ``node``, which is the output itself or a piece of it.

    ``way`` leads from the piece to the output: pairs of a node that passes it on and which operand of it it is.
    """

    node: Node
    buffer: str
    way: tuple[tuple[Node, int], ...] = ()

    @property
    def output(self) -> Node:
        """The node whose tensor is stored to."""
        return self.way[-1][0] if self.way else self.node

    @property
    def in_place(self) -> bool:
        """Whether this is an operator that writes into its first argument."""
        return not self.way and is_store(self.node)

    def coords(self, coords: Coords, ranges: Ranges) -> Coords:
        """Where in the output the element at ``coords`` of the piece is."""
        for node, position in self.way:
            if op_name(node) in CONCATENATIONS:
                coords = concatenated_coords(node, position, coords)
            elif op_name(node) not in _COPIES:
                found = forward_coords(node, coords, ranges)
                assert found is not None
                coords = found
        return coords

    def converted(self, value: str, builder: NestBuilder) -> str:
        """The piece's ``value`` in the types that concatenations promote it to and copies are of."""
        for node, _ in self.way:
            value = builder.cast(value, dtype_of(node))
        return value


def pieces(node: Node) -> list[Node]:
    """The tensors that a ``cat`` or ``stack`` puts together; the empty vectors that ``cat`` allows are left out."""
    return [p for p in node.args[0] if shape_of(p) != (0,)]


def concatenated_coords(node: Node, position: int, coords: Coords) -> Coords:
    """Where in a concatenation the element at ``coords`` of its piece number ``position`` is."""
    dim = wrap_dim(argument(node, 1, "dim", 0), len(shape_of(node)))
    if op_name(node) == "stack":
        return (*coords[:dim], Integer(position), *coords[dim:])
    start = sum(shape_of(p)[dim] for p in pieces(node)[:position])
    return (*coords[:dim], coords[dim] + start, *coords[dim + 1:])


def parts_of(output: Node, buffer: str, is_input: Callable[[Node], bool]) -> list[Part]:
    """The stores that make up ``output``: one for each piece, through concatenations of concatenations, or one for all
    if it is no concatenation or its elements are read inside of the group as well."""
    parts: list[Part] = []

    def visit(node: Node, way: tuple[tuple[Node, int], ...]) -> bool:
        """Add the pieces of ``node``; False if it has to be stored as a whole."""
        last = way[0][0] if way else None
        if is_input(node) or any(u is not last and (way or u.op != "output") for u in node.users):
            return False
        if op_name(node) in BIJECTIVE | _COPIES:
            return visit(node.args[0], ((node, 0), *way))
        if op_name(node) not in CONCATENATIONS:
            return False
        for k, piece in enumerate(pieces(node)):
            if 0 not in shape_of(piece) and not visit(piece, ((node, k), *way)):
                parts.append(Part(piece, buffer, ((node, k), *way)))
        return True

    return parts if visit(output, ()) else [Part(output, buffer)]
