"""Which axes a nest runs over, and where that puts the nodes of its group."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from sympy import Expr, Integer
from torch.fx import Node

from . import lower_pointwise, lower_views
from .builder import NestBuilder
from .fxinfo import numel_of, op_name, shape_of, value_of
from .index import ravel, symbol, unravel
from .ir import Axis
from .lower_reductions import Reduction, is_reduction, reduction_of, source_coords
from .lower_scans import is_scan, rows_of
from .lower_slices import MOST_SLICES, follow_slices, visits_once
from .lower_strips import along_rows, cut_strips, strip_sizes

Coords = tuple[Expr, ...]


@dataclass
class Domain:
    """The axes of a nest being built, and the coordinates of the nodes that follow one to one from what it visits, or
    slice by slice."""

    builder: NestBuilder
    coords: dict[Node, Coords]
    slices: Mapping[Node, tuple[Coords, ...]]

    def placed(self, node: Node) -> Coords | None:
        """Coordinates at which this nest visits each element of ``node`` exactly once, or None."""
        coords = self.coords.get(node)
        if coords is None:
            return None
        axes = self.builder.axes
        symbols = {s for c in coords for s in c.free_symbols}
        parallel = {a.symbol for a in axes if not a.reduction}
        if symbols == parallel and numel_of(node) == prod(a.size for a in axes if not a.reduction):
            return coords
        for visited in (axes, [a for a in axes if not a.strip]):
            if symbols == {a.symbol for a in visited} and numel_of(node) == prod(a.size for a in visited):
                return coords
        return None

    def sliced(self, node: Node) -> tuple[Coords, ...] | None:
        """Coordinates at which, one after the other, this nest visits each element of ``node`` once, or None."""
        axes, slices = self.builder.axes, self.slices.get(node)
        for visited in ([a for a in axes if not a.reduction], axes):
            if slices and visits_once(slices, node, self.builder.ranges, {a.symbol for a in visited}):
                return slices
        return None

    def counted(self, node: Node) -> Coords | None:
        """The elements of ``node`` in the order of the parallel axes, if there are as many."""
        axes = [a for a in self.builder.axes if not a.reduction]
        sizes = [a.size for a in axes]
        if prod(sizes) != numel_of(node):
            return None
        return unravel(ravel([a.symbol for a in axes], sizes), shape_of(node), self.builder.ranges)

    def alike(self, node: Node) -> Coords | None:
        """The elements of ``node`` along the axes, if those are the dimensions of ``node`` and nothing is reduced."""
        sizes = [a.size for a in self.builder.axes]
        if any(a.kind != "parallel" for a in self.builder.axes) or sizes != [n for n in shape_of(node) if n != 1]:
            return None
        symbols = iter([a.symbol for a in self.builder.axes])
        return tuple(next(symbols) if n != 1 else Integer(0) for n in shape_of(node))


def _axes(shape: tuple[int, ...], reduced: tuple[int, ...]) -> tuple[tuple[Axis, ...], Coords]:
    """Axes over a tensor of ``shape`` with the dimensions ``reduced`` as reduction axes, and its coordinates."""
    axes, coords = [], []
    for d, size in enumerate(shape):
        if size == 1:
            coords.append(Integer(0))
            continue
        axis = Axis(symbol(f"{'r' if d in reduced else 'p'}{d}"), size, d in reduced)
        axes.append(axis)
        coords.append(axis.symbol)
    return tuple(sorted(axes, key=lambda a: a.reduction)), tuple(coords)


def _spread(start: Node, coords: Coords, inside: set[Node], ranges: dict, axes: tuple[Axis, ...]) -> dict[Node, Coords]:
    """Coordinates of every node of the group that follow one to one from those of ``start``."""
    known = {start: coords}
    work = [start]
    reduction_symbols = tuple(a.symbol for a in axes if a.reduction)
    reduced_sizes = tuple(a.size for a in axes if a.reduction)

    def learn(node: Node, found: Coords | None) -> None:
        if found is not None and node not in known and (node in inside):
            known[node] = found
            work.append(node)

    while work:
        node = work.pop()
        here = known[node]
        for user in node.users:
            if user not in inside or not isinstance(value_of(user), torch.Tensor):
                continue
            if is_reduction(user) and reduction_of(user).source is node:
                reduction = reduction_of(user)
                kept = tuple((Integer(0) if reduction.keepdim else None) if d in reduction.dims else c
                             for d, c in enumerate(here))
                learn(user, tuple(c for c in kept if c is not None))
            elif op_name(user) in lower_pointwise.RULES or op_name(user) == "copy_" or is_scan(user):
                if shape_of(user) == shape_of(node):
                    learn(user, here)
            elif op_name(user) in lower_views.INDEX_MAPS and user.args[0] is node:
                learn(user, lower_views.forward_coords(user, here, ranges))
        if node.op == "placeholder":
            continue
        if op_name(node) in lower_pointwise.RULES or is_scan(node):
            for source in node.all_input_nodes:
                learn(source, lower_views.broadcast_coords(here, shape_of(source)))
        elif is_reduction(node):
            reduction = reduction_of(node)
            inside_row = any(s in reduction_symbols for c in here for s in c.free_symbols)
            same = tuple(s for s in reduction.sizes if s != 1) == reduced_sizes
            if reduction.source is not None and same and not inside_row:
                symbols = iter(reduction_symbols)
                inner = tuple(next(symbols) if s != 1 else Integer(0) for s in reduction.sizes)
                learn(reduction.source, source_coords(reduction, here, inner))
        elif op_name(node) != "unfold" and lower_views.is_alias(node):  # windows may overlap, however many there are
            source, inner = lower_views.INDEX_MAPS[op_name(node)](node, here, ranges)
            if isinstance(source, Node) and numel_of(source) == numel_of(node):
                learn(source, inner)
    return known


def _ancestors(node: Node, buffers: dict[Node, str]) -> list[Node]:
    """Nodes that ``node`` needs, itself first, buffers left out, nearest first."""
    seen, work = {node: None}, [node]
    while work:
        for source in work.pop(0).all_input_nodes:
            if source not in seen and source not in buffers:
                seen[source] = None
                work.append(source)
    return list(seen)


def _needed_rows(node: Node, buffers: dict[Node, str]) -> list[Reduction]:
    """Rows of the reductions and scans that ``node`` needs."""
    return [r for n in _ancestors(node, buffers) if (r := rows_of(n)) is not None]


def _width(reduction: Reduction) -> tuple[bool, int]:
    """How much a reduction speaks for its space: short ones can be written out in any other."""
    return reduction.count > MOST_SLICES, prod(reduction.shape)


def reduced_elements(node: Node, buffers: dict[Node, str]) -> int:
    """Elements that go into the widest reduction or scan that ``node`` needs; 0 if it needs none."""
    return max(map(_width, _needed_rows(node, buffers)), default=(False, 0))[1]


def widest_across(node: Node, buffers: dict[Node, str]) -> bool:
    """Whether the widest reductions that ``node`` needs all go down columns."""
    found = _needed_rows(node, buffers)
    widest = max(map(_width, found), default=None)
    return not any(along_rows(r) for r in found if _width(r) == widest)


def open_domain(target: Node, inside: set[Node], buffers: dict[Node, str], eager_rounding: bool) -> Domain:
    """A domain for ``target``: the space of the widest reduction or scan that it needs, else its own elements."""
    reductions = _needed_rows(target, buffers)
    if reductions:
        reduction = max(reductions, key=lambda r: (_width(r), along_rows(r)))
        axes, coords = _axes(reduction.shape, reduction.dims)
        start = reduction.source or reduction.node
        if reduction.source is None:
            coords = tuple(c for d, c in enumerate(coords) if d not in reduction.dims)
    else:
        start = target
        axes, coords = _axes(shape_of(start), ())
    builder = NestBuilder(axes, eager_rounding)
    known = _spread(start, coords, inside, builder.ranges, axes)
    cuts = strip_sizes(known, inside, axes) if reductions and along_rows(reduction) else {}
    if cuts:
        axes, replaced = cut_strips(axes, cuts)
        builder = NestBuilder(axes, eager_rounding)
        known = _spread(start, tuple(c.xreplace(replaced) for c in coords), inside, builder.ranges, axes)
    return Domain(builder, known, follow_slices(known, (n for n in target.graph.nodes if n in inside), builder.ranges))
