"""Scaled dot-product attention: two products a visible pair of query and key, five more in the backward pass.

A fused kernel moves query, key, value and output once; scores never leave the chip. Materialised attention writes and
reads the scores before and after the softmax: four passes over ``heads·S_q·S_k`` elements.
"""

from __future__ import annotations

import math

from .cost import Cost, Size
from .registry import Call, aten, register
from .spec import TensorSpec, smaller

_QKV = ("query", "key", "value")


def visible_pairs_twice(queries: Size, keys: Size, causal: bool) -> Size:
    """Twice the pairs of query and key that are not masked (twice, to stay an integer).

    Causal masking hides half of a square. With unequal lengths the mask is aligned top left, as torch's is: query ``i``
    sees keys ``0..i``, so queries beyond the last key see all keys. A single query (a decode step) sees all keys, for
    there kernels align the mask to the end.
    """
    if not causal or queries == 1:
        return 2 * queries * keys
    if queries == keys:
        return queries * keys
    short = smaller(queries, keys)
    return short * short + 2 * (queries - short) * keys


def _pairs_twice(query: TensorSpec, key: TensorSpec, causal: bool, seq: int) -> Size:
    """Twice the visible pairs over all batches and query heads."""
    axis = query.ndim + seq
    others = math.prod(size for index, size in enumerate(query.shape[:-1]) if index != axis)
    return others * visible_pairs_twice(query.shape[seq], key.shape[seq], causal)


def attention_flops(query: TensorSpec, key: TensorSpec, value: TensorSpec, causal: bool, seq: int = -2) -> Size:
    """Forward pass: ``Q·Kᵀ`` and ``P·V``, 2·d_qk and 2·d_v a pair, for every query head.

    Shapes ``(B, H, S, d)``; ``seq`` is the position of S (-3 for ``(B, S, H, d)``). Heads are the query's: grouped
    key and value heads save bytes, not FLOPs.
    """
    return _pairs_twice(query, key, causal, seq) * (query.shape[-1] + value.shape[-1])


def attention_backward_flops(
    query: TensorSpec, key: TensorSpec, value: TensorSpec, causal: bool, seq: int = -2
) -> Size:
    """Backward pass: scores again, dP, dV, dQ and dK; 2·(3·d_qk + 2·d_v) a pair."""
    return _pairs_twice(query, key, causal, seq) * (3 * query.shape[-1] + 2 * value.shape[-1])


@register(
    *aten(
        """_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
        _scaled_dot_product_fused_attention_overrideable scaled_dot_product_attention"""
    ),
    kind="attention",
    unit="tensor",
)
def fused_attention(call: Call) -> Cost:
    """Fused forward pass. Causal masking halves the FLOPs, where torch.utils.flop_counter ignores it."""
    query, key, value = (call[name] for name in _QKV)
    return call.moves(attention_flops(query, key, value, bool(call["is_causal"])))


@register(
    *aten("_scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps"),
    kind="attention",
    unit="tensor",
)
def math_attention(call: Call) -> Cost:
    """Materialised scores: written and read before the softmax and after it. Masks are applied, not skipped."""
    query, key, value = (call[name] for name in _QKV)
    return call.moves(attention_flops(query, key, value, False)) + materialised_scores(call, query, key)


def materialised_scores(call: Call, query: TensorSpec, key: TensorSpec) -> Cost:
    """The four passes over the scores, less the one that the returned attention matrix already stands for."""
    scores = math.prod(query.shape[:-1]) * key.shape[-2] * query.itemsize
    return_weights = len(call.outputs) > 1
    return Cost(0, 2 * scores, (1 if return_weights else 2) * scores)


@register(
    *aten(
        """_scaled_dot_product_flash_attention_backward _scaled_dot_product_flash_attention_for_cpu_backward
        _scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward
        _scaled_dot_product_fused_attention_overrideable_backward"""
    ),
    kind="attention",
    unit="tensor",
)
def fused_attention_backward(call: Call) -> Cost:
    """Fused backward pass, which computes the scores again."""
    query, key, value = (call[name] for name in _QKV)
    return call.moves(attention_backward_flops(query, key, value, bool(call["is_causal"])))


def _packed(spec: TensorSpec, batch: Size, length: Size) -> TensorSpec:
    """Sequences packed along one axis, taken as ``batch`` sequences of the greatest length."""
    return TensorSpec((batch, length, *spec.shape[-2:]), spec.dtype)


def _unpacked(call: Call, offsets: str, keys: tuple[str, str]) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    query, key, value = (call[name] for name in _QKV)
    cumulative = call[offsets]
    if cumulative is None:
        return query, key, value
    batch = cumulative.shape[0] - 1
    longest_q, longest_k = (call[name] for name in keys)
    longest_q = query.shape[-3] if longest_q is None else longest_q
    longest_k = key.shape[-3] if longest_k is None else longest_k
    return _packed(query, batch, longest_q), _packed(key, batch, longest_k), _packed(value, batch, longest_k)


def _causal_type(call: Call) -> bool:
    """0 no mask, 1 causal from the top left, 2 from the bottom right."""
    return bool(call["custom_mask_type"])


@register(
    *aten("_flash_attention_forward _flash_attention_forward_no_dropout_inplace"),
    kind="attention",
    unit="tensor",
)
def flash_forward(call: Call) -> Cost:
    """Layout ``(B, S, H, d)``; packed sequences of unequal length count as the longest one, an upper bound."""
    specs = _unpacked(call, "cum_seq_q", ("max_q", "max_k"))
    return call.moves(attention_flops(*specs, bool(call["is_causal"]), seq=-3))


@register("aten::_flash_attention_backward", kind="attention", unit="tensor")
def flash_backward(call: Call) -> Cost:
    """As `flash_forward`, with the five products of the backward pass."""
    specs = _unpacked(call, "cum_seq_q", ("max_q", "max_k"))
    return call.moves(attention_backward_flops(*specs, bool(call["is_causal"]), seq=-3))


@register("aten::_cudnn_attention_forward", kind="attention", unit="tensor")
def cudnn_forward(call: Call) -> Cost:
    """Layout ``(B, H, S, d)``, or packed sequences ``(T, H, d)`` as in `flash_forward`."""
    specs, seq = _cudnn(call)
    return call.moves(attention_flops(*specs, bool(call["is_causal"]), seq=seq))


@register("aten::_cudnn_attention_backward", kind="attention", unit="tensor")
def cudnn_backward(call: Call) -> Cost:
    """As `cudnn_forward`, with the five products of the backward pass."""
    specs, seq = _cudnn(call)
    return call.moves(attention_backward_flops(*specs, bool(call["is_causal"]), seq=seq))


def _cudnn(call: Call) -> tuple[tuple[TensorSpec, TensorSpec, TensorSpec], int]:
    specs = _unpacked(call, "cum_seq_q", ("max_q", "max_k"))
    return specs, -2 if call["cum_seq_q"] is None else -3


@register("aten::_native_multi_head_attention", kind="attention", unit="tensor")
def native_multi_head_attention(call: Call) -> Cost:
    """The fast path of nn.MultiheadAttention for ``(B, S, E)``: 2·B·S·E·3E for query, key and value, 4·B·S²·E for
    scores and values, 2·B·S·E² for the result; scores are written and read again around the softmax."""
    query, width, heads = call["query"], call["embed_dim"], call["num_head"]
    rows, length = query.numel // width, query.shape[-2]
    scores = rows * heads * length * query.itemsize
    return call.moves(8 * rows * width**2 + 4 * rows * length * width) + Cost(0, 2 * scores, 2 * scores)


@register("aten::_efficient_attention_forward", kind="attention", unit="tensor")
def efficient_forward(call: Call) -> Cost:
    """Layout ``(B, S, H, d)``; as `flash_forward`."""
    specs = _unpacked(call, "cu_seqlens_q", ("max_seqlen_q", "max_seqlen_k"))
    return call.moves(attention_flops(*specs, _causal_type(call), seq=-3))


@register("aten::_efficient_attention_backward", kind="attention", unit="tensor")
def efficient_backward(call: Call) -> Cost:
    """As `efficient_forward`, with the five products of the backward pass."""
    specs = _unpacked(call, "cu_seqlens_q", ("max_seqlen_q", "max_seqlen_k"))
    return call.moves(attention_backward_flops(*specs, _causal_type(call), seq=-3))


@register("higher_order::flex_attention", kind="attention", unit="tensor", params=_QKV)
def flex_attention(call: Call) -> Cost:
    """No block is taken as skipped: the block mask's values are data."""
    query, key, value = (call[name] for name in _QKV)
    return call.moves(attention_flops(query, key, value, False))


@register(
    "higher_order::flex_attention_backward",
    kind="attention",
    unit="tensor",
    params=(*_QKV, "out", "logsumexp", "grad_out"),
)
def flex_attention_backward(call: Call) -> Cost:
    """As `flex_attention`, with the five products of the backward pass."""
    query, key, value = (call[name] for name in _QKV)
    return call.moves(attention_backward_flops(query, key, value, False))
