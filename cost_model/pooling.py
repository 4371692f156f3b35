"""Pooling and resampling: every output element looks at a window of its input."""

from __future__ import annotations

import math

from .cost import Cost, Size
from .registry import Call, aten, register


def _window(call: Call) -> int:
    """Elements of a pooling window; a single number stands for all its dimensions."""
    kernel = call["kernel_size"]
    dims = next((int(c) for c in call.name if c in "123"), 1)
    return math.prod(kernel) if len(kernel) > 1 else kernel[0] ** dims


@register(
    *aten(
        """max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
        avg_pool1d avg_pool2d avg_pool3d fractional_max_pool2d fractional_max_pool3d"""
    ),
    "rooffuse::max_pool_places",
    kind="reduction",
)
def pool(call: Call) -> Cost:
    """One operation for each element of each window; windows that overlap read memory once."""
    return call.moves(_window(call) * call.outputs[0].numel)


@register(
    *aten(
        """_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"""
    ),
    kind="reduction",
)
def adaptive_pool(call: Call) -> Cost:
    """Windows tile the input: one operation for each of its elements."""
    return call.moves(call.input_numel())


@register(
    *aten(
        """max_pool2d_with_indices_backward max_pool3d_with_indices_backward adaptive_max_pool2d_backward
        adaptive_max_pool3d_backward max_pool2d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward
        max_unpool2d max_unpool3d"""
    ),
    "rooffuse::max_pool_places_backward",
    kind="scatter",
)
def max_pool_backward(call: Call) -> Cost:
    """Adds each gradient where its maximum was: reads gradient and indices or places, not the input, and writes all."""
    without = () if "unpool" in call.name or "places" in call.name else ("self",)
    return call.moves(call.inputs[0].numel, without)


@register(*aten("avg_pool2d_backward avg_pool3d_backward"), kind="reduction")
def avg_pool_backward(call: Call) -> Cost:
    """Each gradient is spread over its window."""
    return call.moves(_window(call) * call["grad_output"].numel, ("self",))


@register(
    *aten(
        """_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_avg_pool3d_backward"""
    ),
    kind="reduction",
)
def adaptive_avg_pool_backward(call: Call) -> Cost:
    """One operation for each element of the input's gradient."""
    return call.moves(call.output_numel(), ("self",))


def _taps(name: str) -> int:
    """Elements of the input that one element of the result is made of."""
    if "nearest" in name:
        return 1
    if "linear1d" in name:
        return 2
    if "bicubic" in name or "lanczos" in name:
        return 16
    return 8 if "trilinear" in name else 4


_MODES = (
    "nearest1d nearest2d nearest3d linear1d bilinear2d trilinear3d bicubic2d",
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa _upsample_lanczos2d_aa",
)
_UPSAMPLES = tuple(f"aten::upsample_{mode}" for mode in _MODES[0].split()) + aten(_MODES[1])


def _interpolation_flops(name: str, elements: Size) -> Size:
    """A product and a sum for each tap; nearest neighbours compute nothing."""
    taps = _taps(name)
    return 0 if taps == 1 else 2 * taps * elements


@register(*_UPSAMPLES, kind="gather")
def upsample(call: Call) -> Cost:
    """Reads the input once, writes the result once."""
    return call.moves(_interpolation_flops(call.name, call.outputs[0].numel))


@register(*(f"{name}_backward" for name in _UPSAMPLES), kind="scatter")
def upsample_backward(call: Call) -> Cost:
    """Each gradient is added to the elements that it was made of."""
    elements = call["grad_output"].numel
    return call.moves(_interpolation_flops(call.name, elements) or elements)


@register(
    *aten("grid_sampler_2d grid_sampler_3d cudnn_grid_sampler _grid_sampler_2d_cpu_fallback grid_sampler"),
    kind="gather",
)
def grid_sampler(call: Call) -> Cost:
    """Four (eight in 3-D) taps, each with its weight (three operations), bounds and sum: six operations a tap."""
    out = call.outputs[0]
    return call.moves(6 * (8 if out.ndim == 5 else 4) * out.numel)


@register(
    *aten("grid_sampler_2d_backward grid_sampler_3d_backward cudnn_grid_sampler_backward"),
    kind="scatter",
)
def grid_sampler_backward(call: Call) -> Cost:
    """Gradients of the input and of the grid: twice the forward work."""
    grad = call["grad_output"]
    return call.moves(12 * (8 if grad.ndim == 5 else 4) * grad.numel)


@register("aten::col2im", kind="scatter")
def col2im(call: Call) -> Cost:
    """Overlapping blocks add up: one addition an element."""
    return call.moves(call.inputs[0].numel)


@register(*aten("affine_grid_generator cudnn_affine_grid_generator"), kind="pointwise")
def affine_grid(call: Call) -> Cost:
    """A small matrix applied to every position: about six operations an element."""
    return call.moves(6 * call.output_numel())
