"""Normalisation layers. FLOPs per element of the normalised input, affine part included."""

from __future__ import annotations

from .cost import Cost, Size
from .registry import Call, aten, register


def _input(call: Call) -> Size:
    """Elements of the tensor that is normalised: the argument called ``input``, or the first."""
    source = call["input"] or call["self"] or call["X"] or call.inputs[0]
    return source.numel


def _file(flops: int, names: str) -> None:
    def formula(call: Call) -> Cost:
        return call.moves(flops * _input(call))

    register(*aten(names), kind="reduction")(formula)


# Mean (1), variance (3: subtract, square, add), normalise (2), scale and shift (2).
_file(
    8,
    """native_layer_norm layer_norm native_group_norm group_norm instance_norm native_batch_norm batch_norm
    _native_batch_norm_legit _native_batch_norm_legit_functional _batch_norm_with_update cudnn_batch_norm
    _batch_norm_with_update_functional _batch_norm_impl_index miopen_batch_norm""",
)
# x̂ (2), g·w (1), Σ g·w and Σ g·w·x̂ (3), their combination (4), gradients of scale and shift (3), one product.
_file(
    14,
    """native_layer_norm_backward native_group_norm_backward native_batch_norm_backward batch_norm_backward
    cudnn_batch_norm_backward _batch_norm_impl_index_backward miopen_batch_norm_backward""",
)
# Square and add (2), normalise (1), scale (1).
_file(4, "_fused_rms_norm rms_norm")
# x̂ (1), g·w (1), Σ g·w·x̂ (2), combination (3), gradient of the scale (2).
_file(9, "_fused_rms_norm_backward")
_file(4, "batch_norm_stats batch_norm_backward_reduce _weight_norm_interface _weight_norm batch_norm_update_stats")
_file(8, "_weight_norm_interface_backward _weight_norm_differentiable_backward")


@register(*aten("_native_batch_norm_legit_no_training _batch_norm_no_update batch_norm_elemt"), kind="pointwise")
def batch_norm_inference(call: Call) -> Cost:
    """With stored statistics nothing is reduced: subtract, scale, scale and shift."""
    return call.moves(4 * _input(call))


@register("aten::batch_norm_backward_elemt", kind="pointwise")
def batch_norm_backward_elemt(call: Call) -> Cost:
    """The element-wise part of the backward pass."""
    return call.moves(5 * _input(call))


@register(*aten("batch_norm_gather_stats batch_norm_gather_stats_with_counts"), kind="reduction")
def batch_norm_gather_stats(call: Call) -> Cost:
    """Merges per-device means and variances: about six operations each."""
    return call.moves(6 * call["mean"].numel)
