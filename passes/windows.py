"""Windows of poolings and convolutions: where they lie, and what stands at each of their places. Tiles are windows
that cut dimensions into equal parts."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from rooffuse.passes.rule_base import Refusal
from torch import Tensor

#: Most places of a window that is unrolled: 3 × 3 × 3 and 5 × 5 are, 7 × 7 isn't.
MAX_PLACES = 27


@dataclass(frozen=True)
class Windows:
    """Windows over the last dimensions of a tensor: all per dimension, ``outputs`` is how many there are."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether every window lies within the padded input."""
        return all(r <= p for r, p in zip(self.reach, self.padding, strict=True))

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


def windows_over(
    shape: Sequence[Any],
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    rank: int | None = None,
    most: int = MAX_PLACES,
) -> Windows:
    """Windows over the last ``rank`` dimensions of a tensor of ``shape``, by default as many as ``kernel`` has sizes.

    Raises Refusal for sizes that are not known and for windows of more places than ``most``.
    """
    rank = rank or len(kernel)
    sizes = tuple(shape[-rank:])
    if not all(type(n) is int for n in shape):
        raise Refusal("windows over sizes that are only known when it runs")
    kernel = _each(kernel, rank)
    stride = _each(stride, rank) if stride not in (None, [], ()) else kernel
    padding, dilation = _each(padding, rank), _each(dilation, rank)
    if prod(kernel) > most:
        raise Refusal(f"a window of {prod(kernel)} places is more than is unrolled")
    outputs = []
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        free = n + 2 * p - d * (k - 1) - 1
        count = (-(-free // s) if ceil_mode else free // s) + 1
        outputs.append(count - 1 if ceil_mode and (count - 1) * s >= n + p else count)
    return Windows(sizes, kernel, stride, padding, dilation, tuple(outputs))


def at_places(x: Tensor, w: Windows, outside: float) -> list[Tensor]:
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


def place_strides(w: Windows) -> list[int]:
    """How far apart in row-major order the places of a window are along each dimension."""
    return [prod(w.kernel[dim + 1 :]) for dim in range(len(w.kernel))]


def window_sizes(w: Windows, padded: bool, divisor: int | None, device: torch.device) -> Any:
    """What the sum of each window is divided by for its mean: ``divisor``, or how many elements of the input it has, or
    of the padded input."""
    if divisor is not None or (w.whole and (padded or not any(w.padding))):
        return prod(w.kernel) if divisor is None else divisor
    result: Any = 1
    rank = len(w.sizes)
    for dim in range(rank):
        around = w.padding[dim] if padded else 0
        start = torch.arange(w.outputs[dim], device=device) * w.stride[dim] - w.padding[dim]
        inside = torch.clamp(start + w.kernel[dim], max=w.sizes[dim] + around) - torch.clamp(start, min=-around)
        result = result * inside.reshape([-1 if k == dim else 1 for k in range(rank)])
    return result


def tiles_of(x: Tensor, outputs: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the windows that cut the last dimensions of ``x`` into ``outputs`` equal parts."""
    if not in_equal_parts(x, outputs):
        raise Refusal("windows of different sizes")
    return tuple(n // o for n, o in zip(x.shape[-len(outputs) :], outputs, strict=True))


def in_equal_parts(x: Tensor, outputs: Sequence[int]) -> bool:
    """Whether the last dimensions of ``x`` are known to be ``outputs`` equal parts."""
    sizes = x.shape[-len(outputs) :]
    return all(type(n) is int for n in (*x.shape, *outputs)) and not any(map(operator.mod, sizes, outputs))


def cut_in_parts(x: Tensor, outputs: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Each of the last dimensions in two, parts and places in a part, and which dimensions the places are."""
    tiles, rank = tiles_of(x, outputs), len(outputs)
    leading = list(x.shape[: x.dim() - rank])
    sizes = [n for pair in zip(outputs, tiles, strict=True) for n in pair]
    return x.reshape(leading + sizes), [len(leading) + 2 * k + 1 for k in range(rank)]


def spread(x: Tensor, tiles: Sequence[int]) -> Tensor:
    """Each element of the last dimensions, repeated over a tile."""
    rank = len(tiles)
    leading = list(x.shape[: x.dim() - rank])
    outputs = list(x.shape[x.dim() - rank :])
    apart = x.reshape(leading + [n for o in outputs for n in (o, 1)])
    whole = apart.expand(leading + [n for o, t in zip(outputs, tiles, strict=True) for n in (o, t)])
    return whole.reshape(leading + [o * t for o, t in zip(outputs, tiles, strict=True)])


def whole_scales(inputs: Sequence[int], outputs: Sequence[int], scales: Sequence[float | None]) -> list[int]:
    """How many times larger the last dimensions become; raises Refusal unless that is whole and known."""
    sizes = inputs[-len(outputs) :]
    if not all(type(n) is int for n in (*inputs, *outputs)) or any(o % n for n, o in zip(sizes, outputs, strict=True)):
        raise Refusal("a size that is no multiple of the input's")
    tiles = [o // n for n, o in zip(sizes, outputs, strict=True)]
    if any(s is not None and s != t for s, t in zip(scales, tiles)):
        raise Refusal("a scale that isn't the ratio of the sizes")
    return tiles
