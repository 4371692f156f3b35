"""Matrix products as reductions of a product, so that what surrounds them fuses by the general rules.

``mm(a [M, K], b [K, N])`` is ``sum over k of a[m, k] * b[k, n]``. With one row each weight is used once, so it is bound
by the bytes of ``b``, and a dequantisation before it or an activation after it costs no bytes of its own. With more
rows a weight is used again and the product belongs on matrix units: where a target's printer can put it there, it may
join a kernel, and else it is a library call, as it is wherever nothing is gained by joining.
"""
from __future__ import annotations

import torch
from sympy import Expr
from torch.fx import Node

from .fxinfo import argument, dtype_of, op_name, shape_of, value_of

#: operator -> position of its left factor
_LEFT = {"mm": 0, "addmm": 1}
_TYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
#: Types in which kernels multiply matrices; in others the library's are far better.
MATRIX_TYPES = frozenset({torch.bfloat16, torch.float16})
#: Most rows of a product that is bound by the bytes of its right factor, as with a single one.
FEW_ROWS = 16


def is_contraction(node: Node) -> bool:
    """Whether ``node`` is a matrix product that a kernel computes as a reduction."""
    name = op_name(node)
    if name not in _LEFT or not isinstance(value_of(node), torch.Tensor):
        return False
    rows, columns, inner = product_shape(node)
    if inner < 2 or rows * columns == 0:
        return False
    return dtype_of(node) in (_TYPES if rows <= FEW_ROWS else MATRIX_TYPES)


def is_matrix_product(node: Node) -> bool:
    """Whether ``node`` is a product with several rows, which the library computes unless a kernel gains by it."""
    return is_contraction(node) and product_shape(node)[0] > 1


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
