"""Poolings over parts of different sizes: as many as are asked for, of sizes that don't divide into so many.

Part ``i`` of ``o`` of a dimension of ``n`` goes from ``floor(i·n / o)`` to ``ceil((i + 1)·n / o)``. Each of the
few places of the longest part is read by its position; where a part is shorter, its last element is read again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from rooffuse.passes.rule_base import Refusal, accumulate
from rooffuse.passes.windows import MAX_PLACES
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class _Parts:
    """``first`` and ``last`` element of each part along each dimension, ``[o]`` and integers, and the longest part."""

    first: tuple[Tensor, ...]
    last: tuple[Tensor, ...]
    longest: tuple[int, ...]


def uneven_avg_pool(x: Tensor, outputs: Sequence[int]) -> Tensor:
    """The means of ``outputs`` parts of the last dimensions."""
    parts, total = _parts_of(x, outputs), None
    for value, at, place in _at_places(accumulate(x), parts):
        for dim, k in enumerate(place):
            if k:
                value = torch.where(parts.first[dim] + k == at[dim], value, 0)
        total = value if total is None else total + value
    assert total is not None
    sizes = [last - first + 1 for first, last in zip(parts.first, parts.last, strict=True)]
    return total / prod(sizes[1:], start=sizes[0])


def uneven_max_pool(x: Tensor, outputs: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The largest elements of ``outputs`` parts of the last dimensions and their flat positions; NaN is larger than any
    number, and of equal ones the first is taken."""
    apart = [prod(x.shape[dim:]) for dim in range(x.dim() - len(outputs) + 1, x.dim() + 1)]
    best = winner = None
    for value, at, _ in _at_places(x, _parts_of(x, outputs)):
        position: Any = sum(p * n for p, n in zip(at, apart, strict=True))
        if best is None:
            best, winner = value, position.expand(value.shape)
            continue
        wins = value > best
        if x.dtype.is_floating_point:
            wins = torch.logical_or(wins, torch.isnan(value))
        best, winner = torch.maximum(best, value), torch.where(wins, position, winner)
    assert best is not None and winner is not None
    return best, winner


def _parts_of(x: Tensor, outputs: Sequence[int]) -> _Parts:
    """Raises Refusal for sizes that are not known and for parts of many elements."""
    sizes = x.shape[-len(outputs) :]
    if not all(type(n) is int and n for n in (*x.shape, *outputs)):
        raise Refusal("parts of sizes that are only known when it runs, or of nothing")
    first, last, longest = [], [], []
    for dim, (n, o) in enumerate(zip(sizes, outputs, strict=True)):
        ends = [(i * n // o, -(-(i + 1) * n // o) - 1) for i in range(o)]
        longest.append(max(b - a for a, b in ends) + 1)
        shape = [-1 if k == dim else 1 for k in range(len(outputs))]
        count = torch.arange(o, device=x.device).reshape(shape) * n
        first.append(torch.div(count, o, rounding_mode="floor"))
        last.append(torch.div(count + n - 1, o, rounding_mode="floor"))
    if prod(longest) > MAX_PLACES:
        raise Refusal(f"parts of different sizes, of which one has {prod(longest)} elements: more than are unrolled")
    return _Parts(tuple(first), tuple(last), tuple(longest))


def _at_places(x: Tensor, parts: _Parts) -> Iterator[tuple[Tensor, list[Tensor], tuple[int, ...]]]:
    """For each place of the longest part what stands there in each part, where that is along each dimension, and the
    place."""
    leading = [None] * (x.dim() - len(parts.longest))
    for place in itertools.product(*map(range, parts.longest)):
        at = [torch.minimum(first + k, last) if k else first
              for k, first, last in zip(place, parts.first, parts.last, strict=True)]
        yield aten._unsafe_index(x, [*leading, *at]), at, place
