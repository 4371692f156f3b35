"""Operators that write into memory that is there already: as stores of a kernel, at the places that they name."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sympy import Expr
from torch.fx import Node

from .fxinfo import argument, dtype_of, op_name, shape_of, strides_of, wrap_dim
from .lower_views import broadcast_coords

if TYPE_CHECKING:
    from .lower import NestLowering

Coords = tuple[Expr, ...]

#: operator -> position of the tensor whose elements are written, one after the other
_WRITTEN = {"copy_": 1, "index_copy_": 3, "index_add_": 3, "index_put_": 2, "scatter_": 3, "scatter_add_": 3}
#: Types that devices add atomically.
_ADDED = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64})


def is_store(node: Node) -> bool:
    """Whether ``node`` writes into its first argument."""
    name = op_name(node)
    return name in _WRITTEN and (name != "scatter_" or node.target._overloadname == "src")


def written_value(node: Node) -> Node:
    """What a store writes."""
    return node.args[_WRITTEN[op_name(node)]]


def accumulates(node: Node) -> bool:
    """Whether a store adds to what is there."""
    name = op_name(node)
    return name in ("index_add_", "scatter_add_") or (name == "index_put_" and bool(argument(node, 3, "accumulate")))


def iterated(node: Node) -> Node:
    """The node whose elements a store is executed for: all of the destination of a copy, the written rows otherwise."""
    return node if op_name(node) == "copy_" else written_value(node)


def positions(node: Node) -> list[Node]:
    """What says where a store writes; nothing for copies."""
    if op_name(node) == "index_put_":
        return [n for n in node.args[1] if n is not None]
    return [] if op_name(node) == "copy_" else [node.args[2]]


def refusal(node: Node) -> str | None:
    """Why a store can't be part of a kernel, or None."""
    name, value = op_name(node), written_value(node)
    if name == "copy_":
        return None
    if any(n > 1 and s == 0 for n, s in zip(shape_of(node), strides_of(node))):
        return f"{node.name} writes through an expanded tensor"
    if accumulates(node) and dtype_of(node) not in _ADDED:
        return f"{node.name} adds up numbers of type {dtype_of(node)}"
    indices = positions(node)
    for index in indices:
        if dtype_of(index) not in (torch.int32, torch.int64):
            return f"{node.name} has positions of type {dtype_of(index)}"
    if name == "index_put_":
        expected, _, _ = put_region(node)
        return None if shape_of(value) == expected else f"{node.name} broadcasts what it writes"
    if not shape_of(node) or len(shape_of(node)) != len(shape_of(value)):
        return f"{node.name} writes a scalar"
    if name.startswith("scatter_") and shape_of(indices[0]) != shape_of(value):
        return f"{node.name} writes a part of its source"
    return None


def put_region(node: Node) -> tuple[tuple[int, ...], int, int]:
    """``(shape, first, count)``: the shape that ``index_put`` writes, and which of its dimensions the index tensors
    make: ``count`` from ``first`` on."""
    shape, indices = shape_of(node.args[0]), list(node.args[1])
    indices += [None] * (len(shape) - len(indices))
    dims = [d for d, i in enumerate(indices) if i is not None]
    picked = tuple(torch.broadcast_shapes(*[shape_of(indices[d]) for d in dims]))
    first = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0
    rest = [n for d, n in enumerate(shape) if d not in dims]
    return (*rest[:first], *picked, *rest[first:]), first, len(picked)


def place(context: NestLowering, node: Node, coords: Coords) -> tuple[str, Coords, str | None]:
    """``(value, coordinates in the destination, condition)`` of the write for the iterated element at ``coords``."""
    source, name = written_value(node), op_name(node)
    if name == "copy_":
        return context.value(source, broadcast_coords(coords, shape_of(source))), coords, None
    value, b = context.value(source, coords), context.builder
    if name == "index_put_":
        return value, *_put_place(context, node, coords)
    shape = shape_of(node.args[0])
    dim = wrap_dim(node.args[1], len(shape))
    indices = node.args[2]
    at = coords if name.startswith("scatter_") else (coords[dim],) if shape_of(indices) else ()
    picked, inside = _position(context, indices, at, shape[dim], negative=False)
    alpha = node.kwargs.get("alpha", 1)
    if alpha != 1:
        value = b.compute("mul", b.cast(value, dtype_of(node)), b.const(alpha, dtype_of(node)))
    return value, (*coords[:dim], picked, *coords[dim + 1:]), inside


def _put_place(context: NestLowering, node: Node, coords: Coords) -> tuple[Coords, str | None]:
    shape, indices = shape_of(node.args[0]), list(node.args[1])
    indices += [None] * (len(shape) - len(indices))
    _, first, count = put_region(node)
    where = coords[first:first + count]
    rest = iter((*coords[:first], *coords[first + count:]))
    result: list[Expr] = []
    condition: str | None = None
    for size, index in zip(shape, indices):
        if index is None:
            result.append(next(rest))
            continue
        picked, inside = _position(context, index, broadcast_coords(where, shape_of(index)), size, negative=True)
        result.append(picked)
        if inside is not None:
            condition = context.builder.both(condition, inside)
    return tuple(result), condition


def _position(context: NestLowering, indices: Node, at: Coords, size: int,
              negative: bool) -> tuple[Expr, str | None]:
    """A position in a dimension of ``size`` that ``indices`` choose, and the condition that it is one."""
    b = context.builder
    value = context.value(indices, at)
    picked = b.gathered(value, size, negative)
    if not any(s.name.startswith("v") for s in picked.free_symbols):
        return picked, None
    value = b.cast(value, torch.int64)
    low = b.const(-size if negative else 0, torch.int64)
    return picked, b.both(b.compute("ge", value, low), b.compute("lt", value, b.const(size, torch.int64)))

