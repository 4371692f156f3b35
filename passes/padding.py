"""Tensors that are another one between constants."""
from __future__ import annotations

from typing import Any

from rooffuse.passes.graph import argument, aten, is_concrete, tensor_meta
from torch.fx import Node

#: Most dimensions that are padded: as a concatenation, each gives two loops of constants.
MOST_DIMS = 2


def padding_of(node: Node) -> tuple[Node, list[tuple[int, int]], Any] | None:
    """What is padded, by how many elements before and after along each dimension, and with what; None for what isn't a
    pad, a write into a constant or a concatenation of one tensor with zeros."""
    value = tensor_meta(node)
    if value is None or not value.is_contiguous() or not is_concrete(value.shape):
        return None
    pads = [(0, 0)] * value.dim()
    if node.target is aten.constant_pad_nd.default:
        sizes = list(node.args[1])
        for k in range(len(sizes) // 2):
            pads[-1 - k] = sizes[2 * k], sizes[2 * k + 1]
        if min(sizes) < 0 or sum(pad != (0, 0) for pad in pads) > MOST_DIMS:
            return None
        return node.args[0], pads, argument(node, "value")
    if node.target is aten.cat.default:
        return _among_zeros(node, pads)
    if node.target is not aten.slice_scatter.default or argument(node, "step") != 1:
        return None
    base, source = node.args[:2]
    if base.target is not aten.full.default or source.meta["val"].dtype != value.dtype:
        return None
    dim = argument(node, "dim") % value.dim()
    start, stop, _ = slice(argument(node, "start"), argument(node, "end")).indices(value.shape[dim])
    pads[dim] = start, value.shape[dim] - stop
    return source, pads, base.args[1]


def _among_zeros(cat: Node, pads: list[tuple[int, int]]) -> tuple[Node, list[tuple[int, int]], Any] | None:
    """The same for a concatenation."""
    dim, sizes = argument(cat, "dim"), [tensor_meta(p).dim() for p in cat.args[0]]  # type: ignore[union-attr]
    others = [k for k, p in enumerate(cat.args[0]) if p.target is not aten.full.default or p.args[1] != 0]
    if len(others) != 1 or len({*sizes}) != 1:
        return None
    lengths = [p.meta["val"].shape[dim] for p in cat.args[0]]
    pads[dim] = sum(lengths[:others[0]]), sum(lengths[others[0] + 1:])
    return cat.args[0][others[0]], pads, 0
