"""Matrix products with one row as reductions of a product, so that what surrounds them fuses by the general rules.

``mm(a [1, K], b [K, N])`` is ``sum over k of a[0, k] * b[k, n]``: each weight is used once, so it is bound by the bytes
of ``b``, and a dequantisation before it or an activation after it costs no bytes of its own. With more rows a weight
is used again and the product belongs on matrix units: those stay library calls.
"""
from __future__ import annotations

import torch
from sympy import Expr
from torch.fx import Node

from .fxinfo import argument, dtype_of, op_name, shape_of, value_of

#: operator -> position of its left factor
_LEFT = {"mm": 0, "addmm": 1}
_TYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def is_contraction(node: Node) -> bool:
    """Whether ``node`` is a matrix product that a kernel computes as a reduction."""
    name = op_name(node)
    if name not in _LEFT or not isinstance(value_of(node), torch.Tensor):
        return False
    left, _ = factors(node)
    return value_of(left).shape[0] == 1 and value_of(left).shape[1] > 1 and dtype_of(node) in _TYPES


def factors(node: Node) -> tuple[Node, Node]:
    """The two matrices of a product."""
    at = _LEFT[op_name(node)]
    return node.args[at], node.args[at + 1]


def product_shape(node: Node) -> tuple[int, int, int]:
    """The space of products ``(rows, columns, inner)``, whose last dimension is summed."""
    left, right = (shape_of(f) for f in factors(node))
    return left[0], right[1], left[1]


def factor_coords(coords: tuple[Expr, ...]) -> tuple[tuple[Expr, Expr], tuple[Expr, Expr]]:
    """Where the factors of the product at ``coords`` are in the two matrices."""
    row, column, inner = coords
    return (row, inner), (inner, column)


def addend(node: Node) -> tuple[Node, float, float] | None:
    """``(bias, beta, alpha)`` of ``beta * bias + alpha * (a @ b)``; None for a plain product."""
    if op_name(node) != "addmm":
        return None
    return node.args[0], argument(node, 3, "beta", 1), argument(node, 4, "alpha", 1)
