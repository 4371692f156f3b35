"""Which ATen operators are reductions, over which dimensions, and what surrounds the sum or maximum."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from sympy import Expr, Symbol
from torch.fx import Node

from .builder import NestBuilder
from .errors import NotLowerable
from .fxinfo import argument, dtype_of, op_name, reduced_dims, shape_of
from .ir import compute_dtype
from .lower_contractions import is_contraction, product_shape
from .online import exponentials_down_strip

#: operator -> IR reduction
REDUCTION_OPS = {"sum": "sum", "mean": "sum", "prod": "prod", "amax": "max", "amin": "min", "max": "max", "min": "min",
                 "any": "any", "all": "all", "argmax": "argmax", "argmin": "argmin"}

#: IR reduction -> the operation that joins two elements of it, where that is all there is to it
COMBINED = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}


@dataclass(frozen=True)
class Reduction:
    """``op`` over the dimensions ``dims`` of a space of ``shape``: the elements of ``source``, or, where that is None,
    the products of a contraction."""

    node: Node
    source: Node | None
    shape: tuple[int, ...]
    op: str
    dims: tuple[int, ...]
    keepdim: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the reduced dimensions."""
        return tuple(self.shape[d] for d in self.dims)

    @property
    def count(self) -> int:
        """Elements that go into one result."""
        return prod(self.sizes)


def neutral(op: str, dtype: torch.dtype) -> int | float | bool:
    """What an element of compute type ``dtype`` has to be for a reduction in `COMBINED` not to see it."""
    if op in ("sum", "prod", "any", "all"):
        return int(op in ("prod", "all"))
    if dtype.is_floating_point:
        return float("-inf") if op == "max" else float("inf")
    if dtype == torch.bool:
        return op == "min"
    return torch.iinfo(dtype).min if op == "max" else torch.iinfo(dtype).max


def is_reduction(node: Node) -> bool:
    """Whether ``node`` is a reduction that lowers to ``Reduce``."""
    name = op_name(node)
    if name not in REDUCTION_OPS:
        return is_contraction(node)
    if name in ("max", "min"):  # max.dim gives two results and max.other is elementwise
        return node.target._overloadname == "default"
    return True


def reduction_of(node: Node) -> Reduction:
    """The parts of a reduction node; raises NotLowerable for reductions of nothing."""
    if is_contraction(node):
        return Reduction(node, None, product_shape(node), "sum", (2,), False)
    source = node.args[0]
    rank = len(shape_of(source))
    dims = reduced_dims(argument(node, 1, "dim"), rank)
    keepdim = bool(argument(node, 2, "keepdim", False))
    if op_name(node) in ("max", "min", "prod", "any", "all") and node.target._overloadname == "default":
        dims, keepdim = tuple(range(rank)), False
    result = Reduction(node, source, shape_of(source), REDUCTION_OPS[op_name(node)], dims, keepdim)
    if result.count == 0:
        raise NotLowerable(f"{node.name} reduces no elements")
    return result


def emit(builder: NestBuilder, reduction: Reduction, value: str, strip: bool = False,
         along: tuple[Symbol, ...] = ()) -> str:
    """Reduce ``value`` over the reduction axes of the nest, or those in ``along`` if there are any, or the strip axes,
    and finish it as the operator says."""
    node, name = reduction.node, op_name(reduction.node)
    dtype = compute_dtype(dtype_of(node))
    if name in ("any", "all"):
        reduced = _reduce(builder, reduction, builder.cast(value, torch.bool), torch.bool, along=along)
        return builder.cast(reduced, dtype)
    if name in ("argmax", "argmin"):
        return _reduce(builder, reduction, value, torch.int64, along=along)
    reduced = _reduce(builder, reduction, builder.cast(value, dtype), dtype, strip, along)
    if name == "mean":
        return builder.compute("div", reduced, builder.const(reduction.count, dtype))
    return reduced


def joined(builder: NestBuilder, reduction: Reduction, values: Sequence[str]) -> str:
    """These ``values`` in one, one after the other, as the reduction joins its elements."""
    dtype = compute_dtype(dtype_of(reduction.node))
    common = torch.bool if reduction.op in ("any", "all") else dtype
    result, *others = (builder.cast(v, common) for v in values)
    for value in others:
        result = builder.compute(COMBINED[reduction.op], result, value)
    return result


def combine(builder: NestBuilder, reduction: Reduction, values: Sequence[str]) -> str:
    """The reduction of these few ``values``."""
    dtype = compute_dtype(dtype_of(reduction.node))
    result = builder.cast(joined(builder, reduction, values), dtype)
    if op_name(reduction.node) == "mean":
        return builder.compute("div", result, builder.const(reduction.count, dtype))
    return result


def _reduce(builder: NestBuilder, reduction: Reduction, value: str, dtype: torch.dtype,
            strip: bool = False, along: tuple[Symbol, ...] = ()) -> str:
    if reduction.count == 1:
        return builder.const(0, dtype) if reduction.op in ("argmax", "argmin") else value
    online = exponentials_down_strip(builder.body, value) if strip and reduction.op == "sum" else None
    if online is not None:
        return _exponential_sum(builder, *online, dtype)
    return builder.reduce(reduction.op, value, dtype, strip, along)


def _exponential_sum(builder: NestBuilder, x: str, top: str, endless: bool, dtype: torch.dtype) -> str:
    """The sum down a strip of exponentials of ``x`` relative to ``top``; of infinities it isn't a number, or infinite
    if they are ``endless``, relative to zero."""
    total = builder.reduce("expsum", x, dtype, strip=True)
    if endless:
        return total
    infinite = builder.compute("eq", top, builder.const(float("inf"), dtype))
    return builder.compute("where", infinite, builder.const(float("nan"), dtype), total)


def source_coords(reduction: Reduction, coords: tuple[Expr, ...], inner: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Where in the reduced space the result at ``coords`` takes the element at ``inner`` of the reduced dimensions."""
    along = dict(zip(reduction.dims, inner))
    if reduction.keepdim:
        return tuple(along.get(d, c) for d, c in enumerate(coords))
    rest = iter(coords)
    return tuple(along[d] if d in along else next(rest) for d in range(len(reduction.shape)))
