"""Decompositions of moments, norms, dropout and other small compound operators.

The conventions are those of ``rules_norm``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rooffuse.passes.rule_base import Refusal, accumulate, element_count, memory_order, refuse_empty
from torch import Tensor


def _dims(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    return dims or list(range(x.dim()))


def var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """(Σ (x − E x)² / max(n − correction, 0), E x), the correction being 1 by default."""
    refuse_empty(x)
    if not x.is_floating_point():
        raise Refusal("the variance of complex numbers")
    dims = _dims(x, dim)
    x = accumulate(x)
    mean = torch.mean(x, dims, keepdim=True)
    centred = x - mean
    count = element_count(x, dims)
    free = count - (1 if correction is None else correction)
    if isinstance(free, (int, float)) and free <= 0:
        raise Refusal("no degrees of freedom")
    variance = torch.sum(centred * centred, dims, keepdim=keepdim) / free
    return variance, (mean if keepdim or x.dim() == 0 else torch.squeeze(mean, dims))


def var(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    """The first result of ``var_mean``."""
    return var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def std(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    """√var."""
    return torch.sqrt(var(x, dim, correction=correction, keepdim=keepdim))


def std_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """(√var, mean)."""
    variance, mean = var_mean(x, dim, correction=correction, keepdim=keepdim)
    return torch.sqrt(variance), mean


def vector_norm(
    x: Tensor,
    order: float = 2,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """(Σ |x|^p)^(1/p); the count of non-zeros for p = 0, the extreme of |x| for p = ±∞."""
    refuse_empty(x)
    if not x.is_floating_point() or (dtype is not None and not dtype.is_floating_point):
        raise Refusal("a norm of numbers that are not real")
    dims = _dims(x, dim)
    x = accumulate(x if dtype is None else x.to(dtype))
    if order == 2:
        return torch.sqrt(torch.sum(x * x, dims, keepdim=keepdim))
    size = torch.abs(x)
    if order == 1:
        return torch.sum(size, dims, keepdim=keepdim)
    if order == float("inf"):
        return torch.amax(size, dims, keepdim=keepdim)
    if order == float("-inf"):
        return torch.amin(size, dims, keepdim=keepdim)
    if order == 0:
        return torch.sum((x != 0).to(x.dtype), dims, keepdim=keepdim)
    return torch.pow(torch.sum(torch.pow(size, order), dims, keepdim=keepdim), 1.0 / order)


def dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """x · mask / (1 − p) with mask drawn from Bernoulli(1 − p), and the mask.

    On CPU the framework fills a boolean mask by one ``bernoulli`` draw, so drawing the mask with the same call
    gives the same numbers. On other devices its fused kernel consumes the generator in another order: the operator
    stays whole there, and results stay equal to eager ones.
    """
    refuse_empty(x)
    if train is False:
        return x.clone(), torch.ones_like(x, dtype=torch.bool, memory_format=torch.contiguous_format)
    if x.device.type != "cpu":
        raise Refusal(f"the dropout kernel of {x.device.type} draws its random numbers in its own order")
    keep = 1.0 - p
    # The framework fills in memory order.
    order, inverse = memory_order(torch.empty_like(x, dtype=torch.bool))
    sizes = [x.shape[dim] for dim in order]
    mask = torch.bernoulli(torch.empty(sizes, dtype=torch.bool, device=x.device), keep).permute(inverse)
    return x * mask * (0.0 if keep == 0 else 1.0 / keep), mask


def dropout_backward(grad: Tensor, mask: Tensor, scale: float) -> Tensor:
    """g · mask · scale."""
    return accumulate(grad) * mask * scale


def reverse_sub_scalar(x: Tensor, other: float, alpha: float = 1) -> Tensor:
    """other − x, as (−x) + other: subtraction is addition of the negative, bit for bit."""
    if alpha != 1:
        raise Refusal("a scaled subtraction would round twice")
    return torch.add(torch.neg(x), other)


def reverse_sub(x: Tensor, other: Tensor, *, alpha: float = 1) -> Tensor:
    """other − alpha · x."""
    return torch.sub(other, x, alpha=alpha)


def square(x: Tensor) -> Tensor:
    """x · x."""
    return x * x


def addcmul(x: Tensor, first: Tensor, second: Tensor, *, value: float = 1) -> Tensor:
    """x + value · first · second."""
    x, first, second = accumulate(x), accumulate(first), accumulate(second)
    return x + (first if value == 1 else first * value) * second


def addcdiv(x: Tensor, numerator: Tensor, denominator: Tensor, *, value: float = 1) -> Tensor:
    """x + value · numerator / denominator."""
    x, numerator, denominator = accumulate(x), accumulate(numerator), accumulate(denominator)
    return x + (numerator if value == 1 else numerator * value) / denominator


def gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """g · d/dx [x · Φ(x)], with Φ the normal distribution function or its tanh approximation."""
    grad, x = accumulate(grad), accumulate(x)
    if approximate == "tanh":
        slope, cubic = (2.0 / torch.pi) ** 0.5, 0.044715
        square = x * x
        tanh = torch.tanh(slope * (x + cubic * square * x))
        left = 0.5 * (1 + tanh)
        right = 0.5 * x * (1 - tanh * tanh) * (slope * (1 + 3 * cubic * square))
        return grad * (left + right)
    cdf = 0.5 * (1 + torch.erf(x * 0.5**0.5))
    density = torch.exp(x * x * -0.5) * (2.0 * torch.pi) ** -0.5
    return grad * (cdf + x * density)


def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """g · σ(x) · (1 + x · (1 − σ(x)))."""
    grad, x = accumulate(grad), accumulate(x)
    sigmoid = torch.sigmoid(x)
    return grad * sigmoid * (1 + x * (1 - sigmoid))


def sigmoid_backward(grad: Tensor, y: Tensor) -> Tensor:
    """g · (1 − y) · y."""
    return accumulate(grad) * (1 - accumulate(y)) * y


def tanh_backward(grad: Tensor, y: Tensor) -> Tensor:
    """g · (1 − y²)."""
    y = accumulate(y)
    return accumulate(grad) * (1 - y * y)


def threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    """g where x > threshold, else 0; NaN passes the gradient on."""
    return torch.where(x <= threshold, 0, grad)


def lerp_scalar(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """start + weight · (end − start), from the nearer end, so that weight 1 gives ``end`` exactly."""
    start, end = accumulate(start), accumulate(end)
    return start + weight * (end - start) if abs(weight) < 0.5 else end - (end - start) * (1 - weight)


def lerp_tensor(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """``lerp_scalar`` with a weight for each element."""
    start, end, weight = accumulate(start), accumulate(end), accumulate(weight)
    step = end - start
    return torch.where(torch.abs(weight) < 0.5, start + weight * step, end - step * (1 - weight))


def logit(x: Tensor, eps: float | None = None) -> Tensor:
    """log(x / (1 − x)), x held within [ε, 1 − ε] if ε is given."""
    if not x.is_floating_point():
        raise Refusal("integer input")
    x = accumulate(x)
    if eps is not None:
        x = torch.clamp(x, eps, 1 - eps)
    return torch.log(x / (1 - x))


_MEAN = 1  # the reduction argument of losses: 0 keeps elements, 1 takes their mean, 2 their sum


def nll_loss_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    """−g · weight[target] at the target's class, 0 elsewhere and for ignored targets; g / Σ weight for a mean.

    Written as a comparison with the class index, which a kernel computes in place, where a scatter would need a
    tensor of zeros and a second pass.
    """
    classes = 0 if x.dim() < 2 else 1
    grad = accumulate(grad)
    grad = -(grad / accumulate(total_weight) if reduction == _MEAN else grad)
    if grad.dim() and x.dim() > 1:
        grad = grad.unsqueeze(classes)
    by_class = [-1 if dim == classes else 1 for dim in range(x.dim())]
    if weight is not None:
        grad = grad * weight.reshape(by_class)
    index = torch.arange(x.shape[classes], device=x.device).reshape(by_class)
    hit = torch.logical_and(index == target.unsqueeze(classes), (target != ignore_index).unsqueeze(classes))
    return torch.where(hit, grad, 0)
