"""Rows cut into segments where a group reduces both whole rows and parts of them.

A norm followed by a quantisation in groups of 128, or heads that are normalised inside of a normalised row: the row's
axis is cut where the shorter reductions begin and end, so that each of them goes along some of the axes of the same
nest.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

from sympy import Expr, Symbol
from torch.fx import Node

from .index import FloorDiv, Mod, symbol
from .ir import Axis
from .lower_reductions import COMBINED, Reduction, is_reduction, reduction_of
from .lower_slices import MOST_SLICES

#: Longest row of which segments are reduced: what a program can keep on chip.
SEGMENTED_ROW = 1 << 15

Coords = tuple[Expr, ...]


def cut_segments(known: Mapping[Node, Coords], inside: Iterable[Node],
                 axes: tuple[Axis, ...]) -> tuple[tuple[Axis, ...], dict[Symbol, Expr]]:
    """The axes with each reduction axis cut in two where a shorter reduction asks for it, and what each cut axis is in
    the new ones. Axes that nothing cuts stay as they are."""
    sizes = {a.symbol: a.size for a in axes if a.reduction}
    cuts: dict[Symbol, int] = {}
    for node in inside:
        if not is_reduction(node) or node.op == "placeholder":
            continue
        reduction = reduction_of(node)
        coords = known.get(reduction.source) if reduction.source is not None else None
        if coords is None or not needs_axes(reduction):
            continue
        for d in reduction.dims:
            for atom in sorted(coords[d].atoms(FloorDiv, Mod), key=str):
                axis, size = atom.args
                if axis in sizes and sizes[axis] % int(size) == 0:
                    cuts.setdefault(axis, int(size))
    result: list[Axis] = []
    replaced: dict[Symbol, Expr] = {}
    for axis in axes:
        if axis.symbol not in cuts:
            result.append(axis)
            continue
        size = cuts[axis.symbol]
        high, low = symbol(f"{axis.symbol.name}h"), symbol(f"{axis.symbol.name}l")
        result += [replace(axis, symbol=high, size=axis.size // size), replace(axis, symbol=low, size=size)]
        replaced[axis.symbol] = high * size + low
    return tuple(result), replaced


def needs_axes(reduction: Reduction) -> bool:
    """Whether a reduction has too many elements to be written out."""
    return reduction.count > MOST_SLICES or (reduction.count > 1 and reduction.op not in COMBINED)


def axes_placed(reduction: Reduction, coords: Coords, axes: tuple[Axis, ...],
                known: Mapping[Node, Coords]) -> tuple[Axis, ...]:
    """The reduction axes that, where the nest has them, run over the elements of a result at ``coords``; none where it
    hasn't, or has them more than once."""
    places = known.get(reduction.source) if reduction.source is not None else None
    if places is None:
        return ()
    used = {s for d in reduction.dims for s in places[d].free_symbols}
    along = tuple(a for a in _free(coords, axes) if a.symbol in used)
    return along if prod(a.size for a in along) == reduction.count else ()


def axes_along(reduction: Reduction, coords: Coords, axes: tuple[Axis, ...],
               known: Mapping[Node, Coords]) -> tuple[Axis, ...]:
    """`axes_placed`, or else all reduction axes that ``coords`` doesn't use, whatever their sizes."""
    return axes_placed(reduction, coords, axes, known) or _free(coords, axes)


def _free(coords: Coords, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    used = {s for c in coords for s in c.free_symbols}
    return tuple(a for a in axes if a.reduction and a.symbol not in used)
