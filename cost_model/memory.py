"""Operators that compute nothing: views, copies, fills, allocations, and random numbers."""

from __future__ import annotations

from .cost import Cost
from .pointwise import RANDOM_FLOPS
from .registry import Call, aten, register

_VIEWS = aten(
    """
    view reshape _unsafe_view _reshape_alias expand expand_as broadcast_to permute transpose t numpy_T mT mH
    matrix_H swapaxes swapdims movedim moveaxis adjoint squeeze unsqueeze slice select narrow diagonal as_strided
    unbind split split_with_sizes unsafe_split unsafe_split_with_sizes unsafe_chunk chunk tensor_split hsplit vsplit
    dsplit alias detach detach_ view_as view_as_real view_as_complex unfold flatten unflatten ravel lift lift_fresh
    _conj _neg_view conj resolve_conj resolve_neg real imag positive
    _fw_primal _make_dual _unpack_dual atleast_1d atleast_2d
    atleast_3d broadcast_tensors reshape_as data set_ resize_ resize_as_ set_data sym_size sym_numel sym_stride
    sym_storage_offset sym_is_contiguous sym_constrain_range sym_constrain_range_for_size _assert_scalar
    _assert_async _assert_tensor_metadata _functional_assert_scalar _functional_assert_async
    _functional_sym_constrain_range _functional_sym_constrain_range_for_size size stride numel dim storage_offset
    is_same_size record_stream _has_same_storage_numel _version _indices _values indices values crow_indices
    col_indices ccol_indices row_indices _mkldnn_transpose _mkldnn_reshape result_type _print
    _make_dep_token _linalg_check_errors _fused_sdp_choice
    """
)

_COPIES = aten(
    """
    clone _to_copy lift_fresh_copy view_copy permute_copy transpose_copy t_copy squeeze_copy unsqueeze_copy
    expand_copy slice_copy select_copy diagonal_copy as_strided_copy unbind_copy split_copy split_with_sizes_copy
    alias_copy detach_copy view_as_real_copy view_as_complex_copy unfold_copy _reshape_copy _conj_copy
    _neg_view_copy narrow_copy _copy_from _copy_from_and_resize _lazy_clone cat concat concatenate stack hstack
    vstack dstack column_stack row_stack _stack _chunk_cat constant_pad_nd pad _pad_enum _pad_circular flip fliplr
    flipud roll rot90 repeat tile reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle tril
    triu diag diag_embed diagflat block_diag im2col lu_unpack _pin_memory pin_memory _cast_Float _cast_Half _cast_Double
    _cast_Int _cast_Long _cast_Byte _cast_Char _cast_Short _autocast_to_full_precision
    _autocast_to_reduced_precision meshgrid _to_dense _convert_weight_to_int4pack
    _convert_weight_to_int4pack_for_cpu _local_scalar_dense item combinations cartesian_prod
    """
)

# Functional fills take a tensor only for its shape.
_FILLS = aten(
    """
    full zeros ones full_like zeros_like ones_like new_full new_zeros new_ones fill zero scalar_tensor tensor arange
    range linspace logspace eye tril_indices triu_indices vander hann_window hamming_window bartlett_window
    blackman_window kaiser_window _efficientzerotensor
    """
)

_ALLOCATIONS = aten("empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize resize_as")

_GENERATORS = aten(
    """
    rand randn randint rand_like randn_like randint_like normal uniform exponential geometric cauchy log_normal
    random normal_functional randperm _philox_uniform _philox_normal
    """
)

_SAMPLERS = aten(
    """
    bernoulli native_dropout multinomial poisson binomial rrelu_with_noise rrelu_with_noise_functional
    _fused_dropout alpha_dropout feature_dropout feature_alpha_dropout _standard_gamma _sample_dirichlet
    """
)


@register(
    *_VIEWS,
    "profiler::_record_function_enter_new",
    "profiler::_record_function_enter",
    "profiler::_record_function_exit",
    "prims::view_of",
    "prims::broadcast_in_dim",
    "prims::transpose",
    "prim::device",
    "prim::layout",
    kind="view",
)
def view(call: Call) -> Cost:
    """Metadata only. ``reshape`` and its like are taken as views: a copy shows up as ``clone`` after tracing."""
    return Cost.zero()


@register("aten::contiguous", "aten::to", "aten::type_as", kind="copy")
def copy_if_needed(call: Call) -> Cost:
    """Free when the result has the dtype and the strides of the source, else a copy."""
    source, result = call["self"], call.result
    if source is result or (source.dtype == result.dtype and source.stride == result.stride):
        return Cost.zero()
    return Cost(0, source.nbytes, result.nbytes)


@register(*_COPIES, "prims::clone", kind="copy")
def copy(call: Call) -> Cost:
    """Read the source once, write the result once. Padding repeats no read; repeats read the source once."""
    reads = call.read_bytes()
    if call.name == "aten::_local_scalar_dense":
        return Cost(0, reads, 0)
    return Cost(0, reads, call.written_bytes())


@register("aten::copy", kind="copy")
def copy_onto(call: Call) -> Cost:
    """Read the source, write the destination; the destination's old values are not read."""
    return Cost(0, call["src"].nbytes, call.written_bytes())


@register(*_FILLS, "prims::iota", kind="constant")
def fill(call: Call) -> Cost:
    """Written, never read. A fill from a scalar tensor reads that element."""
    value = call["value"]
    reads = value.nbytes if hasattr(value, "nbytes") else 0
    return Cost(0, reads, call.written_bytes())


@register(*_ALLOCATIONS, kind="constant")
def allocate(call: Call) -> Cost:
    """Uninitialised memory moves no bytes."""
    return Cost.zero()


@register(*_GENERATORS, "rooffuse::philox", "rngprims::philox_rand", kind="random")
def generate(call: Call) -> Cost:
    """Philox-4x32-10 (Salmon et al., SC 2011): 16 operations a number.

    A tensor that is filled, or gives only its shape, is not read.
    """
    return call.moves(RANDOM_FLOPS * call.output_numel(), ("self",))


@register(*_SAMPLERS, kind="random")
def sample(call: Call) -> Cost:
    """Draws that look at an input (probabilities, or values to drop): read it, write the result and any mask."""
    without = ("self",) if call.in_place and call.name == "aten::bernoulli_" else ()
    return Cost((RANDOM_FLOPS + 2) * call.output_numel(), call.read_bytes(without), call.written_bytes())
