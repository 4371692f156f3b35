"""Pooling, upsampling and depthwise convolutions by what each result reads: a few shifted views of the input.

A small window is unrolled: one strided slice of the padded input for each of its places, combined elementwise, so that
the operators around it can share its kernel. The input is read from memory once, its overlapping views from cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from rooffuse.passes.rule_base import Refusal, accumulate, memory_order
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten

#: Most places of a window that is unrolled: 3 × 3 × 3 and 5 × 5 are, 7 × 7 isn't.
MAX_PLACES = 27

#: Most weights of a channel whose convolution is unrolled: 3 × 3.
MAX_WEIGHTS = 9

#: The same where channels are neighbours in memory: the weights of one place lie apart then, and up to four places are
#: loaded together and shuffled.
MAX_GATHERED = 4


@dataclass(frozen=True)
class _Windows:
    """Windows over the last dimensions of a tensor: all per dimension, ``outputs`` is how many there are."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """How many elements beyond the last one the windows reach."""
        return tuple(
            (o - 1) * s + d * (k - 1) + 1 - n - p
            for o, s, d, k, n, p in zip(
                self.outputs, self.stride, self.dilation, self.kernel, self.sizes, self.padding, strict=True
            )
        )


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(values * rank if len(values) == 1 else values)


def _windows(
    x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, rank: int | None = None
) -> _Windows:
    """Raises Refusal for sizes that are not known and for windows of many places."""
    rank = rank or len(kernel)
    sizes = tuple(x.shape[-rank:])
    if not all(type(n) is int for n in x.shape):
        raise Refusal("windows over sizes that are only known when it runs")
    kernel = _each(kernel, rank)
    stride = _each(stride, rank) if stride not in (None, [], ()) else kernel
    padding, dilation = _each(padding, rank), _each(dilation, rank)
    if prod(kernel) > MAX_PLACES:
        raise Refusal(f"a window of {prod(kernel)} places is more than is unrolled")
    outputs = []
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        free = n + 2 * p - d * (k - 1) - 1
        count = (-(-free // s) if ceil_mode else free // s) + 1
        outputs.append(count - 1 if ceil_mode and (count - 1) * s >= n + p else count)
    return _Windows(sizes, kernel, stride, padding, dilation, tuple(outputs))


def _places(x: Tensor, w: _Windows, outside: float) -> list[Tensor]:
    """For each place of the windows, in row-major order, what stands there, of sizes ``w.outputs``."""
    pads = [n for p, r in zip(reversed(w.padding), reversed(w.reach)) for n in (p, max(r, 0))]
    padded = torch.constant_pad_nd(x, pads, outside) if any(pads) else x
    result = []
    for place in itertools.product(*(range(k) for k in w.kernel)):
        view = padded
        for dim, (at, s, d, o) in enumerate(zip(place, w.stride, w.dilation, w.outputs, strict=True)):
            view = view.narrow(dim - len(place), at * d, (o - 1) * s + 1)
            if s > 1:
                view = view[(slice(None),) * (view.dim() - len(place) + dim) + (slice(None, None, s),)]
        result.append(view)
    return result


def _lowest(dtype: torch.dtype) -> float:
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _positions(w: _Windows, place: Sequence[int] | None, device: torch.device) -> Tensor:
    """Flat position in the input of one place of each window, or of its first place inside of the input."""
    total: Any = 0
    rank = len(w.sizes)
    for dim in range(rank):
        along = torch.arange(w.outputs[dim], device=device) * w.stride[dim] - w.padding[dim]
        along = torch.clamp(along, min=0) if place is None else along + place[dim] * w.dilation[dim]
        shape = [-1 if k == dim else 1 for k in range(rank)]
        total = total * w.sizes[dim] + along.reshape(shape)
    return total


def max_pool_with_indices(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """The largest element of each window and its flat position; NaN is larger than any number."""
    w = _windows(x, kernel, stride, padding, dilation, ceil_mode)
    if any(w.padding) and any(d != 1 for d in w.dilation):
        raise Refusal("padded windows with gaps")
    best: Tensor | None = None
    index = _positions(w, None, x.device).expand(*x.shape[: -len(w.sizes)], *w.outputs)
    for place, value in zip(itertools.product(*(range(k) for k in w.kernel)), _places(x, w, _lowest(x.dtype))):
        wins = value > (_lowest(x.dtype) if best is None else best)
        if x.dtype.is_floating_point:
            wins = torch.logical_or(wins, torch.isnan(value))
        index = torch.where(wins, _positions(w, place, x.device), index)
        best = value if best is None else torch.maximum(best, value)
    assert best is not None
    return best.clone() if w.kernel == (1,) * len(w.kernel) else best, index


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
    w = _windows(x, kernel, stride, padding, 1, ceil_mode)
    padded = any(w.padding)
    if any(r > p for r, p in zip(w.reach, w.padding, strict=True)):
        raise Refusal("windows that reach beyond the padding")
    values = _places(accumulate(x), w, 0)
    total = values[0]
    for value in values[1:]:
        total = total + value
    if divisor is not None or count_include_pad or not padded:
        return total / (divisor if divisor is not None else prod(w.kernel))
    return total / _counts(w, x.device)


def _counts(w: _Windows, device: torch.device) -> Tensor:
    """How many elements of the input each window has."""
    counts: Any = 1
    rank = len(w.sizes)
    for dim in range(rank):
        start = torch.arange(w.outputs[dim], device=device) * w.stride[dim] - w.padding[dim]
        inside = torch.clamp(start + w.kernel[dim], max=w.sizes[dim]) - torch.clamp(start, min=0)
        counts = counts * inside.reshape([-1 if k == dim else 1 for k in range(rank)])
    return counts


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
    w = _windows(x, list(weight.shape[2:]), stride, padding, dilation, False, rank)
    weights = accumulate(weight).reshape(groups, -1)
    total: Tensor | None = None
    for k, value in enumerate(_places(x, w, 0)):
        part = accumulate(value) * weights[:, k].reshape([-1] + [1] * rank)
        total = part if total is None else total + part
    assert total is not None
    return total if bias is None else total + accumulate(bias).reshape([-1] + [1] * rank)


def _tiles(x: Tensor, outputs: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the windows that cut the last dimensions of ``x`` into ``outputs`` equal parts."""
    sizes = x.shape[-len(outputs) :]
    if not all(type(n) is int for n in (*x.shape, *outputs)) or any(n % o for n, o in zip(sizes, outputs, strict=True)):
        raise Refusal("windows of different sizes")
    return tuple(n // o for n, o in zip(sizes, outputs, strict=True))


def _cut(x: Tensor, outputs: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Each of the last dimensions in two, parts and places in a part, and which dimensions the places are."""
    tiles, rank = _tiles(x, outputs), len(outputs)
    leading = list(x.shape[: x.dim() - rank])
    sizes = [n for pair in zip(outputs, tiles, strict=True) for n in pair]
    return x.reshape(leading + sizes), [len(leading) + 2 * k + 1 for k in range(rank)]


def adaptive_avg_pool(x: Tensor, outputs: Sequence[int]) -> Tensor:
    """The means of ``outputs`` equal parts of the last dimensions."""
    tiles = _tiles(x, outputs)
    if prod(tiles) <= MAX_PLACES:
        return avg_pool(x, tiles)
    parts, places = _cut(accumulate(x), outputs)
    return torch.mean(parts, places)


def adaptive_max_pool(x: Tensor, outputs: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The largest elements of ``outputs`` equal parts of the last dimensions and their flat positions."""
    tiles, rank = _tiles(x, outputs), len(outputs)
    if prod(outputs) != 1:
        return max_pool_with_indices(x, tiles)
    flat = x.reshape([*x.shape[: x.dim() - rank], -1])
    shape = [*x.shape[: x.dim() - rank], *outputs]
    return torch.amax(flat, -1).reshape(shape), torch.argmax(flat, -1).reshape(shape)


def _spread(grad: Tensor, tiles: Sequence[int]) -> Tensor:
    """Each element of the last dimensions, repeated over a tile."""
    rank = len(tiles)
    leading = list(grad.shape[: grad.dim() - rank])
    outputs = list(grad.shape[grad.dim() - rank :])
    apart = grad.reshape(leading + [n for o in outputs for n in (o, 1)])
    whole = apart.expand(leading + [n for o, t in zip(outputs, tiles, strict=True) for n in (o, t)])
    return whole.reshape(leading + [o * t for o, t in zip(outputs, tiles, strict=True)])


def adaptive_avg_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Each gradient, divided by the elements of its part, for all of them."""
    rank = x.dim() - 2 if x.dim() > 3 else 2
    tiles = _tiles(x, grad.shape[-rank:])
    return _spread(grad / prod(tiles), tiles)


def _covering(grad: Tensor, w: _Windows) -> list[tuple[Tensor, Tensor, list[Tensor]]]:
    """For each of the windows that may cover an element of the input: a truth value for whether there is one, its
    gradient, and where it is, as indices into the last dimensions; all of the input's sizes or broadcast to them."""
    rank, device = len(w.sizes), grad.device
    result = []
    for steps in itertools.product(*(range(-(-k // s)) for k, s in zip(w.kernel, w.stride, strict=True))):
        indices: list[Tensor] = []
        covers: Tensor | None = None
        for dim, step in enumerate(steps):
            shape = [-1 if k == dim else 1 for k in range(rank)]
            element = torch.arange(w.sizes[dim], device=device) + w.padding[dim]
            window = torch.div(element, w.stride[dim], rounding_mode="floor") - step
            inside = torch.logical_and(window >= 0, window < w.outputs[dim])
            inside = torch.logical_and(inside, element - window * w.stride[dim] < w.kernel[dim]).reshape(shape)
            covers = inside if covers is None else torch.logical_and(covers, inside)
            indices.append(torch.clamp(window, 0, w.outputs[dim] - 1).reshape(shape))
        assert covers is not None
        result.append((covers, grad[(..., *indices)], indices))
    return result


def _backward_windows(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> _Windows:
    w = _windows(x, kernel, stride, padding, dilation, ceil_mode)
    if any(d != 1 for d in w.dilation):
        raise Refusal("windows with gaps")
    return w


def avg_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """For each element the gradients of the windows that cover it, over how many elements those have."""
    w = _backward_windows(x, kernel, stride, padding, 1, ceil_mode)
    grad = accumulate(grad)
    if divisor is not None or count_include_pad or not any(w.padding):
        if any(r > p for r, p in zip(w.reach, w.padding, strict=True)):
            raise Refusal("windows that reach beyond the padding")
        grad = grad / (divisor or prod(w.kernel))
    else:
        grad = grad / _counts(w, grad.device)
    if w.stride == w.kernel and not any(w.padding) and not any(w.reach):
        return _spread(grad, w.kernel)
    total: Any = 0
    for covers, value, _ in _covering(grad, w):
        total = total + torch.where(covers, value, 0)
    return total


def max_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """For each element the gradients of the windows that cover it and in which it was the largest.

    A scatter would add up in no fixed order, into zeros that have to be written first.
    """
    w = _backward_windows(x, kernel, stride, padding, dilation, ceil_mode)
    rank, total = len(w.sizes), None
    position: Any = 0
    for dim in range(rank):
        along = torch.arange(w.sizes[dim], device=x.device).reshape([-1 if k == dim else 1 for k in range(rank)])
        position = position * w.sizes[dim] + along
    for covers, value, windows in _covering(accumulate(grad), w):
        chosen = torch.logical_and(covers, indices[(..., *windows)] == position)
        part = torch.where(chosen, value, 0)
        total = part if total is None else total + part
    assert total is not None
    return total


_BY_POSITION = {
    rank: function
    for rank, op in ((1, aten.upsample_nearest1d), (2, aten.upsample_nearest2d), (3, aten.upsample_nearest3d))
    for function in get_decompositions([op.default]).values()
}


def _whole_scales(inputs: Sequence[int], outputs: Sequence[int], scales: Sequence[float | None]) -> list[int]:
    """How many times larger the last dimensions become; raises Refusal unless that is whole and known."""
    sizes = inputs[-len(outputs) :]
    if not all(type(n) is int for n in (*inputs, *outputs)) or any(o % n for n, o in zip(sizes, outputs, strict=True)):
        raise Refusal("a size that is no multiple of the input's")
    tiles = [o // n for n, o in zip(sizes, outputs, strict=True)]
    if any(s is not None and s != t for s, t in zip(scales, tiles)):
        raise Refusal("a scale that isn't the ratio of the sizes")
    return tiles


def upsample_nearest(x: Tensor, outputs: Sequence[int], *scales: float | None) -> Tensor:
    """Each element repeated over a tile, where the sizes are whole multiples of the input's; else by its position."""
    try:
        return _spread(x, _whole_scales(x.shape, outputs, scales))
    except Refusal:
        return _BY_POSITION[len(outputs)](x, outputs, *scales)


def upsample_nearest_backward(
    grad: Tensor, outputs: Sequence[int], inputs: Sequence[int], *scales: float | None
) -> Tensor:
    """The sum of the gradients of each tile."""
    sizes, tiles = list(inputs)[-len(outputs) :], _whole_scales(inputs, outputs, scales)
    if prod(tiles) <= MAX_PLACES:
        return avg_pool(grad, tiles, divisor=1)
    parts, places = _cut(accumulate(grad), sizes)
    return torch.sum(parts, places)
