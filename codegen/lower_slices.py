"""Values that a nest visits slice by slice: concatenations of what it visits once, and what is computed from them.

A row's two largest elements are two values a row and one tensor of two columns. Where a nest visits each piece of a
concatenation once, it can compute and store the whole, too: its elements at the pieces' coordinates, one after the
other. Reductions of a few elements are sums of as many values then, and need no axis.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from itertools import product
from math import prod

from sympy import Expr, Integer, Symbol
from torch.fx import Node

from . import lower_pointwise
from .fxinfo import numel_of, op_name, shape_of
from .index import Ranges
from .lower_pieces import CONCATENATIONS, concatenated_coords, pieces
from .lower_reductions import Reduction, is_reduction, reduction_of, source_coords
from .lower_views import BIJECTIVE, forward_coords

Coords = tuple[Expr, ...]
Slices = Mapping[Node, tuple[Coords, ...]]

#: Most slices of one value, and most elements of a reduction that is written out.
MOST_SLICES = 8


def follow_slices(known: Mapping[Node, Coords], nodes: Iterable[Node], ranges: Ranges) -> Slices:
    """Coordinates of the slices of every node, in the order of the graph, that follows from concatenations of nodes at
    ``known`` coordinates; those already known are left out."""
    found: dict[Node, tuple[Coords, ...]] = {}

    def slices_of(node: Node) -> tuple[Coords, ...] | None:
        return (known[node],) if node in known else found.get(node)

    for node in nodes:
        if node in known or node.op != "call_function":
            continue
        if op_name(node) in CONCATENATIONS:
            parts = [(k, slices_of(p)) for k, p in enumerate(pieces(node)) if 0 not in shape_of(p)]
            if all(s is not None for _, s in parts):
                _learn(found, node, [concatenated_coords(node, k, c) for k, slices in parts for c in slices or ()])
        elif not any(source in found for source in node.all_input_nodes):
            continue
        elif op_name(node) in lower_pointwise.RULES or op_name(node) == "gather":
            like = [s for s in node.all_input_nodes if s in found and shape_of(s) == shape_of(node)]
            if like:
                found[node] = found[like[0]]
        elif op_name(node) in BIJECTIVE and node.args[0] in found:
            moved = [forward_coords(node, c, ranges) for c in found[node.args[0]]]
            _learn(found, node, [c for c in moved if c is not None])
        elif is_reduction(node) and reduction_of(node).source in found:
            reduction = reduction_of(node)
            kept = [_without(c, reduction.dims, reduction.keepdim) for c in found[reduction.source]]
            _learn(found, node, kept)
    return found


def _learn(found: dict[Node, tuple[Coords, ...]], node: Node, slices: list[Coords]) -> None:
    distinct = tuple(dict.fromkeys(slices))
    if 0 < len(distinct) <= MOST_SLICES:
        found[node] = distinct


def _without(coords: Coords, dims: tuple[int, ...], keepdim: bool) -> Coords:
    return tuple(Integer(0) if d in dims else c for d, c in enumerate(coords) if keepdim or d not in dims)


def visits_once(slices: tuple[Coords, ...], node: Node, ranges: Ranges, visited: Set[Symbol]) -> bool:
    """Whether points along the axes ``visited`` hit each element of ``node`` once, over all ``slices``."""
    return (all({s for c in coords for s in c.free_symbols} == visited for coords in slices)
            and numel_of(node) == len(slices) * prod(ranges[s] for s in visited))


def written_out(reduction: Reduction, coords: Coords) -> list[Coords]:
    """Where the elements are that go into the result at ``coords`` of a short reduction."""
    places = product(*(range(n) for n in reduction.sizes))
    return [source_coords(reduction, coords, tuple(map(Integer, place))) for place in places]
