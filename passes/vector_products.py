"""Products of matrices and vectors, and of matrices with few terms, as sums that fuse with what is around them.

A matrix times a vector uses each of its elements once: it takes the time in which they are read, whoever reads them. As
a sum it is a reduction like others, so that a norm before it or a copy into another order costs no bytes of its own. A
product with a few terms to an element, as a change of colours or of coordinates is, takes the time in which its result
is written: written out, it is arithmetic like other.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from rooffuse.passes.graph import (
    IMPLIED_CAST,
    argument,
    call_like,
    is_concrete,
    packet_name,
    same_strides,
    tensor_meta,
    viewed_arg,
)
from rooffuse.passes.pipeline import Pass
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten

#: Most terms of a sum that is written out.
MOST_TERMS = 4
_TYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def vector_products_pass(along_memory: bool) -> Pass:
    """The pass for a device; with ``along_memory`` only for sums along neighbours in memory."""
    return Pass("vector_products", functools.partial(vector_products, along_memory=along_memory),
                vector_products.__doc__ or "")


def vector_products(gm: GraphModule, along_memory: bool) -> GraphModule:
    """Rewrite products of a matrix and a column, of a column and a row, in batches also of a row and a matrix, of a row
    and the transposed of a matrix that something else reads, too, and others whose elements are sums of at most
    ``MOST_TERMS`` terms.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value; narrow types are multiplied and summed in float32, as the library does.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    count = 0
    for node in list(gm.graph.nodes) if mode is not None else ():
        count += _rewrite(node, along_memory, mode)
    log.debug("vector_products: %d", count)
    return gm


def _rewrite(node: Node, along_memory: bool, mode: FakeTensorMode) -> bool:
    found = _factors(node)
    if found is None:
        return False
    left, right, bias = found
    a, b = left.meta["val"], right.meta["val"]
    outer = a.shape[-1] == 1 and b.dim() > 1
    batched = packet_name(node.target) == "aten.bmm"
    column = b.dim() == 1 or (b.shape[-1] == 1 and (a.shape[-2] > 1 or batched))
    row = a.shape[-2] == 1 and b.dim() > 1 and b.shape[-1] > 1 and (batched or _is_shared(right))
    matrix, dim = (a, -1) if column else (b, -2)
    summed = (column or row) and not (along_memory and matrix.stride(dim) != 1)
    written_out = not outer and not summed and b.dim() > 1 and a.shape[-1] <= MOST_TERMS
    if not (outer or summed or written_out):
        return False
    wide = torch.float32 if a.dtype in (torch.bfloat16, torch.float16) else a.dtype
    with node.graph.inserting_before(node):
        call = functools.partial(call_like, node, mode)
        factors = [left, right]
        if summed and not outer and b.dim() > 1:  # the vector is turned to run along what is summed of the matrix
            factors[column] = call(aten.transpose.int, factors[column], -2, -1)
        if wide != a.dtype:
            factors = [call(aten._to_copy.default, f, dtype=wide) for f in factors]
        if written_out:
            made = _written_out(factors, a.shape[-1], call)
        else:
            made = call(aten.mul.Tensor, *factors)
        if summed and not outer:
            made = call(aten.sum.dim_IntList, made, [dim], b.dim() > 1)
        if bias is not None:
            made = call(aten.add.Tensor, made, bias)
        if made.meta["val"].dtype != a.dtype:
            made = call(aten._to_copy.default, made, dtype=a.dtype)
            made.meta[IMPLIED_CAST] = True
        if not same_strides(made.meta["val"], node.meta["val"]):
            made = call(aten.clone.default, made, memory_format=torch.contiguous_format)
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)
    return True


def _is_shared(matrix: Node) -> bool:
    """Whether what a matrix is the transposed of is read by others: a sum along its rows can share their nest, where a
    product would have a tile of its own. Weights that nothing else reads stay products of few rows."""
    value, source = matrix.meta["val"], viewed_arg(matrix)
    if source is None or value.stride(-2) != 1:
        return False
    while (before := viewed_arg(source)) is not None:
        if len(source.users) > 1:
            return True
        source = before
    return len(source.users) > 1


def _written_out(factors: list[Node], count: int, call: Callable[..., Node]) -> Node:
    """The sum of ``count`` products of a column of the left factor and a row of the right one."""
    terms = []
    for k in range(count):
        column = call(aten.slice.Tensor, factors[0], -1, k, k + 1)
        row = call(aten.slice.Tensor, factors[1], -2, k, k + 1)
        terms.append(call(aten.mul.Tensor, column, row))
    return functools.reduce(lambda total, term: call(aten.add.Tensor, total, term), terms)


def _factors(node: Node) -> tuple[Node, Node, Node | None] | None:
    """The matrices that a call multiplies and what it adds to the product, or None."""
    name, args = packet_name(node.target), node.args
    if name not in ("aten.mm", "aten.addmm", "aten.bmm", "aten.mv"):
        return None
    bias: Any = None
    if name == "aten.addmm":
        if (argument(node, "beta"), argument(node, "alpha")) != (1, 1):
            return None
        bias, args = args[0], args[1:]
    left: Any = args[0]
    right: Any = args[1]
    a, b = tensor_meta(left), tensor_meta(right)
    if a is None or b is None or a.dtype not in _TYPES or not is_concrete((*a.shape, *b.shape)):
        return None
    return (left, right, bias) if a.numel() and b.numel() else None
