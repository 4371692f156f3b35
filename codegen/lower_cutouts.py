"""Outputs that are a part of what a nest visits: a softmax without the column that was added to its rows.

The nest computes them at all of its points and stores them where they have elements.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from sympy import Expr, Integer, Symbol
from torch.fx import Node

from . import lower_pointwise
from .builder import NestBuilder
from .fxinfo import op_name, shape_of
from .index import Ranges, affine, bounds
from .lower_views import INDEX_MAPS, SPLITTERS, forward_coords, slice_parameters

Coords = tuple[Expr, ...]

#: Views that put dimensions in another order and leave each as it is.
_ORDERS = frozenset({"permute", "transpose", "t", "alias", "detach"})


def follow_cutouts(known: Mapping[Node, Coords], nodes: Iterable[Node], ranges: Ranges) -> dict[Node, Coords]:
    """Coordinates of each node, in the order of the graph, that follows from slices of nodes at ``known`` coordinates:
    some are outside of the node, where it has no element. Those already known are left out."""
    found: dict[Node, Coords] = {}
    for node in nodes:
        if node in known or node.op != "call_function":
            continue
        name, cut = op_name(node), _cut(node)
        if cut is not None:
            source, starts = cut
            here = known.get(source, found.get(source))
            if here is not None:
                found[node] = tuple(c - start for c, start in zip(here, starts, strict=True))
        elif name in _ORDERS and node.args[0] in found:
            moved = forward_coords(node, found[node.args[0]], ranges)
            if moved is not None:
                found[node] = moved
        elif name in lower_pointwise.RULES:
            like = [found[s] for s in node.all_input_nodes if s in found and shape_of(s) == shape_of(node)]
            if like:  # of several slices where the first of them is, so that what comes of them is in one place
                found[node] = max(like, key=lambda coords: sum(affine(c)[1] for c in coords))
    return found


def _cut(node: Node) -> tuple[Node, Coords] | None:
    """What ``node`` is a slice of, and where in it its first element is; None for other nodes and for steps."""
    name = op_name(node)
    if name == "getitem":
        if op_name(node.args[0]) not in SPLITTERS - {"unbind"}:
            return None
    elif name != "slice" or slice_parameters(node, shape_of(node.args[0]))[2] != 1:
        return None
    return INDEX_MAPS[name](node, (Integer(0),) * len(shape_of(node)), {})


def visits_cutout(node: Node, coords: Coords, ranges: Ranges) -> bool:
    """Whether points of a nest hit each element of ``node`` once at ``coords``, and are outside of it elsewhere: each
    dimension is an axis of its own, moved, and all axes are in use."""
    used: list[Symbol] = []
    for coordinate, size in zip(coords, shape_of(node)):
        coefficients, offset, others = affine(coordinate)
        if size == 1 and coordinate == Integer(0):
            continue
        if others or len(coefficients) != 1 or set(coefficients.values()) != {1}:
            return False
        axis = next(iter(coefficients))
        used.append(axis)
        if axis not in ranges or offset > 0 or ranges[axis] + offset < size:
            return False
    return len(used) == len(set(used)) == len(ranges)


def inside(builder: NestBuilder, node: Node, coords: Coords) -> str | None:
    """The condition under which ``coords`` are those of an element of ``node``; None if they always are."""
    condition: str | None = None
    for coordinate, size in zip(coords, shape_of(node)):
        extent = bounds(coordinate, builder.ranges)
        if extent is None or (extent[0] >= 0 and extent[1] < size):
            continue
        place = builder.index(coordinate, torch.int32)
        if extent[0] < 0:
            above = builder.compute("ge", place, builder.const(0, builder.dtypes[place]))
            condition = builder.both(condition, above)
        if extent[1] >= size:
            below = builder.compute("lt", place, builder.const(size, builder.dtypes[place]))
            condition = builder.both(condition, below)
    return condition
