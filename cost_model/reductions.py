"""Reductions, softmaxes, scans and losses: FLOPs per input element."""

from __future__ import annotations

from .cost import Cost
from .registry import Call, aten, register

# A reduction reads each element once and folds it in; means divide once a row, which is not counted.
_PER_INPUT: dict[int, str] = {
    1: """sum mean amax amin max min argmax argmin any all prod nansum nanmean count_nonzero sum_to_size
        _grad_sum_to_size trace _is_all_true _is_any_true segment_reduce hash_tensor median nanmedian mode kthvalue
        value_selecting_reduction_backward allclose aminmax _aminmax bincount histc""",
    # square (or power) and add
    2: """linalg_vector_norm norm native_norm frobenius_norm linalg__powsum norm_except_dim dist
        _fused_moving_avg_obs_fq_helper""",
    # difference, square, add, and a share of the mean
    4: "var std var_mean std_mean logsumexp renorm _masked_softmax_backward",
}

_SCANS = aten("cumsum cumprod cummax cummin _cummax_helper _cummin_helper")


def _register_per_input() -> None:
    for flops, names in _PER_INPUT.items():

        def formula(call: Call, flops: int = flops) -> Cost:
            return call.moves(flops * call.input_numel())

        register(*aten(names), kind="reduction")(formula)


_register_per_input()


@register(*(f"prims::{name}" for name in ("sum", "amax", "amin", "prod", "xor_sum")), kind="reduction")
def primitive_reduction(call: Call) -> Cost:
    """One operation an input element."""
    return call.moves(call.input_numel())


@register(*aten("max.other min.other"), kind="pointwise")
def maximum(call: Call) -> Cost:
    """The overloads of ``max`` and ``min`` that compare two tensors element by element."""
    return call.moves(call.output_numel())


@register(*aten("_softmax _log_softmax softmax log_softmax _safe_softmax _masked_softmax"), kind="reduction")
def softmax(call: Call) -> Cost:
    """Maximum, subtraction, exponential, sum and division (or, for the logarithm, a second subtraction)."""
    return call.moves(5 * call.output_numel())


@register(*aten("_softmax_backward_data _log_softmax_backward_data"), kind="reduction")
def softmax_backward(call: Call) -> Cost:
    """``y·(g - Σ g·y)``, or ``g - exp(y)·Σ g``: four operations."""
    return call.moves(4 * call.output_numel())


@register(*_SCANS, "rooffuse::running_max", "rooffuse::running_min", kind="scan")
def scan(call: Call) -> Cost:
    """One operation an element."""
    return call.moves(call.input_numel())


@register(*aten("_logcumsumexp logcumsumexp cumprod_backward cummaxmin_backward"), kind="scan")
def log_scan(call: Call) -> Cost:
    """Maximum, subtraction, exponential, addition."""
    return call.moves(4 * call.input_numel())


@register(
    *aten(
        """mse_loss l1_loss huber_loss smooth_l1_loss soft_margin_loss binary_cross_entropy kl_div
        binary_cross_entropy_with_logits multi_margin_loss multilabel_margin_loss_forward margin_ranking_loss
        hinge_embedding_loss poisson_nll_loss"""
    ),
    kind="reduction",
)
def elementwise_loss(call: Call) -> Cost:
    """A handful of operations an element (five), then the sum."""
    return call.moves(6 * call.input_numel())


@register(
    *aten(
        """mse_loss_backward huber_loss_backward smooth_l1_loss_backward soft_margin_loss_backward
        binary_cross_entropy_backward multi_margin_loss_backward multilabel_margin_loss_backward"""
    ),
    kind="pointwise",
)
def elementwise_loss_backward(call: Call) -> Cost:
    """The derivative of an element-wise loss: five operations."""
    return call.moves(5 * call.output_numel())


@register(*aten("nll_loss_forward nll_loss2d_forward nll_loss nll_loss2d"), kind="gather")
def nll_loss(call: Call) -> Cost:
    """Reads one log-probability a target, not the whole table, and the targets (and a weight each)."""
    scores, target, weight = call["self"], call["target"], call["weight"]
    picked = target.numel * (scores.itemsize + target.itemsize)
    weights = target.numel * weight.itemsize if weight is not None else 0
    return Cost(2 * target.numel, picked + weights, call.written_bytes())


@register(*aten("nll_loss_backward nll_loss2d_backward"), kind="scatter")
def nll_loss_backward(call: Call) -> Cost:
    """Writes the whole gradient, zero but for one element a target."""
    return Cost(2 * call["target"].numel, call.read_bytes(("self",)), call.written_bytes())


@register("aten::cross_entropy_loss", kind="reduction")
def cross_entropy(call: Call) -> Cost:
    """A log-softmax and the choice of an element a row, in one pass."""
    return call.moves(5 * call["self"].numel)


@register("aten::embedding_renorm", kind="reduction")
def embedding_renorm(call: Call) -> Cost:
    """Norms of the rows touched, which are read and written back."""
    rows, table = call["indices"], call["self"]
    region = rows.numel * table.shape[-1]
    return Cost(3 * region, region * table.itemsize + rows.nbytes, region * table.itemsize)


@register("aten::_ctc_loss", "aten::_ctc_loss_backward", kind="scan")
def ctc_loss(call: Call) -> Cost:
    """The forward recurrence of connectionist temporal classification: about ten operations a log-probability."""
    return call.moves(10 * call["log_probs"].numel)
