"""Index maps: for each view-like operator, which element of its input an element of its output is.

``INDEX_MAPS[name](node, coords, ranges) -> (source node, source coordinates)``. ALIASES are the operators that eager
execution doesn't copy for; the others (flip, repeat, …) cost a copy there and are free only inside of a kernel.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from sympy import Expr, Integer
from torch.fx import Node

from .errors import NotLowerable
from .fxinfo import argument, dtype_of, op_name, overload, shape_of, wrap_dim
from .index import Ranges, mod, ravel, unravel

Coords = tuple[Expr, ...]
IndexMap = Callable[[Node, Coords, Ranges], tuple[Node, Coords]]

INDEX_MAPS: dict[str, IndexMap] = {}
ALIASES = frozenset(
    (
        "view reshape _unsafe_view permute transpose t expand unsqueeze squeeze slice select alias detach "
        "getitem diagonal unfold"
    ).split())
#: Operators with several results of which only single ones (by getitem) are ever used as tensors.
SPLITTERS = frozenset(["split", "split_with_sizes", "unbind", "chunk", "tensor_split"])
#: Maps that hit every input element exactly once when the element counts agree.
BIJECTIVE = frozenset("view reshape _unsafe_view permute transpose t unsqueeze squeeze alias detach".split())


def index_map(names: str) -> Callable[[IndexMap], IndexMap]:
    def register(function: IndexMap) -> IndexMap:
        for name in names.split():
            INDEX_MAPS[name] = function
        return function

    return register


def broadcast_coords(coords: Sequence[Expr], shape: Sequence[int]) -> Coords:
    """Coordinates of the element of a tensor of ``shape`` that broadcasting puts at ``coords``."""
    tail = coords[len(coords) - len(shape):]
    return tuple(Integer(0) if size == 1 else c for c, size in zip(tail, shape))


@index_map("alias detach")
def _same(node: Node, coords: Coords, ranges: Ranges):
    return node.args[0], coords


@index_map("view reshape _unsafe_view unsqueeze squeeze view_copy flatten")
def _reshape(node: Node, coords: Coords, ranges: Ranges):
    source = node.args[0]
    new, old = shape_of(node), shape_of(source)
    if [s for s in new if s != 1] == [s for s in old if s != 1]:
        wide = iter([c for c, s in zip(coords, new) if s != 1])
        return source, tuple(next(wide) if s != 1 else Integer(0) for s in old)
    return source, reshape_coords(coords, new, old, ranges)


def reshape_coords(coords: Sequence[Expr], new: Sequence[int], old: Sequence[int], ranges: Ranges) -> Coords:
    """Row-major coordinates in ``old`` of the element at ``coords`` in ``new``, block of dimensions by block.

    Dimensions are matched in the shortest runs with equal products, so that no division crosses a boundary which both
    shapes share.
    """
    result: list[Expr] = []
    i = j = 0
    while i < len(new) or j < len(old):
        i0, j0 = i, j
        new_run = old_run = 1
        if i < len(new):
            new_run, i = new[i], i + 1
        if j < len(old):
            old_run, j = old[j], j + 1
        while new_run != old_run:
            if new_run < old_run:
                new_run, i = new_run * new[i], i + 1
            else:
                old_run, j = old_run * old[j], j + 1
        result.extend(unravel(ravel(coords[i0:i], new[i0:i]), old[j0:j], ranges))
    return tuple(result)


@index_map("permute")
def _permute(node: Node, coords: Coords, ranges: Ranges):
    source, dims = node.args[0], node.args[1]
    result: list[Expr] = [Integer(0)] * len(coords)
    for c, d in zip(coords, dims):
        result[wrap_dim(d, len(coords))] = c
    return source, tuple(result)


@index_map("transpose t")
def _transpose(node: Node, coords: Coords, ranges: Ranges):
    result = list(coords)
    if op_name(node) == "transpose" and coords:
        a, b = (wrap_dim(d, len(coords)) for d in node.args[1:3])
        result[a], result[b] = result[b], result[a]
    else:
        result.reverse()
    return node.args[0], tuple(result)


@index_map("expand expand_copy")
def _expand(node: Node, coords: Coords, ranges: Ranges):
    return node.args[0], broadcast_coords(coords, shape_of(node.args[0]))


@index_map("slice")
def _slice(node: Node, coords: Coords, ranges: Ranges):
    source = node.args[0]
    shape = shape_of(source)
    dim, start, step = slice_parameters(node, shape)
    result = list(coords)
    result[dim] = result[dim] * step + start
    return source, tuple(result)


def slice_parameters(node: Node, shape: Sequence[int], first: int = 1) -> tuple[int, int, int]:
    """``(dim, start, step)`` of a slice-like call whose ``dim`` argument stands at position ``first``."""
    dim = wrap_dim(argument(node, first, "dim", 0), len(shape))
    start = argument(node, first + 1, "start") or 0
    step = argument(node, first + 3, "step", 1)
    if not all(type(x) is int for x in (start, step)):
        raise NotLowerable(f"{node.name} slices by a value that isn't known")
    start = max(start + shape[dim], 0) if start < 0 else min(start, shape[dim])
    return dim, start, step


@index_map("select")
def _select(node: Node, coords: Coords, ranges: Ranges):
    source, dim, position = node.args[:3]
    if type(position) is not int:
        raise NotLowerable(f"{node.name} selects a position that isn't known")
    shape = shape_of(source)
    dim = wrap_dim(dim, len(shape))
    return source, (*coords[:dim], Integer(position % shape[dim]), *coords[dim:])


@index_map("getitem")
def _getitem(node: Node, coords: Coords, ranges: Ranges):
    whole, position = node.args
    if op_name(whole) not in SPLITTERS:
        raise NotLowerable(f"{node.name} takes a part of {whole.name}, which isn't a split")
    source = whole.args[0]
    shape = shape_of(source)
    if op_name(whole) == "unbind":
        dim = wrap_dim(argument(whole, 1, "dim", 0), len(shape))
        return source, (*coords[:dim], Integer(position), *coords[dim:])
    dim = wrap_dim(argument(whole, 2, "dim", 0), len(shape))
    start = sum(v.shape[dim] for v in whole.meta["val"][:position])
    return source, (*coords[:dim], coords[dim] + int(start), *coords[dim + 1:])


@index_map("flip")
def _flip(node: Node, coords: Coords, ranges: Ranges):
    shape = shape_of(node)
    flipped = {wrap_dim(d, len(shape)) for d in node.args[1]}
    return node.args[0], tuple(n - 1 - c if d in flipped else c for d, (c, n) in enumerate(zip(coords, shape)))


@index_map("roll")
def _roll(node: Node, coords: Coords, ranges: Ranges):
    return node.args[0], _rolled(node, coords, ranges, -1)


def _rolled(node: Node, coords: Coords, ranges: Ranges, sign: int) -> Coords:
    """Coordinates that a roll moves, with ``sign`` 1, the element at ``coords`` to, or, with -1, from."""
    shape, shifts, dims = shape_of(node), argument(node, 1, "shifts"), argument(node, 2, "dims", [])
    shifts, dims = ([v] if isinstance(v, int) else list(v) for v in (shifts, dims))
    if not dims:
        position = mod(ravel(coords, shape) + sign * shifts[0] % prod(shape), prod(shape), ranges)
        return tuple(unravel(position, shape, ranges))
    moved = list(coords)
    for shift, dim in zip(shifts, dims):
        d = wrap_dim(dim, len(shape))
        moved[d] = mod(moved[d] + sign * shift % shape[d], shape[d], ranges)
    return tuple(moved)


@index_map("repeat")
def _repeat(node: Node, coords: Coords, ranges: Ranges):
    shape = shape_of(node.args[0])
    tail = coords[len(coords) - len(shape):]
    return node.args[0], tuple(mod(c, n, ranges) for c, n in zip(tail, shape))


@index_map("diagonal")
def _diagonal(node: Node, coords: Coords, ranges: Ranges):
    source = node.args[0]
    rank = len(shape_of(source))
    offset = argument(node, 1, "offset", 0)
    a, b = wrap_dim(argument(node, 2, "dim1", 0), rank), wrap_dim(argument(node, 3, "dim2", 1), rank)
    rest = iter(coords[:-1])
    along = {a: coords[-1] + max(-offset, 0), b: coords[-1] + max(offset, 0)}
    return source, tuple(along[d] if d in along else next(rest) for d in range(rank))


@index_map("unfold")
def _unfold(node: Node, coords: Coords, ranges: Ranges):
    source, dim, _, step = node.args
    if not shape_of(source):
        return source, ()
    dim = wrap_dim(dim, len(shape_of(source)))
    result = list(coords[:-1])
    result[dim] = result[dim] * step + coords[-1]
    return source, tuple(result)


def is_alias(node: Node) -> bool:
    """Whether ``node`` is a view that a kernel can read through and that costs nothing outside of one."""
    name = op_name(node)
    if name == "getitem":
        return op_name(node.args[0]) in SPLITTERS
    return name in ALIASES or name in SPLITTERS


def is_reinterpretation(node: Node) -> bool:
    """Whether ``node`` sees the memory of its input as another type."""
    return op_name(node) in ("view", "view_copy") and overload(node) == "dtype" and dtype_of(node) != dtype_of(
        node.args[0])


def forward_coords(node: Node, coords: Coords, ranges: Ranges) -> Coords | None:
    """Coordinates in the view ``node`` of the element that is at ``coords`` in its input; None if there may be
    several or none."""
    name = op_name(node)
    if name == "flip":
        return _flip(node, coords, ranges)[1]
    if name == "roll":
        return _rolled(node, coords, ranges, 1)
    old, new = shape_of(node.args[0]), shape_of(node)
    if name == "select" and old[dim := wrap_dim(node.args[1], len(old))] == 1:
        return (*coords[:dim], *coords[dim + 1:])
    if name not in BIJECTIVE:
        return None
    if name in ("alias", "detach"):
        return coords
    if name == "permute":
        return tuple(coords[wrap_dim(d, len(coords))] for d in node.args[1])
    if name in ("transpose", "t"):
        return _transpose(node, coords, ranges)[1]
    return reshape_coords(coords, old, new, ranges)
