"""Which ATen operators stay as they are, and the table that AOTAutograd decomposes by.

Names are operator packets (``aten.add`` stands for all its overloads).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rooffuse.passes.graph import packet_name
from rooffuse.passes.rules import RULES
from torch._decomp import _core_aten_decompositions_post_autograd


def _names(text: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in text.split())


POINTWISE = _names(
    """add sub mul div floor_divide remainder fmod pow neg abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos
    tan asin acos atan sinh cosh tanh asinh acosh atanh atan2 erf erfc sigmoid relu silu gelu hardtanh leaky_relu
    elu softplus hardswish hardsigmoid mish floor ceil round trunc sign sgn reciprocal isnan isinf eq ne lt le gt ge
    fmax fmin logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor
    bitwise_left_shift bitwise_right_shift minimum maximum clamp clamp_min clamp_max where masked_fill
    _to_copy clone copy full zeros ones empty empty_like arange
    scalar_tensor lift_fresh_copy"""
)
REDUCTIONS = _names("sum mean amax amin prod any all argmax argmin max min")
VIEWS = _names(
    """view reshape _unsafe_view permute transpose t expand slice select unsqueeze squeeze unbind split
    split_with_sizes chunk flip roll alias detach as_strided diagonal repeat cat stack constant_pad_nd"""
)
GATHERS = _names("embedding index _unsafe_index index_select gather select_scatter slice_scatter")

# The operators that a kernel generator takes one by one; no pass breaks them down further.
PRIMITIVES = POINTWISE | REDUCTIONS | VIEWS | GATHERS

# Calls that are better left to the framework's own kernels, or that a later pattern wants to recognise whole.
LIBRARY = _names(
    """mm bmm addmm baddbmm addbmm addmv addr mv dot convolution convolution_backward
    scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
    _scaled_dot_product_cudnn_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_fused_attention_overrideable
    embedding_dense_backward _embedding_bag _embedding_bag_forward_only index_put _unsafe_index_put index_copy
    index_add index_fill scatter scatter_add scatter_reduce masked_scatter cumsum cumprod logcumsumexp sort topk
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d grid_sampler_2d
    upsample_linear1d_backward upsample_bilinear2d_backward upsample_trilinear3d_backward
    upsample_bicubic2d_backward reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d bernoulli rand randn rand_like randn_like randperm
    randint uniform normal exponential"""
)


def aot_decompositions() -> dict[Any, Callable[..., Any]]:
    """The decomposition table to hand to AOTAutograd, for inference and training alike.

    It is the core ATen table less what this package keeps whole: primitives, library calls, and the compound
    operators of ``RULES``, which the decompose pass expands later, once per distinct call where AOTAutograd would
    trace every call anew.

    Keeping normalisations, softmaxes and backward operators whole costs the min-cut partitioner nothing: on GPT-2,
    BERT and Llama blocks it saves the same bytes for the backward pass as when they are expanded. A ``detach`` does
    cost it: it is not among the operators that the partitioner recomputes, so the value behind it is saved (in
    GPT-2, the hidden tensor of every MLP); as the ``alias`` of the core table it is recomputed.
    """
    return dict(_table())


@functools.lru_cache(maxsize=1)
def _table() -> dict[Any, Callable[..., Any]]:
    """Without the composite operators that the public ``core_aten_decompositions`` adds, for which it asks the
    dispatcher about every operator of every namespace, a tenth of a second: tracing takes those apart anyway."""
    keep = (PRIMITIVES | LIBRARY | {packet_name(op) for op in RULES}) - {"aten.detach"}
    return {op: function for op, function in _core_aten_decompositions_post_autograd().items()
            if packet_name(op) not in keep}
