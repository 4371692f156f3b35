"""Gradients of poolings and upsamplings: each element gathers from the windows that cover it.

Scattering the windows' gradients would add up in no fixed order, into zeros that have to be written first. Which
windows cover an element is known from where it is: with stride ``s`` and ``p`` elements of padding the last one along a
dimension is ``floor((element + p) / s)``. That is a view of the windows, repeated ``s`` times and cut, so that kernels
see addresses instead of a table of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from rooffuse.passes.rule_base import Refusal, accumulate
from rooffuse.passes.rules_window import avg_pool
from rooffuse.passes.windows import (
    MAX_PLACES,
    Windows,
    cut_in_parts,
    place_strides,
    spread,
    tiles_of,
    whole_scales,
    window_sizes,
    windows_over,
)
from torch import Tensor

#: Stands where there is no window: no window has so many places.
_NO_PLACE = 255


def _backward_windows(
    shape: Sequence[Any], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Windows:
    w = windows_over(shape, kernel, stride, padding, dilation, ceil_mode)
    if any(d != 1 for d in w.dilation):
        raise Refusal("windows with gaps")
    return w


def _steps_back(w: Windows) -> Iterator[tuple[int, ...]]:
    """How many windows before the last one along each dimension those are that may cover an element."""
    return itertools.product(*(range(-(-k // s)) for k, s in zip(w.kernel, w.stride, strict=True)))


def _by_window(x: Tensor, w: Windows, outside: float) -> Iterator[Tensor]:
    """For each of `_steps_back` what ``x [..., *outputs]`` has for the window so far before the last one that covers an
    element, for each element of the input, or ``outside`` where there is none."""
    pads, starts = [], []
    for n, o, k, s, p in zip(w.sizes, w.outputs, w.kernel, w.stride, w.padding, strict=True):
        before = max(-(-k // s) - 1 - p // s, 0)
        pads += [max((n - 1 + p) // s - (o - 1), 0), before]
        starts.append(p + before * s)
    if any(pads):
        x = torch.constant_pad_nd(x, pads[::-1], outside)
    whole = spread(x, w.stride)
    for steps in _steps_back(w):
        view = whole
        for dim, (start, step, s, n) in enumerate(zip(starts, steps, w.stride, w.sizes, strict=True)):
            view = view.narrow(dim - len(steps), start - step * s, n)
        yield view


def _along(values: Tensor, dim: int, rank: int) -> Tensor:
    return values.reshape([-1 if k == dim else 1 for k in range(rank)])


def _place(w: Windows, steps: Sequence[int], device: torch.device) -> tuple[Any, Tensor | None]:
    """Which place, in row-major order, an element has in the window that is ``steps`` back, and whether it is one: None
    if each is."""
    rank, place, covered = len(w.sizes), 0, None
    for dim, (n, k, s, p, step, apart) in enumerate(
        zip(w.sizes, w.kernel, w.stride, w.padding, steps, place_strides(w), strict=True)
    ):
        if s == 1:
            place = place + step * apart
            continue
        within = torch.remainder(torch.arange(n, dtype=torch.int32, device=device) + p, s) + step * s
        place = place + _along(within * apart, dim, rank)
        if (step + 1) * s > k:
            inside = _along(within < k, dim, rank)
            covered = inside if covered is None else torch.logical_and(covered, inside)
    return place, covered


def adaptive_avg_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Each gradient, divided by the elements of its part, for all of them."""
    rank = x.dim() - 2 if x.dim() > 3 else 2
    tiles = tiles_of(x, grad.shape[-rank:])
    return spread(grad / prod(tiles), tiles)


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
    w = _backward_windows(x.shape, kernel, stride, padding, 1, ceil_mode)
    grad = accumulate(grad) / window_sizes(w, count_include_pad, divisor, grad.device)
    parts = []
    for steps, part in zip(_steps_back(w), _by_window(grad, w, 0.0), strict=True):
        covered = _place(w, steps, grad.device)[1]
        parts.append(part if covered is None else torch.where(covered, part, 0.0))
    return functools.reduce(torch.add, parts)


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
    """For each element the gradients of the windows that cover it and in which it was the largest."""
    w = _backward_windows(x.shape, kernel, stride, padding, dilation, ceil_mode)
    rank, position = len(w.sizes), 0
    for dim in range(rank):
        along = torch.arange(w.sizes[dim], device=x.device)
        position = position + _along(along * prod(w.sizes[dim + 1 :]), dim, rank)
    parts = [
        torch.where(winner == position, part, 0.0)
        for winner, part in zip(_by_window(indices, w, -1), _by_window(accumulate(grad), w, 0.0), strict=True)
    ]
    return functools.reduce(torch.add, parts)


def max_pool_places_backward(
    grad: Tensor,
    places: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """The same for an input of ``size``, by which place of each window was the largest."""
    w = _backward_windows(size, kernel, stride, padding, 1, ceil_mode)
    parts, winners = [], _by_window(places, w, _NO_PLACE)
    for steps, winner, part in zip(_steps_back(w), winners, _by_window(accumulate(grad), w, 0.0), strict=True):
        place, covered = _place(w, steps, grad.device)
        chosen = winner == place if covered is None else torch.logical_and(winner == place, covered)
        parts.append(torch.where(chosen, part, 0.0))
    return functools.reduce(torch.add, parts)


def upsample_nearest_backward(
    grad: Tensor, outputs: Sequence[int], inputs: Sequence[int], *scales: float | None
) -> Tensor:
    """The sum of the gradients of each tile."""
    sizes, tiles = list(inputs)[-len(outputs) :], whole_scales(inputs, outputs, scales)
    if prod(tiles) <= MAX_PLACES:
        return avg_pool(grad, tiles, divisor=1)
    parts, places = cut_in_parts(accumulate(grad), sizes)
    return torch.sum(parts, places)
