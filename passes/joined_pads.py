"""Sums of tensors that are zero but for a part each: concatenations of these parts.

What is given back to the slices of a tensor, as to the gates of a recurrent cell or the queries, keys and values of one
projection, is traced as one tensor of zeros with a part for each slice, and their sum. A kernel would ask at each
element of the sum which of them isn't zero there, and compute them all; as a concatenation each part is computed for
its own elements, and stored from the rows that it is reduced in. Of a sum, -0 becomes 0, and stays -0 in its part.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from rooffuse.passes.dce import dce
from rooffuse.passes.graph import argument, aten, call_like, is_concrete, same_layout, tensor_meta
from rooffuse.passes.padding import padding_of
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node

#: Most terms of one sum.
MOST_TERMS = 64
_WRITES = frozenset({aten.slice_scatter.default, aten.select_scatter.default})


@dataclass(frozen=True)
class _Padded:
    """``source`` at places ``start`` to ``stop`` of dimension ``dim``, zero elsewhere; ``picked``, without ``dim``. The
    dimensions are those of ``shape``, in which every so many places of one are a dimension of their own."""

    dim: int
    start: int
    stop: int
    source: Node
    shape: tuple[int, ...]
    picked: bool = False


def joined_pads(gm: GraphModule) -> GraphModule:
    """Sums of padded tensors become ``cat`` if they are at equal places or don't reach into each other, beside at most
    one other term, and then all at places of their own.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value; each element is the sum of the same numbers in the same order, less zeros.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None:
        return gm
    for node in list(gm.graph.nodes):
        if _is_sum(node) and not (len(node.users) == 1 and _is_sum(next(iter(node.users)))):
            _join(node, mode)
    return dce(gm)


def _is_sum(node: Node) -> bool:
    """Whether ``node`` adds two tensors of its own type, sizes and strides."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return False
    value = tensor_meta(node)
    terms = [tensor_meta(n) if isinstance(n, Node) else None for n in node.args]
    return value is not None and is_concrete(value.shape) and all(
        t is not None and t.dtype == value.dtype and same_layout(t, value) for t in terms)


def _terms(node: Node) -> list[Node]:
    """What a sum of sums adds up, in order."""
    found: list[Node] = []
    for term in node.args:
        inner = len(term.users) == 1 and _is_sum(term) and len(found) < MOST_TERMS
        found += _terms(term) if inner else [term]
    return found


def _join(node: Node, mode: Any) -> None:
    terms = _terms(node)
    found: dict[tuple[int, int], list[_Padded]] = {}
    spaces: set[tuple[int, tuple[int, ...]]] = set()
    others: list[Node] = []
    for term in terms:
        part = _padded(term) if len(term.users) == 1 else None
        if part is not None:
            found.setdefault((part.start, part.stop), []).append(part)
            spaces.add((part.dim, part.shape))
        else:
            others.append(term)
    places = sorted(found)
    if sum(map(len, found.values())) < 2 or len(others) > (len(places) == len(terms) - 1) or len(spaces) > 1 or any(
            before[1] > after[0] for before, after in zip(places, places[1:])):
        return
    value, ((dim, shape),) = node.meta["val"], spaces
    with node.graph.inserting_before(node):
        pieces: list[Node] = []
        reached = 0
        for start, stop in [*places, (shape[dim], shape[dim])]:
            if start > reached:
                gap = [*shape[:dim], start - reached, *shape[dim + 1:]]
                pieces.append(call_like(node, mode, aten.full.default, gap, 0, dtype=value.dtype, device=value.device))
            parts = [call_like(node, mode, aten.unsqueeze.default, p.source, dim) if p.picked else p.source
                     for p in found.get((start, stop), ())]
            if parts:
                pieces.append(reduce(lambda a, b: call_like(node, mode, aten.add.Tensor, a, b), parts))
            reached = stop
        joined = call_like(node, mode, aten.cat.default, pieces, dim)
        if shape != tuple(value.shape):
            joined = call_like(node, mode, aten.reshape.default, joined, list(value.shape))
        for other in others:
            joined = call_like(node, mode, aten.add.Tensor, joined, other)
    if same_layout(joined.meta["val"], value):
        node.replace_all_uses_with(joined)


def _padded(node: Node) -> _Padded | None:
    value = tensor_meta(node)
    if value is None:
        return None
    shape = tuple(value.shape)
    if node.target in _WRITES:
        base, source = node.args[:2]
        dim = argument(node, "dim") % value.dim()
        if base.target is not aten.full.default or base.args[1] != 0 or source.meta["val"].dtype != value.dtype:
            return None
        if node.target is aten.select_scatter.default:
            index = argument(node, "index")
            at = index % shape[dim] if isinstance(index, int) else 0
            return _Padded(dim, at, at + 1, source, shape, picked=True) if isinstance(index, int) else None
        step = argument(node, "step")
        if step != 1:
            start, stop, _ = slice(argument(node, "start"), argument(node, "end")).indices(shape[dim])
            if shape[dim] % step or start >= step or len(range(start, stop, step)) != shape[dim] // step:
                return None
            shape = (*shape[:dim], shape[dim] // step, step, *shape[dim + 1:])
            return _Padded(dim + 1, start, start + 1, source, shape, picked=True)
    found = padding_of(node)
    if found is None or found[2] != 0:
        return None
    source, pads, _ = found
    dims = [d for d, pad in enumerate(pads) if pad != (0, 0)]
    if len(dims) != 1 or source.meta["val"].dtype != value.dtype:
        return None
    before, after = pads[dims[0]]
    return _Padded(dims[0], before, shape[dims[0]] - after, source, shape)
