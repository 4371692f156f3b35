"""Decompositions of moments, norms, dropout and other small compound operators.

The conventions are those of ``rules_norm``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rooffuse.passes.rule_base import Refusal, accumulate, computed_alike, element_count, memory_order, refuse_empty
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
    if x.is_complex() and dtype is None:
        x = torch.abs(x)  # as a gradient asks for it, which compares both
    if not x.is_floating_point() or (dtype is not None and not dtype.is_floating_point):
        raise Refusal("a norm of numbers that are not real, in a type of its own or of whole numbers")
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
    x, first, second = computed_alike(x, first, second)
    return x + (first if value == 1 else first * value) * second


def addcdiv(x: Tensor, numerator: Tensor, denominator: Tensor, *, value: float = 1) -> Tensor:
    """x + value · numerator / denominator."""
    x, numerator, denominator = computed_alike(x, numerator, denominator)
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
    """g · (1 − y) · y, the latter conjugated where it is complex."""
    y = accumulate(y)
    return accumulate(grad) * ((1 - y) * y).conj() if y.is_complex() else accumulate(grad) * (1 - y) * y


def tanh_backward(grad: Tensor, y: Tensor) -> Tensor:
    """g · (1 − y²), the latter conjugated where it is complex."""
    y = accumulate(y)
    return accumulate(grad) * (1 - y * y).conj()


def threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    """g where x > threshold, else 0; NaN passes the gradient on."""
    return torch.where(accumulate(x) <= threshold, 0, grad)


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


def max_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The largest element along ``dim`` and the place of the first one."""
    return _extreme(x, dim, keepdim, torch.amax, torch.argmax)


def min_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The smallest element along ``dim`` and the place of the first one."""
    return _extreme(x, dim, keepdim, torch.amin, torch.argmin)


def largest(x: Tensor) -> Tensor:
    """The largest of all elements."""
    refuse_empty(x)
    return torch.amax(x)


def smallest(x: Tensor) -> Tensor:
    """The smallest of all elements."""
    refuse_empty(x)
    return torch.amin(x)


def _extreme(
    x: Tensor, dim: int, keepdim: bool, value: Callable[..., Tensor], place: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    refuse_empty(x)
    if x.dtype == torch.bool:
        raise Refusal("the place of a truth value")
    return value(x, dim, keepdim=keepdim), place(x, dim, keepdim=keepdim)


def matrix_vector(matrix: Tensor, vector: Tensor) -> Tensor:
    """``matrix @ vector`` as a product with one row, whose bytes are those of the matrix."""
    return torch.mm(vector.unsqueeze(0), matrix.t()).squeeze(0)


def matrix_vector_added(
    x: Tensor, matrix: Tensor, vector: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """β·x + α·matrix·vector; nothing of ``x`` is read for β = 0."""
    if not matrix.is_floating_point():
        raise Refusal("a product of numbers that are not real")
    product = alpha * accumulate(matrix_vector(matrix, vector))
    return product if beta == 0 else beta * accumulate(x) + product


def distance(x: Tensor, y: Tensor, order: float = 2) -> Tensor:
    """The norm of the difference."""
    return vector_norm(x - y, order)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Σ x·y."""
    if not x.is_floating_point():
        raise Refusal("a sum of products of numbers that are not real")
    return torch.sum(accumulate(x) * accumulate(y))


def outer_added(x: Tensor, column: Tensor, row: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """β·x + α·column·rowᵀ; nothing of ``x`` is read for β = 0."""
    if not x.is_floating_point():
        raise Refusal("factors of numbers that are not real")
    product = alpha * (accumulate(column).unsqueeze(1) * accumulate(row))
    return product if beta == 0 else beta * accumulate(x) + product


def round_decimals(x: Tensor, *, decimals: int) -> Tensor:
    """``x`` rounded to a multiple of 10^−decimals."""
    if not x.is_floating_point():
        raise Refusal("whole numbers have no decimals")
    factor = 10.0 ** abs(decimals)
    if decimals < 0:
        return torch.round(accumulate(x) / factor) * factor
    return torch.round(accumulate(x) * factor) / factor


def ldexp(x: Tensor, exponent: Tensor) -> Tensor:
    """x·2^exponent."""
    return x * torch.pow(2.0, exponent)


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """√(x² + y²), by the quotient of the smaller and the larger, so that no square overflows; ∞ beside NaN is ∞."""
    x, y = torch.abs(accumulate(x)), torch.abs(accumulate(y))
    large = torch.maximum(x, y)
    ratio = torch.minimum(x, y) / large
    length = torch.where(large == 0, large, large * torch.sqrt(1 + ratio * ratio))
    return torch.where(torch.logical_or(torch.isinf(x), torch.isinf(y)), float("inf"), length)


def bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """How many boundaries are below ``x``, or not above it if ``right``."""
    return _bisect(boundaries, x, lambda places: boundaries[places], out_int32, right)


def searchsorted(
    ordered: Tensor,
    x: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """How many numbers of each row of ``ordered`` are below ``x``, or not above it if ``right``."""
    if sorter is not None:
        raise Refusal("rows in another order")
    right = right or side == "right"
    if ordered.dim() == 1:
        return bucketize(x, ordered, out_int32=out_int32, right=right)
    return _bisect(ordered, x, lambda places: torch.gather(ordered, -1, places), out_int32, right)


def _bisect(ordered: Tensor, x: Tensor, look: Callable[[Tensor], Tensor], out_int32: bool, right: bool) -> Tensor:
    """Halves the rest of the row at every step, without branches: each place is a step further on or not."""
    count = ordered.shape[-1]
    if type(count) is not int or count == 0 or ordered.dtype != x.dtype:
        raise Refusal("a row of a length that isn't known, without elements, or of another type")
    found = torch.zeros_like(x, dtype=torch.int64)
    step = 1 << (count.bit_length() - 1)
    while step:
        further = found + step
        value = look(torch.clamp(further, max=count) - 1)
        below = torch.logical_not(value > x if right else value >= x)
        found = torch.where(torch.logical_and(below, further <= count), further, found)
        step //= 2
    return found.to(torch.int32) if out_int32 else found


def fake_quantize(x: Tensor, scale: float, zero: int, low: int, high: int) -> tuple[Tensor, Tensor]:
    """``x`` rounded to ``scale`` times a whole number in ``low - zero`` … ``high - zero``, and where it is inside."""
    single = ctypes.c_float(scale).value
    return _fake_quantized(x, single, ctypes.c_float(1 / single).value, zero, low, high)


def fake_quantize_channels(
    x: Tensor, scale: Tensor, zero: Tensor, axis: int, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """``fake_quantize`` with a scale and a zero for each position along ``axis``."""
    shape = [-1 if dim == axis % x.dim() else 1 for dim in range(x.dim())]
    by_channel = scale.reshape(shape)
    return _fake_quantized(x, by_channel, 1 / by_channel, zero.reshape(shape), low, high)


def _fake_quantized(x: Tensor, scale: Any, inverse: Any, zero: Any, low: int, high: int) -> tuple[Tensor, Tensor]:
    whole = torch.round(accumulate(x) * inverse) + zero
    inside = torch.logical_and(whole >= low, whole <= high)
    return (torch.clamp(whole, low, high) - zero) * scale, inside
