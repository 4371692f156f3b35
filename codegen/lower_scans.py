"""Cumulative sums, products and extrema: each element is what a reduction has come to at that place of its row.

The row is the nest's reduction axis, so that a scan shares it with reductions, producers and consumers.
"""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sympy import Expr
from torch.fx import Node

from .errors import NotLowerable
from .fxinfo import argument, dtype_of, op_name, shape_of, wrap_dim
from .lower_reductions import Reduction, is_reduction, reduction_of
from .lower_views import slice_parameters

if TYPE_CHECKING:
    from .lower import NestLowering

#: operator -> IR scan
SCAN_OPS = {"cumsum": "sum", "cumprod": "prod", "running_max": "max", "running_min": "min", "logcumsumexp": "logsumexp"}


def is_scan(node: Node) -> bool:
    """Whether ``node`` is a cumulative operator that lowers to ``Scan``."""
    return op_name(node) in SCAN_OPS


def scanned_rows(node: Node) -> Reduction:
    """The rows that a scan goes along, in the words of a reduction over them."""
    source = node.args[0]
    shape = shape_of(source)
    dim = wrap_dim(argument(node, 1, "dim"), len(shape))
    return Reduction(node, source, shape, SCAN_OPS[op_name(node)], (dim,) if shape else (), True)


def scan_prefix(node: Node) -> Reduction | None:
    """The rows of a slice that holds the first elements of a scan's rows, None for other nodes: they need no later
    element, so that a nest may have the shorter rows."""
    if op_name(node) != "slice" or not is_scan(node.args[0]):
        return None
    rows = scanned_rows(node.args[0])
    dim, start, step = slice_parameters(node, rows.shape)
    return replace(rows, node=node, source=node, shape=shape_of(node)) if (dim, start, step) == (
        *rows.dims, 0, 1) else None


def rows_of(node: Node) -> Reduction | None:
    """The rows of more than one element that a reduction, a scan or the beginning of one goes along; None for other
    nodes."""
    found = (reduction_of(node) if is_reduction(node) else scanned_rows(node) if is_scan(node) else scan_prefix(node))
    return found if found is not None and found.count > 1 else None


def pull(context: NestLowering, node: Node, coords: tuple[Expr, ...]) -> str:
    """The value of a scan at ``coords``, which must run along the nest's rows; raises NotLowerable otherwise."""
    b, rows = context.builder, scanned_rows(node)
    if rows.count > 1:
        strip = any(a.strip for a in b.axes)
        axes = [a for a in b.axes if (a.strip if strip else a.reduction)]
        others = [c for d, c in enumerate(coords) if d not in rows.dims]
        if b.mask is not None:
            raise NotLowerable(f"{node.name} would be scanned under a mask")
        across = (any(a.symbol in c.free_symbols for a in axes for c in others) if strip
                  else b.scope_has_reduction_axis(others))
        if len(axes) != 1 or coords[rows.dims[0]] != axes[0].symbol or across:
            raise NotLowerable(f"{node.name} goes along dimension {rows.dims[0]}, which isn't the kernel's row")
        if strip and not {a.symbol for a in b.axes if a.reduction} <= {s for c in coords for s in c.free_symbols}:
            raise NotLowerable(f"{node.name} would be scanned down single columns")
    assert rows.source is not None
    value = b.cast(context.value(rows.source, coords), dtype_of(node))
    return b.rounded(b.scan(rows.op, value, dtype_of(node), strip) if rows.count > 1 else value, dtype_of(node))
