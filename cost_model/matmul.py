"""Matrix products: 2·M·N·K FLOPs, a multiplication and an addition for every term."""

from __future__ import annotations

import math
from typing import Any

from .cost import Cost, Size
from .registry import Call, aten, register
from .spec import TensorSpec, smaller


def mm_flops(left: TensorSpec, right: TensorSpec) -> Size:
    """``(..., M, K) @ (K, N)`` or batched: 2·batch·M·K·N. Batches are taken from ``left``."""
    return 2 * left.numel * right.shape[-1]


def _pair(left: str, right: str) -> Any:
    def formula(call: Call) -> Cost:
        return call.moves(mm_flops(call[left], call[right]))

    return formula


register("aten::mm", "aten::bmm", "aten::_int_mm", "aten::_scaled_mm", kind="matmul", unit="tensor")(
    _pair("self", "mat2")
)
# The bias is the accumulator's initial value and adds no FLOPs, as in torch.utils.flop_counter.
register("aten::addmm", "aten::_addmm_activation", kind="matmul", unit="tensor")(_pair("mat1", "mat2"))
register("aten::baddbmm", "aten::addbmm", kind="matmul", unit="tensor")(_pair("batch1", "batch2"))


@register("aten::_scaled_mm_v2", kind="matmul", unit="tensor")
def scaled_mm(call: Call) -> Cost:
    """fp8 and fp4 operands; two fp4 values share a byte, so the stored K counts twice."""
    return call.moves(mm_flops(call["self"], call["mat2"]) * _packed(call["self"]))


def _packed(spec: TensorSpec) -> int:
    return 2 if str(spec.dtype).endswith("_x2") else 1


@register(*aten("matmul dot vdot mv inner ger outer kron"), kind="matmul", unit="tensor")
def matmul(call: Call) -> Cost:
    """Products of any rank; broadcast batches come from the result."""
    first, second = call.inputs[0], call.inputs[-1]
    if call.name in ("aten::ger", "aten::outer", "aten::kron"):
        return call.moves(call.output_numel())
    inner = second.shape[-1] if call.name == "aten::inner" else first.shape[-1]
    return call.moves(2 * call.output_numel() * inner)


@register("aten::addmv", kind="matmul", unit="tensor")
def addmv(call: Call) -> Cost:
    """``mat (M, K) @ vec (K)``: 2·M·K."""
    return call.moves(2 * call["mat"].numel)


@register("aten::addr", kind="matmul", unit="tensor")
def addr(call: Call) -> Cost:
    """Outer product and sum: two FLOPs an element."""
    return call.moves(2 * call.output_numel())


@register("aten::linear", kind="matmul", unit="tensor")
def linear(call: Call) -> Cost:
    """``input (..., K) @ weight (N, K)ᵀ``: 2·rows·N·K."""
    return call.moves(2 * call["input"].numel * call["weight"].shape[0])


@register("aten::_weight_int8pack_mm", kind="matmul", unit="tensor")
def weight_int8pack_mm(call: Call) -> Cost:
    """``self (M, K)``, int8 weight ``(N, K)``, one scale a row. Weights widen to the dtype of ``self``."""
    return call.moves(2 * call["self"].numel * call["mat2"].shape[0])


@register(
    "aten::_weight_int4pack_mm",
    "aten::_weight_int4pack_mm_for_cpu",
    "aten::_weight_int4pack_mm_with_scales_and_zeros",
    kind="matmul",
    unit="tensor",
)
def weight_int4pack_mm(call: Call) -> Cost:
    """``self (M, K)``, packed int4 weight, result ``(M, N)``: 2·M·K·N; the bytes are those of the packed tensors."""
    return call.moves(2 * call["self"].numel * call.outputs[0].shape[-1])


@register("aten::_grouped_mm", "aten::_scaled_grouped_mm", "aten::_scaled_grouped_mm_v2", kind="matmul", unit="tensor")
def grouped_mm(call: Call) -> Cost:
    """Groups with their own matrix, as in a mixture of experts: each row meets one group's matrix.

    Rows ``(M, K)`` and weights ``(G, K, N)``: 2·M·K·N, and ``(G, M, K)`` with ``(K, N)`` likewise, where the N columns
    are divided over the groups. Two 2-D operands contract slices of K: 2·M·K·N in all; two 3-D ones are a batched
    product. Which groups are met is data: with fewer rows than groups, as at decoding, at most a matrix a row is read.
    """
    left, right = call["self"], call["mat2"]
    if left.ndim == right.ndim:
        return call.moves(2 * left.numel * right.shape[-1])
    if right.ndim == 3:
        flops, name, met = 2 * left.numel * right.shape[-1], "mat2", left.shape[0]
    else:
        flops, name, met = 2 * left.shape[1] * right.numel, "self", right.shape[1]
    count = call[name].shape[0]
    matrices = smaller(count, met) * (call[name].nbytes // count)
    return Cost(flops, call.read_bytes((name,)) + matrices, call.written_bytes())


@register("aten::_foreach_mm", kind="matmul", unit="tensor")
def foreach_mm(call: Call) -> Cost:
    """A product for each pair of two lists."""
    return call.moves(sum(mm_flops(left, right) for left, right in zip(call["self"], call["mat2"])))


@register("aten::_dyn_quant_matmul_4bit", kind="matmul", unit="tensor")
def dyn_quant_matmul_4bit(call: Call) -> Cost:
    """``inp (M, K)`` and packed int4 weights of N columns: 2·M·K·N."""
    return call.moves(2 * call["inp"].numel * call["out_features"])


@register("aten::_mixed_dtypes_linear", kind="matmul", unit="tensor")
def mixed_dtypes_linear(call: Call) -> Cost:
    """``input (..., K)`` and int8 or packed int4 weights, result ``(..., N)``: 2·rows·K·N."""
    return call.moves(2 * call["input"].numel * call.outputs[0].shape[-1])


@register("aten::linear_backward", kind="matmul", unit="tensor")
def linear_backward(call: Call) -> Cost:
    """The gradients that ``output_mask`` asks for: 2·rows·N·K for the input and for the weight, a sum for the bias."""
    wants_input, wants_weight, wants_bias = call["output_mask"]
    gradient = call["grad_output"].numel
    products = 2 * gradient * call["weight"].shape[-1]
    return call.moves((bool(wants_input) + bool(wants_weight)) * products + (gradient if wants_bias else 0))


@register("aten::_trilinear", "aten::bilinear", kind="matmul", unit="tensor")
def bilinear(call: Call) -> Cost:
    """``x1ᵀ·W·x2`` for each output: two products per weight element and row."""
    rows = math.prod(call.outputs[0].shape[:-1])
    return call.moves(4 * rows * max((spec.numel for spec in call.inputs if spec.ndim == 3), default=1))


@register("aten::_cdist_forward", "aten::cdist", kind="reduction")
def cdist(call: Call) -> Cost:
    """Distances between ``x1 (..., P, M)`` and ``x2 (..., R, M)``: subtract, power, add for each of P·R·M terms."""
    return call.moves(3 * call.output_numel() * call["x1"].shape[-1])


@register("aten::_cdist_backward", kind="reduction")
def cdist_backward(call: Call) -> Cost:
    """Gradient for ``x1``: four operations a term."""
    return call.moves(4 * call["cdist"].numel * call["x1"].shape[-1])


@register("aten::_pdist_backward", kind="reduction")
def pdist_backward(call: Call) -> Cost:
    """Gradient of `pdist`: four operations a term."""
    return call.moves(4 * call["pdist"].numel * call["self"].shape[-1])


@register("aten::_pdist_forward", "aten::pdist", kind="reduction")
def pdist(call: Call) -> Cost:
    """Distances between all N·(N-1)/2 pairs of rows of ``self (N, M)``."""
    return call.moves(3 * call.output_numel() * call["self"].shape[-1])
