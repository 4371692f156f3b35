"""Convolutions: every weight meets every position once, 2·batch·positions·numel(weight) FLOPs.

Positions are those of the output, or of the input when transposed; the weight's shape already divides channels by
groups.
"""

from __future__ import annotations

import math

from .cost import Cost, Size
from .registry import Call, aten, register
from .spec import TensorSpec


def conv_flops(image: TensorSpec, weight: TensorSpec, result: TensorSpec, transposed: bool) -> Size:
    """``image (N, C, *spatial)``, or without N; bias and padding are not counted, as in torch.utils.flop_counter."""
    grid = image if transposed else result
    spatial = weight.ndim - 2
    batch = image.shape[0] if image.ndim == weight.ndim else 1
    return 2 * batch * math.prod(grid.shape[grid.ndim - spatial :]) * weight.numel


@register(
    *aten("convolution _convolution convolution_overrideable"),
    kind="convolution",
    unit="tensor",
)
def convolution(call: Call) -> Cost:
    """Forward convolution, transposed or not."""
    return call.moves(conv_flops(call["input"], call["weight"], call.outputs[0], bool(call["transposed"])))


@register(
    *aten(
        """cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu _slow_conv2d_forward thnn_conv2d conv1d
        conv2d conv3d slow_conv3d slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d
        conv_depthwise3d mkldnn_convolution miopen_convolution _convolution_mode _nnpack_spatial_convolution
        miopen_depthwise_convolution"""
    ),
    "mkldnn::_convolution_pointwise",
    kind="convolution",
    unit="tensor",
)
def plain_convolution(call: Call) -> Cost:
    """Forms that are never transposed."""
    return call.moves(conv_flops(call.inputs[0], call["weight"] or call.inputs[1], call.outputs[0], False))


@register(
    *aten(
        """cudnn_convolution_transpose conv_transpose1d conv_transpose2d conv_transpose3d slow_conv_transpose2d
        slow_conv_transpose3d miopen_convolution_transpose"""
    ),
    kind="convolution",
    unit="tensor",
)
def transposed_convolution(call: Call) -> Cost:
    """Forms that are always transposed."""
    return call.moves(conv_flops(call.inputs[0], call.inputs[1], call.outputs[0], True))


@register(*aten("convolution_backward convolution_backward_overrideable"), kind="convolution", unit="tensor")
def convolution_backward(call: Call) -> Cost:
    """Each of the gradients of input and weight costs what the forward pass costs.

    torch.utils.flop_counter counts the weight's gradient of a grouped convolution ``groups`` times as high, as if
    channels of different groups met; here they do not.
    """
    grad, image, weight = call["grad_output"], call["input"], call["weight"]
    wants_input, wants_weight = call["output_mask"][:2]
    forward = conv_flops(image, weight, grad, bool(call["transposed"]))
    without = [name for name, wanted in (("weight", wants_input), ("input", wants_weight)) if not wanted]
    return call.moves(forward * (bool(wants_input) + bool(wants_weight)), without)


@register("aten::_slow_conv2d_backward", kind="convolution", unit="tensor")
def slow_conv2d_backward(call: Call) -> Cost:
    """As `convolution_backward`; gradients are counted by the results that are present."""
    forward = conv_flops(call["self"], call["weight"], call["grad_output"], False)
    return call.moves(forward * sum(spec.ndim == 4 for spec in call.outputs))


@register("aten::conv_tbc", kind="convolution", unit="tensor")
def conv_tbc(call: Call) -> Cost:
    """``self (T, B, C_in)``, ``weight (W, C_in, C_out)``."""
    out = call.outputs[0]
    return call.moves(2 * out.shape[0] * out.shape[1] * call["weight"].numel)
