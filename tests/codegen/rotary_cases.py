"""Normalised rows of which parts are turned, or put in another order, on their way to memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .case_table import case


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """All of ``x``, its halves paired."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def partly(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As many elements of each normalised head as there are angles, the rest as it is."""
    x, size = rms_norm(x, weight), cos.shape[-1]
    return torch.cat([rotated(x[..., :size], cos, sin), x[..., size:]], -1)


def partly_at_the_end(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    size = x.shape[-1] - cos.shape[-1]
    x = rms_norm(x, weight)
    return torch.cat([x[..., :size], rotated(x[..., size:], cos, sin)], -1).transpose(1, 2).contiguous()


def in_pieces(join: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Pairs put together by ``join`` and then converted to half precision."""
    def fn(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        size = cos.shape[-1]
        x = rms_norm(x, weight)
        a, b = (x[..., 0::2], x[..., 1::2]) if join is interleave else (x[..., :size], x[..., size:2 * size])
        turned = join(a * cos - b * sin, b * cos + a * sin)
        return (torch.cat([turned, x[..., 2 * size:]], -1) if x.shape[-1] > 2 * size else turned).bfloat16()

    return fn


def beside(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], -1)


def interleave(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a, b], -1).flatten(-2)


def turned_groups(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Halves of a normalised row exchanged, and groups of them scaled by their largest."""
    first, last = rms_norm(x, weight).chunk(2, -1)
    groups = torch.cat([last, first], -1).view(x.shape[0], -1, 16)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return groups / scale, scale


def both(q: Tensor, k: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of other numbers of heads."""
    return partly(q, weight, cos, sin), partly(k, weight, cos, sin)


def heads(size: int, angles: int, count: int = 3) -> list[Callable[[], Tensor]]:
    """Heads of ``size``, a weight, cosines and sines."""
    angle = [lambda: torch.randn(2, 5, 1, angles)] * 2
    return [lambda: torch.randn(2, 5, count, size), lambda: torch.randn(size), *angle]


case("rope_part", partly, *heads(64, 32))
case("rope_quarter", partly, *heads(64, 16))
case("rope_part_of_odd_rows", partly, *heads(50, 14))
case("rope_last_part", partly_at_the_end, *heads(48, 16))
case("rope_halves", in_pieces(beside), *heads(64, 32))
case("rope_three_pieces", in_pieces(beside), *heads(64, 16))
case("rope_interleaved", in_pieces(interleave), *heads(64, 32))
case("rope_turned_groups", turned_groups, (5, 128), (128,))
case("rope_two_kinds_of_heads", both, heads(64, 32, 4)[0], *heads(64, 32, 1))
