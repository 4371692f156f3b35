"""Batches of matrix products with what there is, in place of copies of it for several products each.

Attention that is written out repeats each key and value head for all query heads of its group: a copy of the whole
key-value cache, several times its size, at every step. The rows of all of a group's heads, taken as those of one left
factor, are multiplied by the head itself.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from rooffuse.passes.dce import dce
from rooffuse.passes.graph import aten, call_like, is_concrete, packet_name, tensor_meta, viewed_arg, written_args
from rooffuse.passes.pipeline import Pass
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

_COPIES = frozenset({"aten.clone", "aten.contiguous"})


def grouped_products_pass(single_rows: bool) -> Pass:
    """The pass for a device; without ``single_rows`` products of one row stay as they are, to become sums in which a
    repeated factor is no copy."""
    return Pass("grouped_products", functools.partial(grouped_products, single_rows=single_rows),
                grouped_products.__doc__ or "")


def grouped_products(gm: GraphModule, single_rows: bool) -> GraphModule:
    """Give batches of matrix products the right factors that were repeated for them.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    products = gm.graph.find_nodes(op="call_function", target=aten.bmm.default) if mode is not None else []
    for node in products:
        left = tensor_meta(node.args[0])
        if left is not None and is_concrete(left.shape) and (single_rows or left.shape[1] > 1):
            _group_product(node, mode)
    return dce(gm) if products else gm


def _group_product(node: Node, mode: Any) -> None:
    """Multiply the rows of all of a group's heads by what was repeated for each of them."""
    found = _repeated_batch(node.args[1])
    left = tensor_meta(node.args[0])
    if found is None or left is None or not is_concrete((*left.shape, *left.stride())):
        return
    source, count, turned = found
    batch, rows, terms = left.shape
    call = functools.partial(call_like, node, mode)
    with node.graph.inserting_before(node):
        right = call(aten.view.default, source, [batch // count, *source.meta["val"].shape[-2:]])
        if turned:
            right = call(aten.transpose.int, right, 1, 2)
        grouped = call(aten.reshape.default, node.args[0], [batch // count, count * rows, terms])
        product = call(aten.bmm.default, grouped, right)
        made = call(aten.view.default, product, list(node.meta["val"].shape))
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)
    log.debug("%s multiplies by %s as it is", product.name, source.name)


def _repeated_batch(argument: Any) -> tuple[Node, int, bool] | None:
    """``(x, n, turned)`` where the matrices of a batch are views of a copy of ``x [..., R, C]`` with each of its
    matrices ``n`` times, one after the other, ``turned`` if transposed, made for this alone; None for others."""
    value, node = tensor_meta(argument), argument
    if value is None or not is_concrete((*value.shape, *value.stride())):
        return None
    while isinstance(node, Node) and packet_name(node.target) not in _COPIES:
        source = viewed_arg(node)
        if source is None or _readers(node) > 1:
            return None
        node = source
    copy = tensor_meta(node)
    expanded = node.args[0] if copy is not None and _readers(node) == 1 else None
    if copy is None or not isinstance(expanded, Node) or packet_name(expanded.target) != "aten.expand":
        return None
    single: Any = expanded.args[0]
    if packet_name(single.target) != "aten.unsqueeze" or copy.dim() < 3 or not copy.is_contiguous():
        return None
    x: Any = single.args[0]
    source_value, (rows, columns), count = tensor_meta(x), copy.shape[-2:], copy.shape[-3]
    if source_value is None or not is_concrete((*source_value.shape, *source_value.stride())):
        return None
    if single.args[1] % copy.dim() != copy.dim() - 3 or copy.shape != (
            *source_value.shape[:-2], count, *source_value.shape[-2:]) or count < 2:
        return None
    matrix = (value.shape[1:], value.stride()[1:])
    turned = matrix == ((columns, rows), (1, columns))
    if not turned and matrix != ((rows, columns), (columns, 1)):
        return None
    batch = source_value.numel() // (rows * columns)
    fits = value.shape[0] == batch * count and value.stride(0) == rows * columns and value.storage_offset() == 0
    return (x, count, turned) if fits and _joins(source_value) else None


def _readers(node: Node) -> int:
    """How many calls read ``node`` whose results are used, or which are done for their effects."""
    return sum(bool(u.users) or u.op == "output" or bool(written_args(u)) for u in node.users)


def _joins(value: torch.Tensor) -> bool:
    """Whether all dimensions but the last two are one without a copy."""
    outer = [(n, s) for n, s in zip(value.shape[:-2], value.stride()[:-2]) if n != 1]
    return all(s == m * t for (_, s), (m, t) in zip(outer, outer[1:]))
