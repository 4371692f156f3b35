"""Decompositions of operators that pick a few elements of each row, or the extreme element so far.

The conventions are those of ``rules_norm``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from rooffuse.passes.rule_base import Refusal, refuse_empty
from rooffuse.passes.running import running_max, running_min
from torch import Tensor

#: Most elements that are picked from a row one after the other: each costs two reductions of the row.
MOST_PICKED = 8
#: Row elements times picks up to which a row is reduced that often while it is on chip; the library's selection goes
#: through longer rows by digits.
PICKING_WORK = 16384
#: Rows of more elements are scanned in parallel by the library where there are fewer of them than this.
LONG_SCAN, FEW_SCANS = 32768, 128


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """The ``k`` extreme elements along ``dim``, best first, and their positions (int64).

    Pick after pick takes the extreme of what hasn't been picked, and of equals the first. As in the library's sort
    order NaN is above all numbers.
    """
    refuse_empty(x)
    if x.dim() == 0 or not isinstance(k, int) or not isinstance(x.shape[dim], int):
        raise Refusal("a selection of unknown size")
    count = x.shape[dim]
    if not 0 < k <= min(MOST_PICKED, count) or k * count > PICKING_WORK:
        raise Refusal(f"{k} of {count} elements are the library's to select")
    if x.dtype == torch.bool or x.is_complex() or (not largest and x.is_floating_point()):
        # The library puts NaN last among the smallest, where a minimum would find it first.
        raise Refusal("an order that a maximum doesn't have")
    dim = dim % x.dim()
    shape = [count if d == dim else 1 for d in range(x.dim())]
    position = torch.arange(count, dtype=torch.int32, device=x.device).view(shape)
    lowest = _limit(x.dtype, largest)
    left: Tensor | None = None
    values, places = [], []
    for _ in range(k):
        candidates = x if left is None else torch.where(left, x, lowest)
        best = torch.amax(candidates, dim, keepdim=True) if largest else torch.amin(candidates, dim, keepdim=True)
        hit = x == best
        if x.is_floating_point():
            hit = hit | (torch.isnan(x) & torch.isnan(best))
        if left is not None:
            hit = hit & left
        place = torch.amin(torch.where(hit, position, count), dim, keepdim=True)
        other = position != place
        left = other if left is None else left & other
        values.append(best)
        places.append(place)
    return torch.cat(values, dim), torch.cat(places, dim).to(torch.int64)


def _limit(dtype: torch.dtype, largest: bool) -> float | int:
    if dtype.is_floating_point:
        return float("-inf")
    limits = torch.iinfo(dtype)
    return limits.min if largest else limits.max


def cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest element so far along ``dim``, and the last place at which it was met (int64); as in the library, NaN
    is larger than all numbers."""
    return _running(x, dim, running_max)


def cummin(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The smallest element so far, and its place; NaN is smaller than all numbers."""
    return _running(x, dim, running_min)


def _running(x: Tensor, dim: int, extreme: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor]:
    refuse_empty(x)
    if x.dim() == 0 or x.dtype == torch.bool or not isinstance(x.shape[dim], int):
        raise Refusal("a scalar, truth values, or rows of unknown length")
    count = x.shape[dim]
    if count > LONG_SCAN and x.numel() < FEW_SCANS * count:
        raise Refusal(f"few rows of {count} elements are the library's to scan in parallel")
    dim = dim % x.dim()
    values = extreme(x, dim)
    met = x == values
    if x.is_floating_point():
        met = met | torch.isnan(x)
    position = torch.arange(count, dtype=torch.int32, device=x.device).view(
        [count if d == dim else 1 for d in range(x.dim())])
    return values, running_max(torch.where(met, position, 0), dim).to(torch.int64)
