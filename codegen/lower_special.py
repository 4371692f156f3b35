"""Rules for operators that aren't elementwise: constants from positions, concatenation, padding, gathers.

``RULES[name](context, node, coords) -> SSA value`` of the element of ``node`` at ``coords``. ``context`` is the
``lower.NestLowering`` that pulls operands.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from sympy import Expr, Integer
from torch.fx import Node

from .errors import NotLowerable
from .fxinfo import argument, dtype_of, op_name, overload, shape_of, wrap_dim
from .index import bounds, floordiv, mod, ravel
from .lower_pieces import pieces as concatenated
from .lower_views import broadcast_coords, slice_parameters

if TYPE_CHECKING:
    from .lower import NestLowering

Coords = tuple[Expr, ...]
Rule = Callable[["NestLowering", Node, Coords], str]
RULES: dict[str, Rule] = {}
#: Operators whose result is memory that nobody has written yet.
UNWRITTEN = frozenset("empty empty_like empty_strided empty_permuted new_empty new_empty_strided".split())


def rule(names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for name in names.split():
            if name in RULES:
                raise ValueError(f"aten.{name} already has a lowering rule")
            RULES[name] = function
        return function

    return register


def _number(value: object, node: Node) -> int | float | bool:
    if not isinstance(value, int | float | bool):
        raise NotLowerable(f"{node.name} has an argument {value!r} that isn't a plain number")
    return value


@rule("full full_like new_full")
def _full(context: NestLowering, node: Node, coords: Coords) -> str:
    position = 2 if op_name(node) == "new_full" else 1
    return context.builder.const(_number(argument(node, position, "fill_value"), node), dtype_of(node))


@rule("zeros zeros_like new_zeros")
def _zeros(context: NestLowering, node: Node, coords: Coords) -> str:
    return context.builder.const(0, dtype_of(node))


@rule(" ".join(sorted(UNWRITTEN)))
def _empty(context: NestLowering, node: Node, coords: Coords) -> str:
    """What nobody wrote may be anything; what is read of it is zero."""
    return context.builder.const(0, dtype_of(node))


@rule("ones ones_like new_ones")
def _ones(context: NestLowering, node: Node, coords: Coords) -> str:
    return context.builder.const(1, dtype_of(node))


@rule("scalar_tensor")
def _scalar_tensor(context: NestLowering, node: Node, coords: Coords) -> str:
    return context.builder.const(_number(node.args[0], node), dtype_of(node))


@rule("fill")
def _fill(context: NestLowering, node: Node, coords: Coords) -> str:
    value = node.args[1]
    if isinstance(value, Node):
        return context.builder.cast(context.value(value, ()), dtype_of(node))
    return context.builder.const(_number(value, node), dtype_of(node))


@rule("arange iota")
def _arange(context: NestLowering, node: Node, coords: Coords) -> str:
    if op_name(node) == "iota":
        start, step = argument(node, 1, "start", 0), argument(node, 2, "step", 1)
    elif overload(node) in ("start", "start_step"):
        start, step = node.args[0], argument(node, 2, "step", 1)
    else:
        start, step = 0, 1
    b, dtype = context.builder, dtype_of(node)
    if not dtype.is_floating_point:  # start and step are cut to whole numbers, not their sums
        start, step = int(_number(start, node)), int(_number(step, node))
    if type(start) is int and type(step) is int:
        return b.index(coords[0] * step + start, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return b.compute("add", b.const(_number(start, node), wide),
                     b.compute("mul", b.index(coords[0], wide), b.const(_number(step, node), wide)))


@rule("tril triu")
def _triangle(context: NestLowering, node: Node, coords: Coords) -> str:
    b = context.builder
    value = context.value(node.args[0], coords)
    diagonal = argument(node, 1, "diagonal", 0)
    distance = b.index(coords[-1] - coords[-2], torch.int32)
    keep = b.compute("le" if op_name(node) == "tril" else "ge", distance, b.const(diagonal, torch.int32))
    return b.where(keep, value, b.const(0, b.dtypes[value]))


def in_range(context: NestLowering, c: Expr, low: int | None, high: int | None) -> str | bool:
    """The condition ``low <= c < high``; True or False where the ranges of the axes decide it."""
    b, extent = context.builder, bounds(c, context.builder.ranges)
    above: str | None = None
    if low is not None and not (extent and extent[0] >= low):
        if extent and extent[1] < low:
            return False
        above = b.compute("ge", b.index(c, torch.int32), b.const(low, torch.int32))
    if high is not None and not (extent and extent[1] < high):
        if extent and extent[0] >= high:
            return False
        below = b.compute("lt", b.index(c, torch.int32), b.const(high, torch.int32))
        return b.both(above, below)
    return True if above is None else above


@rule("cat concat")
def _cat(context: NestLowering, node: Node, coords: Coords) -> str:
    rank = len(shape_of(node))
    pieces = concatenated(node)
    dim = wrap_dim(argument(node, 1, "dim", 0), rank)
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + shape_of(piece)[dim])
    parts: list[tuple[str | bool, str]] = []
    for piece, low, high in zip(pieces, starts, starts[1:]):
        inside = in_range(context, coords[dim], low or None, high if high < starts[-1] else None)
        if inside is False or low == high:
            continue
        shifted = (*coords[:dim], coords[dim] - low, *coords[dim + 1:])
        value = context.masked(inside, piece, shifted)
        parts.append((inside, context.builder.cast(value, dtype_of(node))))
    result = parts[-1][1]
    for inside, value in reversed(parts[:-1]):
        assert isinstance(inside, str)
        result = context.builder.where(inside, value, result)
    return result


@rule("stack")
def _stack(context: NestLowering, node: Node, coords: Coords) -> str:
    pieces, dim = node.args[0], wrap_dim(argument(node, 1, "dim", 0), len(shape_of(node)))
    inner, c = (*coords[:dim], *coords[dim + 1:]), coords[dim]
    result = None
    for position in reversed(range(len(pieces))):
        inside = in_range(context, c, position or None, position + 1 if position + 1 < len(pieces) else None)
        if inside is False:
            continue
        value = context.builder.cast(context.masked(inside, pieces[position], inner), dtype_of(node))
        result = value if result is None or inside is True else context.builder.where(inside, value, result)
    assert result is not None
    return result


@rule("constant_pad_nd")
def _pad(context: NestLowering, node: Node, coords: Coords) -> str:
    source, padding = node.args[0], node.args[1]
    shape, rank = shape_of(source), len(shape_of(source))
    conditions: list[str | bool] = []
    shifted = list(coords)
    for k in range(len(padding) // 2):
        d, before = rank - 1 - k, padding[2 * k]
        shifted[d] = coords[d] - before
        conditions.append(in_range(context, shifted[d], 0, shape[d]))
    value = argument(node, 2, "value", None)
    fill = context.builder.const(0 if value is None else _number(value, node), dtype_of(node))
    if False in conditions:
        return fill
    inside: str | None = None
    for condition in conditions:
        if isinstance(condition, str):
            inside = context.builder.both(inside, condition)
    within = context.masked(True if inside is None else inside, source, tuple(shifted))
    return within if inside is None else context.builder.where(inside, within, fill)


@rule("slice_scatter")
def _slice_scatter(context: NestLowering, node: Node, coords: Coords) -> str:
    base, source = node.args[0], node.args[1]
    dim, start, step = slice_parameters(node, shape_of(base), first=2)
    length, b = shape_of(source)[dim], context.builder
    inside = in_range(context, coords[dim], start or None, start + (length - 1) * step + 1)
    outside = context.value(base, coords)
    off = mod(coords[dim] - start, step, b.ranges)
    if inside is False or not length or (off.is_Integer and off != 0):
        return outside
    if off != 0:
        hit = b.compute("eq", b.index(off, torch.int32), b.const(0, torch.int32))
        inside = hit if inside is True else b.both(inside, hit)
    place = floordiv(coords[dim] - start, step, b.ranges)
    value = context.masked(inside, source, (*coords[:dim], place, *coords[dim + 1:]))
    value = context.builder.cast(value, dtype_of(node))
    return value if inside is True else context.builder.where(inside, value, outside)


@rule("select_scatter")
def _select_scatter(context: NestLowering, node: Node, coords: Coords) -> str:
    base, source, dim, position = node.args[:4]
    dim = wrap_dim(dim, len(coords))
    position = position % shape_of(base)[dim]
    inside = in_range(context, coords[dim], position or None, position + 1)
    outside = context.value(base, coords)
    if inside is False:
        return outside
    value = context.masked(inside, source, (*coords[:dim], *coords[dim + 1:]))
    value = context.builder.cast(value, dtype_of(node))
    return value if inside is True else context.builder.where(inside, value, outside)


@rule("diagonal_scatter")
def _diagonal_scatter(context: NestLowering, node: Node, coords: Coords) -> str:
    base, source, rank = node.args[0], node.args[1], len(coords)
    offset = argument(node, 2, "offset", 0)
    row, column = (wrap_dim(argument(node, 3 + k, f"dim{k + 1}", k), rank) for k in range(2))
    b = context.builder
    distance = b.index(coords[column] - coords[row], torch.int32)
    hit = b.compute("eq", distance, b.const(offset, torch.int32))
    along = coords[row] if offset >= 0 else coords[column]
    rest = tuple(c for d, c in enumerate(coords) if d not in (row, column))
    value = b.cast(context.masked(hit, source, (*rest, along)), dtype_of(node))
    return b.where(hit, value, context.value(base, coords))


@rule("embedding")
def _embedding(context: NestLowering, node: Node, coords: Coords) -> str:
    weight, indices = node.args[0], node.args[1]
    rows, rank = shape_of(weight)[0], len(shape_of(indices))
    row = context.gathered(indices, coords[:rank], rows, negative=False)
    return context.value(weight, (row, coords[rank]))


@rule("index_select")
def _index_select(context: NestLowering, node: Node, coords: Coords) -> str:
    source, dim, indices = node.args[:3]
    shape = shape_of(source)
    if not shape:
        return context.value(source, ())
    dim = wrap_dim(dim, len(shape))
    where = (coords[dim],) if shape_of(indices) else ()
    picked = context.gathered(indices, where, shape[dim], negative=False)
    return context.value(source, (*coords[:dim], picked, *coords[dim + 1:]))


@rule("gather")
def _gather(context: NestLowering, node: Node, coords: Coords) -> str:
    source, dim, indices = node.args[:3]
    shape = shape_of(source)
    if not shape:
        return context.value(source, ())
    dim = wrap_dim(dim, len(shape))
    picked = context.gathered(indices, coords, shape[dim], negative=False)
    return context.value(source, (*coords[:dim], picked, *coords[dim + 1:]))


@rule("index _unsafe_index")
def _index(context: NestLowering, node: Node, coords: Coords) -> str:
    source, indices = node.args[0], list(node.args[1])
    shape = shape_of(source)
    indices += [None] * (len(shape) - len(indices))
    tensors = [(d, i) for d, i in enumerate(indices) if i is not None]
    if any(dtype_of(i) in (torch.bool, torch.uint8) for _, i in tensors):
        raise NotLowerable(f"{node.name} indexes by a mask: the size of its result depends on data")
    picked_shape = tuple(torch.broadcast_shapes(*[shape_of(i) for _, i in tensors]))
    dims = [d for d, _ in tensors]
    together = dims == list(range(dims[0], dims[0] + len(dims)))
    at = dims[0] if together else 0
    where = coords[at:at + len(picked_shape)]
    rest = iter((*coords[:at], *coords[at + len(picked_shape):]))
    result: list[Expr] = []
    for d in range(len(shape)):
        if indices[d] is None:
            result.append(next(rest))
        else:
            inner = broadcast_coords(where, shape_of(indices[d]))
            result.append(context.gathered(indices[d], inner, shape[d], negative=True))
    return context.value(source, tuple(result))


@rule("philox")
def _philox(context: NestLowering, node: Node, coords: Coords) -> str:
    seeds, stream, size, word = node.args
    b = context.builder
    seed = context.value(seeds, (Integer(stream),))
    return b.compute(f"philox{word}", seed, b.index(ravel(coords, size), torch.int64), dtype=torch.int32)
