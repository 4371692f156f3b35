"""Functions that have to do with parts of rows: reduced beside the whole row, or all that is left of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def quantised(size: int) -> Callable[..., Any]:
    """An RMSNorm, then each ``size`` of its elements scaled by their largest."""
    def fn(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight).view(x.shape[0], -1, size)
        scale = y.abs().amax(-1, keepdim=True) / 127
        return (y / scale).view(x.shape), scale[..., 0]

    return fn


def normed_heads(x: Tensor, weight: Tensor) -> Tensor:
    """Heads that are normalised, with a weight for their places, inside of a normalised row."""
    heads = layer_norm(x).view(x.shape[0], -1, weight.shape[0])
    return F.softmax(layer_norm(heads) * weight, -1)


def best_groups(size: int) -> Callable[[Tensor], Any]:
    """Rows of groups: the best of each group with its place, the best groups' share, and a softmax of whole rows."""
    def fn(x: Tensor) -> tuple[Tensor, ...]:
        groups = x.view(x.shape[0], -1, size)
        best, share = groups.amax(-1), F.softmax(x, -1)
        mean = best.sum(-1, keepdim=True) / best.amin(-1, keepdim=True)
        return groups.argmax(-1), best, mean, share * mean, groups.argmin(1)

    return fn


def nested_groups(x: Tensor) -> tuple[Tensor, ...]:
    """Sums of groups of groups, and of every other axis of them."""
    cut = (x - x.mean(-1, keepdim=True)).view(x.shape[0], 9, 10, 11)
    largest = cut.amax((1, 3), keepdim=True)
    return cut / (cut.abs().sum(-1, keepdim=True) + largest), cut.prod(2), cut.sum((2, 3)).exp(), (cut > 1).any(-1)


def with_sink(scores: Tensor, sink: Tensor) -> Tensor:
    """A softmax over each row and one more number, which is left out of the result."""
    rows = torch.cat([scores, sink[:, None].expand(-1, scores.shape[1])[..., None]], -1)
    return F.softmax(rows, -1)[..., :-1] * 2


def halves_of_norm(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of a norm's rows multiplied with each other, and the middle of them, weighted."""
    y, half = layer_norm(x), x.shape[-1] // 2
    return F.silu(y[:, :half]) * y[:, half:2 * half], y[:, 3:3 + weight.shape[0]] * weight


def gates(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """A recurrent cell whose gates are parts of a normalised row (Ba et al., 2016)."""
    keep, into, new, out = layer_norm(x).chunk(4, -1)
    now = keep.sigmoid() * memory + into.sigmoid() * new.tanh()
    return now, out.sigmoid() * now.tanh() / x.abs().amax(-1, keepdim=True)


def pairs_of_softmax(x: Tensor) -> Tensor:
    """Neighbours in softmax rows added up: each result of two places that lie next to each other."""
    share = F.softmax(x, -1)
    return share[..., ::2] + share[..., 1::2] * 2


#: Rows of a strip.
STRIP = 12


def norm_backward(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """What a norm's backward asks of one input: sums along its rows and down its columns."""
    scaled = dy * w
    strips = (dy * x).reshape(-1, STRIP, x.shape[-1]).sum(1)
    return scaled - x * (scaled * x).mean(-1, keepdim=True), strips
