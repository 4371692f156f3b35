"""What workloads share: random inputs, sizes for each kind of device, and a norm."""
from __future__ import annotations

from collections.abc import Callable

import torch


def normal(device: str, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """A function that makes tensors of normal numbers, ``normal(device, dtype)(*shape, kind=dtype)``."""
    torch.manual_seed(0)
    return lambda *shape, kind=dtype: torch.randn(*shape, device=device, dtype=kind)


def scaled(device: str, large: int, small: int) -> int:
    """``large`` on a GPU, ``small`` on a CPU."""
    return large if device == "cuda" else small


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """``x / √(mean(x²) + eps) · weight`` over the last dimension, in float32 inside."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def distinct(x: torch.Tensor) -> torch.Tensor:
    """The ranks in each row of up to 256 elements, in sixteenths about zero: of equals no one knows which is chosen."""
    count = x.shape[-1]
    return ((x.argsort(-1) - count // 2) / 16).to(x.dtype)
