"""The table of decompositions: which operator is expanded by which rule."""

from __future__ import annotations

from typing import Any

import torch
from rooffuse.passes import rules_fill as filling
from rooffuse.passes import rules_misc as misc
from rooffuse.passes import rules_norm as norm
from rooffuse.passes import rules_select as select
from rooffuse.passes import rules_special as special
from rooffuse.passes import rules_window as window
from rooffuse.passes import rules_window_backward as window_backward
from rooffuse.passes.max_pool_places import max_pool_places, max_pool_places_backward
from rooffuse.passes.rule_base import Rule
from torch._decomp import get_decompositions

aten = torch.ops.aten

_OWN: dict[Any, Rule] = {
    aten._softmax.default: norm.softmax,
    aten._log_softmax.default: norm.log_softmax,
    aten._softmax_backward_data.default: norm.softmax_backward,
    aten._log_softmax_backward_data.default: norm.log_softmax_backward,
    aten.logsumexp.default: norm.logsumexp,
    aten.native_layer_norm.default: norm.layer_norm,
    aten.native_layer_norm_backward.default: norm.layer_norm_backward,
    aten._fused_rms_norm.default: norm.rms_norm,
    aten._fused_rms_norm_backward.default: norm.rms_norm_backward,
    aten.native_group_norm.default: norm.group_norm,
    aten.native_group_norm_backward.default: norm.group_norm_backward,
    aten._native_batch_norm_legit_no_training.default: norm.batch_norm_inference,
    aten._native_batch_norm_legit_functional.default: norm.batch_norm_training,
    aten._native_batch_norm_legit.no_stats: norm.batch_norm_no_stats,
    aten.native_batch_norm.default: norm.batch_norm_not_tracking,
    aten.native_batch_norm_backward.default: norm.batch_norm_backward,
    aten.var_mean.correction: misc.var_mean,
    aten.var.correction: misc.var,
    aten.std.correction: misc.std,
    aten.std_mean.correction: misc.std_mean,
    aten.linalg_vector_norm.default: misc.vector_norm,
    aten.native_dropout.default: misc.dropout,
    aten.native_dropout_backward.default: misc.dropout_backward,
    aten.rsub.Scalar: misc.reverse_sub_scalar,
    aten.rsub.Tensor: misc.reverse_sub,
    aten.square.default: misc.square,
    aten.addcmul.default: misc.addcmul,
    aten.addcdiv.default: misc.addcdiv,
    aten.gelu_backward.default: misc.gelu_backward,
    aten.silu_backward.default: misc.silu_backward,
    aten.sigmoid_backward.default: misc.sigmoid_backward,
    aten.tanh_backward.default: misc.tanh_backward,
    aten.threshold_backward.default: misc.threshold_backward,
    aten.lerp.Scalar: misc.lerp_scalar,
    aten.lerp.Tensor: misc.lerp_tensor,
    aten.logit.default: misc.logit,
    aten.topk.default: select.topk,
    aten.cummax.default: select.cummax,
    aten.cummin.default: select.cummin,
    aten.nll_loss_backward.default: misc.nll_loss_backward,
    aten.nll_loss2d_backward.default: misc.nll_loss_backward,
    aten.max.default: misc.largest,
    aten.min.default: misc.smallest,
    aten.max.dim: misc.max_dim,
    aten.min.dim: misc.min_dim,
    aten.mv.default: misc.matrix_vector,
    aten.addmv.default: misc.matrix_vector_added,
    aten.dist.default: misc.distance,
    aten.erfinv.default: special.erfinv,
    aten.angle.default: special.angle,
    **dict.fromkeys((aten.hardshrink_backward.default, aten.softshrink_backward.default), special.shrink_backward),
    aten.slice_scatter.default: special.slice_scatter,
    **dict.fromkeys((aten.index_put.default, aten._unsafe_index_put.default), special.masked_put),
    aten.dot.default: misc.dot,
    aten.addr.default: misc.outer_added,
    aten.round.decimals: misc.round_decimals,
    aten.ldexp.Tensor: misc.ldexp,
    aten.hypot.default: misc.hypot,
    aten.bucketize.Tensor: misc.bucketize,
    aten.searchsorted.Tensor: misc.searchsorted,
    aten.fake_quantize_per_tensor_affine_cachemask.default: misc.fake_quantize,
    aten.fake_quantize_per_channel_affine_cachemask.default: misc.fake_quantize_channels,
    aten.full_like.default: filling.full_like,
    aten.zeros_like.default: filling.zeros_like,
    aten.ones_like.default: filling.ones_like,
    aten.new_full.default: filling.new_full,
    aten.new_zeros.default: filling.new_zeros,
    aten.new_ones.default: filling.new_ones,
    aten.fill.Scalar: filling.fill,
    aten.fill.Tensor: filling.fill_by_tensor,
    aten._efficientzerotensor.default: filling.zero_tensor,
    aten.eye.default: filling.eye,
    aten.eye.m: filling.eye,
    **dict.fromkeys(
        (aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default), window.max_pool_with_indices
    ),
    **dict.fromkeys(
        (aten.max_pool2d_with_indices_backward.default, aten.max_pool3d_with_indices_backward.default),
        window_backward.max_pool_backward,
    ),
    max_pool_places: window.max_pool_places,
    max_pool_places_backward: window_backward.max_pool_places_backward,
    aten.convolution.default: window.depthwise_convolution,
    **dict.fromkeys((aten.avg_pool2d.default, aten.avg_pool3d.default), window.avg_pool),
    **dict.fromkeys(
        (aten.avg_pool2d_backward.default, aten.avg_pool3d_backward.default), window_backward.avg_pool_backward
    ),
    **dict.fromkeys((aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default), window.adaptive_avg_pool),
    **dict.fromkeys(
        (aten._adaptive_avg_pool2d_backward.default, aten._adaptive_avg_pool3d_backward.default),
        window_backward.adaptive_avg_pool_backward,
    ),
    **dict.fromkeys((aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default), window.adaptive_max_pool),
    **dict.fromkeys(
        (aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default),
        window.upsample_nearest,
    ),
    **dict.fromkeys(
        (
            aten.upsample_nearest1d_backward.default,
            aten.upsample_nearest2d_backward.default,
            aten.upsample_nearest3d_backward.default,
            aten._upsample_nearest_exact1d_backward.default,
            aten._upsample_nearest_exact2d_backward.default,
            aten._upsample_nearest_exact3d_backward.default,
        ),
        window_backward.upsample_nearest_backward,
    ),
}

# Taken as the framework defines them, but expanded here rather than while AOTAutograd traces: once per distinct call.
_FRAMEWORK = (
    aten.hardswish_backward.default,
    aten.hardsigmoid_backward.default,
    aten.hardtanh_backward.default,
    aten.leaky_relu_backward.default,
    aten.elu_backward.default,
    aten.softplus_backward.default,
    aten.mish_backward.default,
    aten.mse_loss.default,
    aten.mse_loss_backward.default,
    aten.smooth_l1_loss.default,
    aten.smooth_l1_loss_backward.default,
    aten.huber_loss.default,
    aten.huber_loss_backward.default,
    aten.binary_cross_entropy.default,
    aten.binary_cross_entropy_backward.default,
    aten.nll_loss_forward.default,
    aten.nll_loss2d_forward.default,
    aten.log_sigmoid_forward.default,
    aten.log_sigmoid_backward.default,
    aten.logit_backward.default,
    aten.glu.default,
    aten.glu_backward.default,
    aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact3d.default,
    aten.tril_indices.default,
    aten.triu_indices.default,
)

RULES: dict[Any, Rule] = {**get_decompositions(_FRAMEWORK), **_OWN}
