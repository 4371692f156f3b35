"""Small functions that are all memory traffic: what fusing is for.

    rooffuse report examples/norms.py:add_rms_norm --device h100
    rooffuse report examples/norms.py:layer_norm_gelu --source
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Target = tuple[Callable[..., Any], tuple[Any, ...]]
ROWS, HIDDEN = 2048, 4096


def _tensors(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes)


def add_rms_norm() -> Target:
    """The residual stream of a transformer: the sum goes on, its RMSNorm into the next layer."""

    def run(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        hidden = x + residual
        return hidden, F.rms_norm(hidden, (HIDDEN,), weight, 1e-6)

    return run, _tensors((ROWS, HIDDEN), (ROWS, HIDDEN), (HIDDEN,))


def layer_norm_gelu() -> Target:
    """LayerNorm and the activation after it."""

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.layer_norm(x, (HIDDEN,), weight, bias))

    return run, _tensors((ROWS, HIDDEN), (HIDDEN,), (HIDDEN,))


def softmax() -> Target:
    """Softmax over rows, with a scale and a mask."""

    def run(scores: Tensor, mask: Tensor) -> Tensor:
        return torch.softmax(scores * HIDDEN**-0.5 + mask, dim=-1)

    return run, _tensors((ROWS, HIDDEN), (HIDDEN,))
