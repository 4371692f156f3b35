"""Which axes a nest runs over, and where that puts the nodes of its group."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from sympy import Expr, Integer, Symbol
from torch.fx import Node

from .builder import NestBuilder
from .fxinfo import numel_of, shape_of, value_of
from .index import ravel, symbol, unravel
from .ir import Axis
from .lower_cutouts import follow_cutouts, visits_cutout
from .lower_needs import RowNeeds, row_length, width
from .lower_places import places
from .lower_reductions import COMBINED, Reduction
from .lower_segments import cut_segments
from .lower_slices import MOST_SLICES, follow_slices, visits_once
from .lower_strips import along_rows, cut_strips, strip_sizes

Coords = tuple[Expr, ...]

#: How often axes are cut in two for the shorter reductions of a group.
MOST_CUTS = 3
#: Longest row of which the columns are values of their own.
MOST_COLUMNS = 4
#: Elements for each result of a few elements' reduction, at most, that each reduce these elements anew; and for each
#: one of those, where they lie in such rows.
MOST_SPREAD, IN_COLUMNS = 2, 4


@dataclass
class Domain:
    """The axes of a nest being built, and the coordinates of the nodes that follow one to one from what it visits,
    slice by slice, or as a part of it; where the axes are laid out for results of one shape, ``own`` is that shape and
    their coordinates."""

    builder: NestBuilder
    coords: dict[Node, Coords]
    slices: Mapping[Node, tuple[Coords, ...]]
    cutouts: Mapping[Node, Coords]
    own: tuple[tuple[int, ...], Coords] | None = None
    folded: bool = False  # of parts of rows, to which what there is one of for each row has no way one to one

    def placed(self, node: Node, in_place: bool = False) -> Coords | None:
        """Coordinates at which this nest visits each element of ``node`` exactly once, or None. What is written
        ``in_place`` isn't visited at the results of segments: another point of the row might read it afterwards."""
        coords = self.coords.get(node)
        if coords is None:
            return None
        axes = self.builder.axes
        symbols = {s for c in coords for s in c.free_symbols}
        parallel = {a.symbol for a in axes if not a.reduction}
        if symbols == parallel and numel_of(node) == prod(a.size for a in axes if not a.reduction):
            return coords
        for visited in (axes, [a for a in axes if not a.strip], [a for a in axes if a.kind == "parallel"]):
            if symbols == {a.symbol for a in visited} and numel_of(node) == prod(a.size for a in visited):
                return coords
        if in_place or any(a.strip for a in axes) or not parallel < symbols:
            return None
        segments = prod(a.size for a in axes if a.symbol in symbols)
        return coords if symbols <= {a.symbol for a in axes} and numel_of(node) == segments else None

    def sliced(self, node: Node) -> tuple[Coords, ...] | None:
        """Coordinates at which, one after the other, this nest visits each element of ``node`` once, or None."""
        axes, slices = self.builder.axes, self.slices.get(node)
        for visited in ([a for a in axes if not a.reduction], axes):
            if slices and visits_once(slices, node, self.builder.ranges, {a.symbol for a in visited}):
                return slices
        return None

    def cut_out(self, node: Node) -> Coords | None:
        """Coordinates at which this nest visits each element of ``node`` once, and others that it hasn't, or None."""
        coords = self.cutouts.get(node)
        return coords if coords is not None and visits_cutout(node, coords, self.builder.ranges) else None

    def counted(self, node: Node) -> Coords | None:
        """The elements of ``node`` in the order of the parallel axes, if there are as many."""
        axes = [a for a in self.builder.axes if not a.reduction]
        sizes = [a.size for a in axes]
        if prod(sizes) != numel_of(node):
            return None
        return unravel(ravel([a.symbol for a in axes], sizes), shape_of(node), self.builder.ranges)

    def alike(self, node: Node) -> Coords | None:
        """The elements of ``node`` along the axes, or one for each row, if those are the dimensions of ``node`` or were
        laid out for a node of that shape."""
        if self.own is not None and self.own[0] == shape_of(node):
            return self.own[1]
        axes = [a for a in self.builder.axes if not a.reduction]
        if any(a.strip for a in axes) or [a.size for a in axes] != [n for n in shape_of(node) if n != 1]:
            return None
        symbols = iter([a.symbol for a in axes])
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


def folded_domain(target: Node, inside: set[Node], needs: RowNeeds, eager_rounding: bool) -> Domain | None:
    """A domain of the elements of ``target`` where each is computed from several slices of a row that the target
    reduces (gates, each of its part of a normalised row): what is reduced is summed over the slices first. None where
    the target has no such form."""
    reductions = needs.rows(target)
    shape = shape_of(target)
    widest = max(reductions, key=width, default=None)
    if widest is None or not shape or widest.dims != (len(shape) - 1,) or widest.shape[:-1] != shape[:-1]:
        return None
    folds = widest.count // shape[-1]
    whole = all(r.op in COMBINED and r.source is not None for r in reductions if r.count > MOST_SLICES)
    if not whole or shape[-1] <= MOST_SLICES or folds * shape[-1] != widest.count or not 1 < folds <= MOST_SLICES:
        return None
    axes, coords = _axes(shape, (len(shape) - 1,))
    builder = NestBuilder(axes, eager_rounding)
    return Domain(builder, places(target, coords, inside, builder.ranges, axes), {}, {}, folded=True)


def _nearest(reduction: Reduction, coords: Coords, axes: tuple[Axis, ...]) -> Symbol:
    """The axis along which what is reduced, at ``coords``, has its neighbours in memory; of a matrix product, whose
    factors lie in two places, the last one."""
    if reduction.source is None:
        return axes[-1].symbol
    value = value_of(reduction.source)
    return coords[min((d for d, n in enumerate(value.shape) if n > 1), key=value.stride)]


def open_domain(target: Node, inside: set[Node], needs: RowNeeds, eager_rounding: bool) -> Domain:
    """A domain for ``target``: the space of the widest reduction or scan that it needs, else its own elements."""
    domain = _opened(target, inside, needs, eager_rounding, _widest)
    assert domain is not None
    return domain


def strip_domain(target: Node, inside: set[Node], needs: RowNeeds, eager_rounding: bool) -> Domain | None:
    """The same with strips over which what there is one of for each row is reduced; None where there is no such."""
    return _opened(target, inside, needs, eager_rounding, _widest, once_a_row=True)


def first_domain(target: Node, inside: set[Node], needs: RowNeeds, eager_rounding: bool) -> Domain | None:
    """The same for rows that are reduced before other ones are, wherever their elements lie, and strips over which
    those are: the probabilities of a few classes for each pixel, and the sums over all pixels for each class."""
    if len(needs.rows(target)) < 2:
        return None
    return _opened(target, inside, needs, eager_rounding, _first)


def own_domain(target: Node, inside: set[Node], needs: RowNeeds, eager_rounding: bool,
               beside: tuple[Reduction, ...] = ()) -> Domain | None:
    """A domain of the elements of ``target`` where these aren't those that it reduces, or that others do ``beside`` it:
    as many to each reduced row, or a few times fewer, computed from others of the row than their own (pairs that a
    normalised row is rotated in, an image's pooling beside its mean); or what it reduces written out, if that are few
    elements everywhere. None where the target has no such form."""
    reductions, shape = beside or needs.rows(target), shape_of(target)
    if not reductions or any(r.op not in COMBINED or r.source is None for r in reductions):
        return None
    widest = max(reductions, key=width)
    if widest.count <= MOST_SLICES:
        few = all(prod(r.shape) <= MOST_SLICES for r in reductions)  # next to nothing, however often it is computed
        elements = prod(widest.shape)
        short = bool(shape) and 1 < shape[-1] <= MOST_COLUMNS
        most = IN_COLUMNS * elements if short else MOST_SPREAD * (elements // widest.count)
        if numel_of(target) > most and not few:
            return None
        axes, coords = _axes(shape, ())
    else:
        rows = tuple(n for d, n in enumerate(widest.shape) if d not in widest.dims)
        row, rest = divmod(numel_of(target), prod(rows))
        if rest or row < 2 or widest.count % row or widest.count > MOST_SLICES * row or any(
                r.count != widest.count for r in reductions if r.count > MOST_SLICES):
            return None
        axes, along = _axes((*rows, row), (len(rows),))
        ranges = {a.symbol: a.size for a in axes}
        coords = unravel(ravel(along, (*rows, row)), shape, ranges)
    builder = NestBuilder(axes, eager_rounding)
    return Domain(builder, places(target, coords, inside, builder.ranges, axes), {}, {}, (shape, coords))


def column_domain(target: Node, inside: set[Node], needs: RowNeeds, eager_rounding: bool) -> Domain | None:
    """A domain of the rows of ``target`` where these are few numbers, as a box or a point is: its columns are values of
    their own, under no conditions, and so are those of others of its shape. None where rows are long or reduced."""
    shape = shape_of(target)
    if len(shape) < 2 or not 1 < shape[-1] <= MOST_COLUMNS or needs.rows(target):
        return None
    axes, coords = _axes(shape[:-1], ())
    alone = [n for n in inside if isinstance(value_of(n), torch.Tensor) and not needs.rows(n)]
    columns = tuple((*coords, Integer(k)) for k in range(shape[-1]))
    rows = {n: coords for n in alone if shape_of(n) == shape[:-1]}
    return Domain(NestBuilder(axes, eager_rounding), rows, {n: columns for n in alone if shape_of(n) == shape}, {})


def _widest(reductions: Sequence[Reduction]) -> Reduction:
    return max(reductions, key=lambda r: (width(r), along_rows(r), row_length(r)))


def _first(reductions: Sequence[Reduction]) -> Reduction:
    """Of the widest the one that is needed by way of most others: the last of ``reductions``."""
    widest = max(prod(r.shape) for r in reductions)
    return next(r for r in reversed(reductions) if prod(r.shape) == widest)


def _opened(target: Node, inside: set[Node], needs: RowNeeds, eager_rounding: bool,
            choose: Callable[[Sequence[Reduction]], Reduction], once_a_row: bool = False) -> Domain | None:
    reductions = needs.rows(target)
    if reductions:
        reduction = choose(reductions)
        axes, coords = _axes(reduction.shape, reduction.dims)
        start = reduction.source or reduction.node
        if reduction.source is None:
            coords = tuple(c for d, c in enumerate(coords) if d not in reduction.dims)
    else:
        start = target
        axes, coords = _axes(shape_of(start), ())
    builder = NestBuilder(axes, eager_rounding)
    known = places(start, coords, inside, builder.ranges, axes)
    order = [n for n in target.graph.nodes if n in inside]
    strips = {}
    if reductions and axes and needs.strips:
        strips = strip_sizes(known, order, axes, _nearest(reduction, coords, axes), once_a_row)
    if (once_a_row or choose is _first) and not strips:
        return None
    for _ in range(1 if strips else MOST_CUTS):
        cut, replaced = cut_strips(axes, strips) if strips else cut_segments(known, order, axes)
        if cut == axes:
            break
        axes, coords = cut, tuple(c.xreplace(replaced) for c in coords)
        builder = NestBuilder(axes, eager_rounding)
        known = places(start, coords, inside, builder.ranges, axes)
    return Domain(builder, known, follow_slices(known, order, builder.ranges),
                  follow_cutouts(known, order, builder.ranges) if reductions else {})
