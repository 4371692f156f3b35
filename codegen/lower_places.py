"""Where a nest has the elements of its group's nodes: what follows, view by view, from the node its axes are of."""
from __future__ import annotations

from math import prod

import torch
from rooffuse.passes.graph import argument
from sympy import Expr, Integer
from torch.fx import Node

from . import lower_pointwise, lower_views
from .fxinfo import numel_of, op_name, shape_of, value_of
from .index import Ranges, ravel, unravel
from .ir import Axis
from .lower_pieces import CONCATENATIONS, pieces
from .lower_reductions import Reduction, is_reduction, reduction_of, source_coords
from .lower_scans import is_scan, scanned_rows
from .lower_slices import follow_slices

Coords = tuple[Expr, ...]


def places(start: Node, coords: Coords, inside: set[Node], ranges: Ranges,
           axes: tuple[Axis, ...]) -> dict[Node, Coords]:
    """Coordinates, as expressions of the axes, of ``start`` and of each node of ``inside`` that follows from it."""
    found = _Places([n for n in start.graph.nodes if n in inside], ranges, axes)
    found.learn(start, coords)
    found.follow(start)
    return found.known


class _Places:
    def __init__(self, order: list[Node], ranges: Ranges, axes: tuple[Axis, ...]) -> None:
        self.order, self.inside, self.ranges = order, set(order), ranges
        self.rows = tuple(a for a in axes if a.reduction)
        self.parallel = tuple(a for a in axes if not a.reduction)
        self.known: dict[Node, Coords] = {}
        self.work: list[Node] = []

    def learn(self, node: Node, coords: Coords | None) -> None:
        if coords is not None and node not in self.known and node in self.inside:
            self.known[node] = coords
            self.work.append(node)

    def follow(self, start: Node) -> None:
        while self.work or self._assume(start):
            node = self.work.pop()
            for user in node.users:
                if user in self.inside and isinstance(value_of(user), torch.Tensor):
                    self._forward(node, user)
            if node.op != "placeholder":
                self._backward(node)

    def _forward(self, node: Node, user: Node) -> None:
        here = self.known[node]
        if is_reduction(user) and reduction_of(user).source is node:
            reduction = reduction_of(user)
            kept = tuple((Integer(0) if reduction.keepdim else None) if d in reduction.dims else c
                         for d, c in enumerate(here))
            self.learn(user, tuple(c for c in kept if c is not None))
        elif op_name(user) in lower_pointwise.RULES or op_name(user) == "copy_" or is_scan(user):
            if shape_of(user) == shape_of(node):
                self.learn(user, here)
        elif op_name(user) in lower_views.INDEX_MAPS and user.args[0] is node:
            self.learn(user, lower_views.forward_coords(user, here, self.ranges))
        elif op_name(user) == "gather" and user.args[0] is node:
            self.learn(user, _one_of_each_row(user, here))

    def _backward(self, node: Node) -> None:
        here = self.known[node]
        if op_name(node) in lower_pointwise.RULES or is_scan(node):
            for source in node.all_input_nodes:
                self.learn(source, lower_views.broadcast_coords(here, shape_of(source)))
        elif is_reduction(node):
            if reduction_of(node).count == prod(a.size for a in self.rows):
                self._learn_reduced(reduction_of(node), here, self.rows)
        elif op_name(node) != "unfold" and lower_views.is_alias(node):  # windows may overlap, however many there are
            source, inner = lower_views.INDEX_MAPS[op_name(node)](node, here, self.ranges)
            if isinstance(source, Node) and (numel_of(source) == numel_of(node) or op_name(node) == "expand"):
                self.learn(source, inner)

    def _learn_reduced(self, reduction: Reduction, here: Coords, along: tuple[Axis, ...]) -> None:
        """That what is reduced lies along ``along``, unless the result is in the middle of a row."""
        symbols = {s for c in here for s in c.free_symbols}
        if reduction.source is not None and reduction.count > 1 and not symbols & {a.symbol for a in along}:
            inner = unravel(ravel([a.symbol for a in along], [a.size for a in along]), reduction.sizes, self.ranges)
            self.learn(reduction.source, source_coords(reduction, here, inner))

    def _assume(self, start: Node) -> bool:
        """Once nothing follows any more, find what is computed from slices in one place, and then put what is found
        nowhere yet where the nest might as well have it: what is reduced or scanned along an axis of as many elements,
        or along all of a row; and where ``start`` is, what spreads a row's results over as many elements, or puts parts
        of rows in another order. Returns whether there was any.
        """
        sliced = follow_slices(self.known, self.order, self.ranges)
        for node, slices in sliced.items():
            if len(slices) == 1:
                self.learn(node, slices[0])
        if self.work:
            return True
        for node in self.order:
            scanned = is_scan(node)
            if node.op == "placeholder" or not (scanned or is_reduction(node)):
                continue
            reduction = scanned_rows(node) if scanned else reduction_of(node)
            if reduction.source in self.known or reduction.source in sliced:
                continue
            here = (None if scanned else self.known.get(node)) or self._row(reduction)
            along: tuple[Axis, ...] = next(((a,) for a in self.rows if a.size == reduction.count), ())
            if tuple(a.size for a in self.rows) == tuple(n for n in reduction.sizes if n != 1):
                along = self.rows
            if here is not None and along:
                self._learn_reduced(reduction, here, along)
        for node in self.order if self.rows and not self.work else ():
            if op_name(node) in lower_pointwise.RULES:
                beside = any(source in self.known for source in node.all_input_nodes)
            else:
                beside = op_name(node) in CONCATENATIONS and all(_behind(s) in self.known for s in pieces(node))
            if beside and shape_of(node) == shape_of(start):
                self.learn(node, self.known[start])
        return bool(self.work)

    def _row(self, reduction: Reduction) -> Coords | None:
        """Coordinates of a reduction's results that are one for each of the nest's rows."""
        kept = [1 if d in reduction.dims else n for d, n in enumerate(reduction.shape)]
        if [n for n in kept if n != 1] != [a.size for a in self.parallel]:
            return None
        symbols = iter([a.symbol for a in self.parallel])
        coords = [next(symbols) if n != 1 else Integer(0) for n in kept]
        return tuple(c for d, c in enumerate(coords) if reduction.keepdim or d not in reduction.dims)


def _behind(node: Node) -> Node:
    """What ``node`` is a view of, through all that lie between."""
    while node.op != "placeholder" and lower_views.is_alias(node):
        node = node.args[0]
    return node


def _one_of_each_row(gather: Node, here: Coords) -> Coords | None:
    """Where the results of a gather are that takes one element of each row of what is at ``here``: with the row. None
    for other gathers."""
    source, _, index = gather.args[:3]
    dim = argument(gather, "dim") % max(len(here), 1)
    rows = tuple(1 if d == dim else n for d, n in enumerate(shape_of(source)))
    return tuple(Integer(0) if d == dim else c for d, c in enumerate(here)) if shape_of(index) == rows else None
