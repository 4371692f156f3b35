"""Rows cut into strips where a group reduces both along the rows and down the columns of one input.

A norm's backward needs sums along each row (for the input's gradient) and down the columns (for the weight's), scales
of a quantised matrix and its transpose need maxima so. One program that goes through a strip of rows, and keeps what
the columns have come to, reads the input once for both. What there is one of for each row, as a loss has, is summed
over a strip on the way.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from sympy import Add, Expr, Symbol
from torch.fx import Node

from .errors import NotLowerable
from .fxinfo import value_of
from .index import Mod, symbol
from .ir import DOWN_STRIPS, Axis, Nest, Reduce, Stmt, Store, operands
from .lower_reductions import Reduction, is_reduction
from .lower_scans import is_scan, rows_of
from .sweeps import names_after_strips

Coords = tuple[Expr, ...]

#: Fewest strips over which what there is one of for each row is summed on the way: fewer don't keep a device busy.
FEWEST_STRIPS = 128


def along_rows(reduction: Reduction) -> bool:
    """Whether a reduction goes along the dimension whose neighbours are neighbours in memory."""
    if reduction.source is None:
        return True
    value = value_of(reduction.source)
    wide = [d for d in range(value.dim()) if value.shape[d] > 1]
    return bool(wide) and min(wide, key=value.stride) in reduction.dims


def strip_sizes(known: Mapping[Node, Coords], inside: Iterable[Node], axes: tuple[Axis, ...], nearest: Symbol,
                once_a_row: bool) -> dict[Symbol, int]:
    """The parallel axes of a row reduction's space over which the group also reduces or scans, each with how many of
    its last places: all of the axis, or a part of it where there are several results along it. Empty without such.

    Rows or strips go along ``nearest``, the axis along which neighbours are neighbours in memory. Columns are reduced,
    or, with ``once_a_row``, what there is one of for each row."""
    rows = {a.symbol for a in axes if a.reduction}
    sizes = {a.symbol: a.size for a in axes}
    for node in inside:
        reduction = rows_of(node) if node.op != "placeholder" and (is_reduction(node) or is_scan(node)) else None
        if reduction is None or reduction.source not in known or not (reduction.op in DOWN_STRIPS or is_scan(node)):
            continue
        coords = known[reduction.source]
        kept = {s for d, c in enumerate(coords) if d not in reduction.dims for s in c.free_symbols}
        single = (not rows & {s for c in coords for s in c.free_symbols} and not is_scan(node)
                  and prod(reduction.shape) // reduction.count >= FEWEST_STRIPS)
        cuts = [_cuts(coords[d], sizes, reduction.shape[d]) for d in reduction.dims if reduction.shape[d] > 1]
        found = {axis: size for cut in cuts for axis, size in cut.items()}
        if not cuts or not all(cuts) or rows & found.keys():
            continue
        near = nearest in rows or nearest in found
        if near and (single if once_a_row else rows <= kept):
            return found
    return {}


def _cuts(coordinate: Expr, sizes: Mapping[Symbol, int], size: int) -> dict[Symbol, int]:
    """The axes that run over a dimension of ``size`` places, each with how many of its last places: all of them, or a
    part where the axis goes on beyond the dimension. Empty where it isn't axes, one within the other."""
    found: dict[Symbol, int] = {}
    coefficients = {factor: c for c, factor in (t.as_coeff_Mul() for t in Add.make_args(coordinate))}
    stride = 1
    for factor, coefficient in sorted(coefficients.items(), key=lambda item: item[1]):
        axis, part = factor.args if isinstance(factor, Mod) else (factor, sizes.get(factor, 0))
        part = int(part)
        if axis not in sizes or axis in found or coefficient != stride or not part or sizes[axis] % part:
            return {}
        found[axis] = part
        stride *= part
    return found if stride == size else {}


def cut_strips(axes: tuple[Axis, ...], cuts: Mapping[Symbol, int]) -> tuple[tuple[Axis, ...], dict[Symbol, Expr]]:
    """The axes with strips of these sizes, and what each cut axis is in them."""
    parallel: list[Axis] = []
    strip: list[Axis] = []
    replaced: dict[Symbol, Expr] = {}
    for axis in axes:
        size = cuts.get(axis.symbol)
        if size is None:
            parallel.append(axis)
        elif size == axis.size:
            strip.append(replace(axis, strip=True))
        else:
            high, low = symbol(f"{axis.symbol.name}h"), symbol(f"{axis.symbol.name}l")
            parallel.append(Axis(high, axis.size // size))
            strip.append(Axis(low, size, strip=True))
            replaced[axis.symbol] = high * size + low
    order = ("parallel", "strip", "reduction")
    return tuple(sorted((*parallel, *strip), key=lambda a: order.index(a.kind))), replaced


def refuse_early_sums(body: Sequence[Stmt], axes: tuple[Axis, ...], value: str, place: Coords) -> None:
    """Raise NotLowerable if ``value``, which goes to ``place``, needs at a row of a strip what is known only after the
    strip's last row, or after it what is reduced along a row."""
    if not any(a.strip for a in axes):
        return
    nest = Nest(axes, tuple(body))
    late, strip = names_after_strips(nest), {a.symbol for a in nest.strip}
    if value in late and any(c.free_symbols & strip for c in place):
        raise NotLowerable("a column's sum would be stored at each row of its strip")
    made = {s.name: s for s in body if not isinstance(s, Store)}
    after = [value] if value in late else []
    for name in after:
        stmt = made[name]
        if isinstance(stmt, Reduce) and not stmt.strip:
            raise NotLowerable("a row's result would be needed after the last row of its strip")
        after += [n for n in operands(stmt) if n not in after] if not isinstance(stmt, Reduce) else []
    work, seen = [value], {value}
    while work:
        stmt = made[work.pop()]
        if isinstance(stmt, Store):
            continue
        early = stmt.name in late and bool(nest.scopes[stmt.name] & strip)
        if early or (isinstance(stmt, Reduce) and stmt.value in late):
            raise NotLowerable("a column's sum would be needed before the last row of its strip")
        work += [n for n in operands(stmt) if n not in seen]
        seen.update(operands(stmt))
