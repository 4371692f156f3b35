"""Operators that write into memory that is there already: as stores of a kernel, at the places that they name."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sympy import Expr
from torch.fx import Node

from .fxinfo import dtype_of, op_name, shape_of, wrap_dim
from .lower_views import broadcast_coords

if TYPE_CHECKING:
    from .lower import NestLowering

Coords = tuple[Expr, ...]

#: operator -> position of the tensor whose elements are written, one after the other
_WRITTEN = {"copy_": 1, "index_copy_": 3}


def is_store(node: Node) -> bool:
    """Whether ``node`` writes into its first argument."""
    return op_name(node) in _WRITTEN


def written_value(node: Node) -> Node:
    """What a store writes."""
    return node.args[_WRITTEN[op_name(node)]]


def iterated(node: Node) -> Node:
    """The node whose elements a store is executed for: all of the destination of a copy, the written rows otherwise."""
    return node if op_name(node) == "copy_" else written_value(node)


def refusal(node: Node) -> str | None:
    """Why a store can't be part of a kernel, or None."""
    if op_name(node) == "index_copy_":
        indices = node.args[2]
        if dtype_of(indices) not in (torch.int32, torch.int64):
            return f"{node.name} has positions of type {dtype_of(indices)}"
        if len(shape_of(node)) != len(shape_of(written_value(node))) or not shape_of(node):
            return f"{node.name} writes a scalar"
    return None


def place(context: NestLowering, node: Node, coords: Coords) -> tuple[str, Coords, str | None]:
    """``(value, coordinates in the destination, condition)`` of the write for the iterated element at ``coords``."""
    source = written_value(node)
    if op_name(node) == "copy_":
        return context.value(source, broadcast_coords(coords, shape_of(source))), coords, None
    value = context.value(source, coords)
    shape = shape_of(node.args[0])
    dim = wrap_dim(node.args[1], len(shape))
    indices = node.args[2]
    b = context.builder
    position = context.value(indices, (coords[dim],) if shape_of(indices) else ())
    inside = b.both(b.compute("ge", position, b.const(0, b.dtypes[position])),
                    b.compute("lt", position, b.const(shape[dim], b.dtypes[position])))
    picked = b.gathered(position, shape[dim], negative=False)
    return value, (*coords[:dim], picked, *coords[dim + 1:]), inside
