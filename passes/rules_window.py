"""Poolings, upsamplings and depthwise convolutions by what each result reads: a few shifted views of the input.

A small window is unrolled: one strided slice of the padded input for each of its places, combined elementwise, so that
the operators around it can share its kernel. The input is read from memory once, its overlapping views from cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from rooffuse.passes.rule_base import Refusal, accumulate, memory_order
from rooffuse.passes.uneven_parts import uneven_avg_pool, uneven_max_pool
from rooffuse.passes.windows import (
    MAX_PLACES,
    Windows,
    at_places,
    cut_in_parts,
    in_equal_parts,
    place_strides,
    spread,
    tiles_of,
    whole_scales,
    window_sizes,
    windows_over,
)
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten

#: Most weights of a channel whose convolution is unrolled: 3 × 3.
MAX_WEIGHTS = 9

#: The same where channels are neighbours in memory: the weights of one place lie apart then, and up to four places are
#: loaded together and shuffled.
MAX_GATHERED = 4


def _lowest(dtype: torch.dtype) -> float:
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _first_inside(w: Windows, strides: Sequence[int], device: torch.device) -> Any:
    """Of each window's places inside of the input the first, counted with ``strides`` a step along each dimension."""
    total: Any = 0
    for dim, (o, s, p) in enumerate(zip(w.outputs, w.stride, w.padding, strict=True)):
        if p:
            outside = torch.clamp(p - torch.arange(o, dtype=torch.int32, device=device) * s, min=0)
            if w.dilation[dim] > 1:
                outside = torch.div(outside + w.dilation[dim] - 1, w.dilation[dim], rounding_mode="floor")
            total = total + (outside * strides[dim]).reshape([-1 if k == dim else 1 for k in range(len(w.sizes))])
    return total


def _winners(x: Tensor, w: Windows, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The largest element of each window, and which of its places that is, as int32, counted with ``strides`` a step
    along each dimension; NaN is larger than any number, and of equal ones the first is taken."""
    first, *others = at_places(x, w, _lowest(x.dtype))
    best = first
    # An element outside of the input never wins, so that the first place counts as the first one inside.
    start = torch.zeros((), dtype=torch.int32, device=x.device) + _first_inside(w, strides, x.device)
    winner = start.expand(best.shape)
    for place, value in zip(itertools.islice(itertools.product(*map(range, w.kernel)), 1, None), others, strict=True):
        wins = value > best
        if x.dtype.is_floating_point:
            wins = torch.logical_or(wins, torch.isnan(value))
        winner = torch.where(wins, sum(k * n for k, n in zip(place, strides, strict=True)), winner)
        best = torch.maximum(best, value)
    return best if others else best.clone(), winner


def max_pool_with_indices(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """The largest element of each window and its flat position; NaN is larger than any number."""
    w = windows_over(x.shape, kernel, stride, padding, dilation, ceil_mode)
    rank, apart = len(w.sizes), [prod(w.sizes[dim + 1 :]) for dim in range(len(w.sizes))]
    best, winner = _winners(x, w, [n * d for n, d in zip(apart, w.dilation, strict=True)])
    corner: Any = 0
    for dim in range(rank):
        along = torch.arange(w.outputs[dim], device=x.device) * w.stride[dim] - w.padding[dim]
        corner = corner + (along * apart[dim]).reshape([-1 if k == dim else 1 for k in range(rank)])
    return best, corner + winner


def max_pool_places(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """The largest element of each window and, as uint8, which of its places that is, in row-major order."""
    w = windows_over(x.shape, kernel, stride, padding, 1, ceil_mode)
    best, winner = _winners(x, w, place_strides(w))
    return best, winner.to(torch.uint8)


def avg_pool(
    x: Tensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Tensor:
    """The sum of each window over how many elements it has, or over ``divisor``."""
    w = windows_over(x.shape, kernel, stride, padding, 1, ceil_mode)
    values = at_places(accumulate(x), w, 0)
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / window_sizes(w, count_include_pad, divisor, x.device)


def unrolled(x: Tensor, weight: Tensor, transposed: bool, groups: int) -> bool:
    """Whether a convolution of ``x [N, C, *spatial]`` keeps channels apart and has few enough weights for each to
    be written out."""
    apart = groups == x.shape[1] == weight.shape[0] and groups > 1 and not transposed and x.is_floating_point()
    return apart and prod(weight.shape[2:]) <= MAX_WEIGHTS


def depthwise_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """For each channel the sum of its few shifted views, each times one weight: bound by bytes, as nothing is shared
    between channels. Other convolutions are refused."""
    rank = x.dim() - 2
    if not unrolled(x, weight, transposed, groups):
        raise Refusal("a convolution that adds up several channels, or has more weights a channel than is unrolled")
    if memory_order(x)[0][-1] == 1 and prod(weight.shape[2:]) > MAX_GATHERED:
        raise Refusal("channels that are neighbours in memory: the weights of a place would be gathered")
    w = windows_over(x.shape, list(weight.shape[2:]), stride, padding, dilation, False, rank)
    weights = accumulate(weight).reshape(groups, -1)
    total: Tensor | None = None
    for k, value in enumerate(at_places(x, w, 0)):
        part = accumulate(value) * weights[:, k].reshape([-1] + [1] * rank)
        total = part if total is None else total + part
    assert total is not None
    return total if bias is None else total + accumulate(bias).reshape([-1] + [1] * rank)


def adaptive_avg_pool(x: Tensor, outputs: Sequence[int]) -> Tensor:
    """The means of ``outputs`` parts of the last dimensions."""
    if not in_equal_parts(x, outputs):
        return uneven_avg_pool(x, outputs)
    tiles = tiles_of(x, outputs)
    if prod(tiles) <= MAX_PLACES:
        return avg_pool(x, tiles)
    parts, places = cut_in_parts(accumulate(x), outputs)
    return torch.mean(parts, places)


def adaptive_max_pool(x: Tensor, outputs: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The largest elements of ``outputs`` parts of the last dimensions and their flat positions."""
    if not in_equal_parts(x, outputs):
        return uneven_max_pool(x, outputs)
    tiles, rank = tiles_of(x, outputs), len(outputs)
    if prod(outputs) != 1:
        return max_pool_with_indices(x, tiles)
    flat = x.reshape([*x.shape[: x.dim() - rank], -1])
    shape = [*x.shape[: x.dim() - rank], *outputs]
    return torch.amax(flat, -1).reshape(shape), torch.argmax(flat, -1).reshape(shape)


_BY_POSITION = {
    rank: function
    for rank, op in ((1, aten.upsample_nearest1d), (2, aten.upsample_nearest2d), (3, aten.upsample_nearest3d))
    for function in get_decompositions([op.default]).values()
}


def upsample_nearest(x: Tensor, outputs: Sequence[int], *scales: float | None) -> Tensor:
    """Each element repeated over a tile, where the sizes are whole multiples of the input's; else by its position."""
    try:
        return spread(x, whole_scales(x.shape, outputs, scales))
    except Refusal:
        return _BY_POSITION[len(outputs)](x, outputs, *scales)


