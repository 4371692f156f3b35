"""Reductions over almost the same space, over the same: a kernel then goes through it once for all of them.

The total variation of an image adds up differences to the element below and to the one on the right: one sum has a row
less than the image, the other a column less. Loops of different lengths are two, and each reads the image. With what
is missing filled by zeros, which no sum notices, both are sums over the image.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from rooffuse.passes.graph import call_like, is_concrete, packet_name, tensor_meta
from rooffuse.passes.op_sets import POINTWISE
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.row_limits import LONG_ROW, reduced_dims
from rooffuse.passes.split_reductions import accumulation_type, neutral_element
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten

#: Part of a space that may be filled in: less than it takes to read the space once more.
MOST_ADDED = 0.1
#: Operators between what lies in memory and what is reduced, at most.
MOST_STEPS = 16
_REDUCTIONS = frozenset({"aten.sum", "aten.mean", "aten.amax", "aten.amin"})
_SLICES = frozenset({"aten.slice", "aten.constant_pad_nd"})


@dataclass(frozen=True)
class _Space:
    """What a reduction goes over: its ``shape``, the ``dims`` that it reduces, and what it is made of elementwise."""

    node: Node
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    origins: frozenset[Node]

    @property
    def kept(self) -> tuple[int | None, ...]:
        """Sizes of the dimensions that stay, and None for those that are reduced."""
        return tuple(None if d in self.dims else n for d, n in enumerate(self.shape))


def equal_extents(gm: GraphModule) -> GraphModule:
    """Fill up what sums, means and extrema go over, where others of the same tensor go over a little more of it.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone); comes before long reductions are
    split. Ensures: equal sizes, dtype and strides of every value.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    spaces = [s for node in gm.graph.nodes if (s := _space(node)) is not None] if mode is not None else []
    count = 0
    for together in _clusters(spaces):
        whole = tuple(max(sizes) for sizes in zip(*(s.shape for s in together)))
        near = [s for s in together if prod(whole) <= (1 + MOST_ADDED) * prod(s.shape)]
        for space in near if len({s.shape for s in near}) > 1 else ():
            if space.shape != whole:
                _fill(space, whole, mode)
                count += 1
    log.debug("equal_extents: filled up %d", count)
    return gm


EQUAL_EXTENTS_PASS = Pass("equal_extents", equal_extents, equal_extents.__doc__ or "")


def _space(node: Node) -> _Space | None:
    if node.op != "call_function" or packet_name(node.target) not in _REDUCTIONS:
        return None
    source, result = tensor_meta(node.args[0]), tensor_meta(node)
    if source is None or result is None or not is_concrete((*source.shape, *result.shape)) or source.is_complex():
        return None
    dims = reduced_dims(node, source.dim())
    if not dims or source.numel() < LONG_ROW:
        return None
    return _Space(node, tuple(source.shape), dims, frozenset(_origins(node.args[0])))  # type: ignore[arg-type]


def _origins(source: Node) -> Iterator[Node]:
    """Values of about the size of ``source`` that it is computed from elementwise, and from parts of which."""
    least = (1 - MOST_ADDED) * source.meta["val"].numel()
    work, seen = [(source, 0)], {source}
    while work:
        node, steps = work.pop()
        name = packet_name(node.target) if node.op == "call_function" else ""
        if steps == MOST_STEPS or name not in POINTWISE | _SLICES or not node.all_input_nodes:
            yield node
            continue
        for before in node.all_input_nodes:
            value = tensor_meta(before)
            if before not in seen and value is not None and value.numel() >= least:
                seen.add(before)
                work.append((before, steps + 1))


def _clusters(spaces: Sequence[_Space]) -> list[list[_Space]]:
    """Spaces that differ in reduced dimensions alone and have an origin in common."""
    found: list[list[_Space]] = []
    for space in spaces:
        place = next((c for c in found if any(
            (s.kept, s.dims) == (space.kept, space.dims) and s.origins & space.origins for s in c)), None)
        if place is None:
            found.append([space])
        else:
            place.append(space)
    return [c for c in found if len({s.shape for s in c}) > 1]


def _fill(space: _Space, whole: Sequence[int], mode: FakeTensorMode) -> None:
    """Replace the reduction by one over ``whole``."""
    node, name = space.node, packet_name(space.node.target)
    value, result = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    call = functools.partial(call_like, node, mode)
    pads = [n for d in reversed(range(value.dim())) for n in (0, whole[d] - space.shape[d])]
    with node.graph.inserting_before(node):
        made = call(aten.constant_pad_nd.default, node.args[0], pads, neutral_element(name, value.dtype))
        if name in ("aten.amax", "aten.amin"):
            made = call(getattr(aten, name.removeprefix("aten.")).default, made, list(space.dims))
        else:
            wide = accumulation_type(value.dtype, result.dtype)
            made = call(aten.sum.dim_IntList, made, list(space.dims), dtype=wide)
        if name == "aten.mean":
            made = call(aten.div.Tensor, made, prod(space.shape[d] for d in space.dims))
        if made.meta["val"].dtype != result.dtype:
            made = call(aten._to_copy.default, made, dtype=result.dtype)
        if made.meta["val"].shape != result.shape:
            made = call(aten.view.default, made, list(result.shape))
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)
