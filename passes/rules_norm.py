"""Decompositions of softmaxes and normalisations, forward and backward.

Each rule has its operator's signature and is written in plain tensor operations. It computes in at least float32
and need not cast back or restore strides: whoever inlines a rule conforms its results to the operator's declared
ones (``rule_base.conform``). Formulas follow the operators' documented definitions at
https://docs.pytorch.org/docs/stable/nn.functional.html.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rooffuse.passes.rule_base import Refusal, accumulate, element_count, refuse_empty
from torch import Tensor


def _inner_dims(x: Tensor, normalized_shape: Sequence[int]) -> list[int]:
    return list(range(x.dim() - len(normalized_shape), x.dim()))


# ---- softmax --------------------------------------------------------------------------------------------------


def softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """exp(x − max x) / Σ exp(x − max x) along ``dim``."""
    refuse_empty(x)
    x = accumulate(x)
    e = torch.exp(x - torch.amax(x, dim, keepdim=True))
    return e / torch.sum(e, dim, keepdim=True)


def log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """(x − max x) − log Σ exp(x − max x) along ``dim``."""
    refuse_empty(x)
    x = accumulate(x)
    shifted = x - torch.amax(x, dim, keepdim=True)
    return shifted - torch.log(torch.sum(torch.exp(shifted), dim, keepdim=True))


def softmax_backward(grad: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    """y · (g − Σ g·y)."""
    grad, output = accumulate(grad), accumulate(output)
    return output * (grad - torch.sum(grad * output, dim, keepdim=True))


def log_softmax_backward(grad: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    """g − exp(y) · Σ g."""
    grad, output = accumulate(grad), accumulate(output)
    return grad - torch.exp(output) * torch.sum(grad, dim, keepdim=True)


def logsumexp(x: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    """log Σ exp(x − m) + m, with m = max x where that is finite, else 0."""
    refuse_empty(x)
    if not x.is_floating_point():
        raise Refusal("integer input")
    dims = list(dim) or list(range(x.dim()))
    wide = accumulate(x)
    peak = torch.amax(wide, dims, keepdim=True)
    peak = torch.where(torch.isinf(peak), torch.full_like(peak, 0.0), peak)
    total = torch.sum(torch.exp(wide - peak), dims, keepdim=keepdim)
    return torch.log(total) + (peak if keepdim or x.dim() == 0 else torch.squeeze(peak, dims))


# ---- normalisation --------------------------------------------------------------------------------------------


def _statistics(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, centred x, biased variance) over ``dims``, kept as dimensions of size one."""
    mean = torch.mean(x, dims, keepdim=True)
    centred = x - mean
    return mean, centred, torch.mean(centred * centred, dims, keepdim=True)


def layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x − E x) / √(Var x + ε) · weight + bias over the trailing dimensions; also E x and 1/√(Var x + ε)."""
    refuse_empty(x)
    mean, centred, variance = _statistics(accumulate(x), _inner_dims(x, normalized_shape))
    rstd = torch.rsqrt(variance + eps)
    out = centred * rstd
    if weight is not None:
        out = out * weight
    if bias is not None:
        out = out + bias
    return out, mean, rstd


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """With x̂ = (x − mean)·rstd and ĝ = g·weight: dx = rstd·(ĝ − E ĝ − x̂·E(ĝ·x̂)), dw = Σ g·x̂, db = Σ g."""
    refuse_empty(x)
    dims = _inner_dims(x, normalized_shape)
    outer = list(range(dims[0]))
    grad, rstd = accumulate(grad), accumulate(rstd)
    normed = (accumulate(x) - mean) * rstd
    dx = dw = db = None
    if output_mask[0]:
        scaled = grad if weight is None else grad * weight
        dx = rstd * (
            scaled - torch.mean(scaled, dims, keepdim=True) - normed * torch.mean(scaled * normed, dims, keepdim=True)
        )
    if output_mask[1] and weight is not None:
        dw = torch.sum(grad * normed, outer) if outer else grad * normed
    if output_mask[2] and bias is not None:
        db = torch.sum(grad, outer) if outer else grad.clone()
    return dx, dw, db


def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    """x / √(E x² + ε) · weight over the trailing dimensions; also 1/√(E x² + ε)."""
    refuse_empty(x)
    x = accumulate(x)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    rstd = torch.rsqrt(torch.mean(x * x, _inner_dims(x, normalized_shape), keepdim=True) + eps)
    out = x * rstd
    return (out if weight is None else out * weight), rstd


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    rstd: Tensor,
    weight: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """With x̂ = x·rstd and ĝ = g·weight: dx = rstd·(ĝ − x̂·E(ĝ·x̂)), dw = Σ g·x̂."""
    refuse_empty(x)
    dims = _inner_dims(x, normalized_shape)
    outer = list(range(dims[0]))
    grad, rstd = accumulate(grad), accumulate(rstd)
    normed = accumulate(x) * rstd
    dx = dw = None
    if output_mask[0]:
        scaled = grad if weight is None else grad * weight
        dx = rstd * (scaled - normed * torch.mean(scaled * normed, dims, keepdim=True))
    if output_mask[1] and weight is not None:
        dw = torch.sum(grad * normed, outer) if outer else grad * normed
    return dx, dw


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, hxw: int, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalisation over each of ``group`` channel groups, then weight and bias by channel."""
    refuse_empty(x)
    channels = c // group
    mean, centred, variance = _statistics(accumulate(x).reshape(n, group, channels, hxw), (2, 3))
    rstd = torch.rsqrt(variance + eps)
    out = centred * rstd
    if weight is not None:
        out = out * weight.reshape(1, group, channels, 1)
    if bias is not None:
        out = out + bias.reshape(1, group, channels, 1)
    return out.reshape(x.shape), mean.reshape(n, group), rstd.reshape(n, group)


def group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    c: int,
    hxw: int,
    group: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As ``layer_norm_backward`` over each channel group, with weight and bias by channel."""
    refuse_empty(x)
    channels = c // group
    sizes = (n, group, channels, hxw)
    grad = accumulate(grad).reshape(sizes)
    scale = accumulate(rstd).reshape(n, group, 1, 1)
    normed = (accumulate(x).reshape(sizes) - mean.reshape(n, group, 1, 1)) * scale
    dx = dw = db = None
    if output_mask[0]:
        scaled = grad if weight is None else grad * weight.reshape(1, group, channels, 1)
        dx = scale * (
            scaled
            - torch.mean(scaled, (2, 3), keepdim=True)
            - normed * torch.mean(scaled * normed, (2, 3), keepdim=True)
        )
        dx = dx.reshape(x.shape)
    if output_mask[1] and weight is not None:
        dw = torch.sum(grad * normed, (0, 3)).reshape(c)
    if output_mask[2]:
        db = torch.sum(grad, (0, 3)).reshape(c)
    return dx, dw, db


def _channel_dims(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _by_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape([-1 if dim == 1 else 1 for dim in range(x.dim())])


def _affine(out: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        out = out * _by_channel(weight, out)
    if bias is not None:
        out = out + _by_channel(bias, out)
    return out


def batch_norm_inference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalisation by channel with given statistics; the saved statistics are empty on CPU."""
    rstd = torch.rsqrt(accumulate(running_var) + eps)
    out = _affine((accumulate(x) - _by_channel(running_mean, x)) * _by_channel(rstd, x), weight, bias)
    if x.device.type == "cpu":
        empty = torch.empty((0,), dtype=x.dtype, device=x.device)
        return out, empty, empty
    return out, accumulate(running_mean).clone(), rstd


def batch_norm_training(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Normalisation by channel with the batch's statistics; also the updated running ones.

    The running variance takes the unbiased estimate, n/(n−1) times the biased one that normalises.
    """
    refuse_empty(x)
    if not training:
        if running_mean is None or running_var is None:
            raise Refusal("no statistics to normalise with")
        inference = batch_norm_inference(x, weight, bias, running_mean, running_var, momentum, eps)
        return (*inference, running_mean.clone(), running_var.clone())
    dims = _channel_dims(x)
    mean, centred, variance = _statistics(accumulate(x), dims)
    rstd = torch.rsqrt(variance + eps)
    out = _affine(centred * rstd, weight, bias)
    mean, rstd, variance = (torch.squeeze(value, dims) for value in (mean, rstd, variance))
    new_mean = new_var = None
    if running_mean is not None:
        new_mean = momentum * mean + (1 - momentum) * running_mean
    if running_var is not None:
        count = element_count(x, dims)
        new_var = momentum * (variance * (count / (count - 1))) + (1 - momentum) * running_var
    return out, mean, rstd, new_mean, new_var


def batch_norm_no_stats(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``batch_norm_training`` that keeps no running statistics."""
    return batch_norm_training(x, weight, bias, None, None, training, momentum, eps)[:3]


def batch_norm_not_tracking(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``batch_norm_training`` where no running statistics are written, as this form of the operator does in place."""
    if training and (running_mean is not None or running_var is not None):
        raise Refusal("it updates its running statistics in place")
    return batch_norm_training(x, weight, bias, running_mean, running_var, training, momentum, eps)[:3]


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_rstd: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As ``layer_norm_backward`` over every dimension but the channels; given statistics have no gradient."""
    refuse_empty(x)
    dims = _channel_dims(x)
    mean = save_mean if train else running_mean
    rstd = save_rstd if train else torch.rsqrt(accumulate(running_var) + eps) if running_var is not None else None
    if mean is None or rstd is None:
        raise Refusal("no statistics to differentiate with")
    grad = accumulate(grad)
    scale = _by_channel(accumulate(rstd), x)
    normed = (accumulate(x) - _by_channel(accumulate(mean), x)) * scale
    dx = dw = db = None
    if output_mask[0]:
        inner = grad
        if train:
            inner = (
                grad - torch.mean(grad, dims, keepdim=True) - normed * torch.mean(grad * normed, dims, keepdim=True)
            )
        dx = inner * (scale if weight is None else scale * _by_channel(weight, x))
    if output_mask[1]:
        dw = torch.sum(grad * normed, dims)
    if output_mask[2]:
        db = torch.sum(grad, dims)
    return dx, dw, db
