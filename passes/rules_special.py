"""Decompositions of special functions, of what is done to slices and places chosen by masks, and of small gradients.

The conventions are those of ``rules_norm``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from rooffuse.passes.rule_base import Refusal, accumulate
from rooffuse.passes.windows import spread
from torch import Tensor

# Polynomials of M. Giles, "Approximating the erfinv function", GPU Computing Gems, 2011, highest power first: in
# w − 2.5 for w = −log(1 − x²) below 5, and in √w − 3 above.
_ERFINV_CENTRE = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
                  -0.00417768164, 0.246640727, 1.50140941)
_ERFINV_TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
                0.00943887047, 1.00167406, 2.83297682)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    value = coefficients[0] * x + coefficients[1]
    for c in coefficients[2:]:
        value = value * x + c
    return value


def erfinv(x: Tensor) -> Tensor:
    """The number whose error function is ``x``; ±∞ at ±1 and NaN beyond."""
    if not x.is_floating_point():
        raise Refusal("the inverse error function of a whole number")
    y = accumulate(x)
    w = -torch.log((1 - y) * (1 + y))
    found = y * torch.where(w < 5, _polynomial(w - 2.5, _ERFINV_CENTRE), _polynomial(torch.sqrt(w) - 3, _ERFINV_TAIL))
    if y.dtype == torch.float64:  # the polynomials have the precision of float32; a step of Newton's doubles it
        for _ in range(2):
            slope = 2 / math.sqrt(math.pi) * torch.exp(-found * found)
            found = found - (torch.erf(found) - y) / slope
    return torch.where(torch.abs(y) == 1, y * math.inf, found)


def angle(x: Tensor) -> Tensor:
    """0 for a number, π for a negative one."""
    if x.is_complex() or not x.is_floating_point():
        raise Refusal("the angle of a complex or whole number")
    return torch.where(torch.isnan(x), x, (x < 0).to(x.dtype) * math.pi)


def shrink_backward(grad: Tensor, x: Tensor, within: float) -> Tensor:
    """Nothing where ``x`` is at most ``within`` from zero."""
    return torch.where(torch.logical_and(x >= -within, x <= within), 0.0, grad)


def slice_scatter(
    x: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """``x`` with every ``step``-th element along ``dim`` from ``source``; a slice without gaps stays whole."""
    count, taken = x.shape[dim], source.shape[dim]
    if step == 1 or type(count) is not int or type(taken) is not int or not taken:
        raise Refusal("a slice without gaps, of nothing, or of a size that isn't known")
    first, last = slice(start, end).indices(count)[0], dim % x.dim()
    ahead = source.movedim(dim, -1)
    laid = torch.constant_pad_nd(spread(ahead, [step]), [first, max(count - first - taken * step, 0)])
    place = torch.arange(count, dtype=torch.int32, device=x.device) - first
    chosen = torch.logical_and(place >= 0, torch.remainder(place, step) == 0)
    chosen = torch.logical_and(chosen, place < taken * step)
    return torch.where(chosen.reshape([-1 if d == last else 1 for d in range(x.dim())]),
                       laid.narrow(-1, 0, count).movedim(-1, dim).to(x.dtype), x)


def masked_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """``values``, which are the same at each of a mask's places, or vary along other dimensions only, at those of ``x``
    that the mask chooses."""
    masks = [i for i in indices if i is not None]
    if len(masks) != 1 or masks[0].dtype != torch.bool or indices[-1] is None:
        raise Refusal("places that aren't chosen by one mask")
    leading, chosen = len(indices) - 1, masks[0].dim()
    rest = x.dim() - leading - chosen
    if values.dim() > rest:
        if values.shape[values.dim() - rest - 1] != 1:
            raise Refusal("a value of its own for each place that a mask chooses")
        before = list(values.shape[: values.dim() - rest - 1])
        values = values.reshape(before + [1] * chosen + list(values.shape[values.dim() - rest :]))
    mask = masks[0].reshape(list(masks[0].shape) + [1] * rest)
    return torch.where(mask, x + values if accumulate else values, x)
