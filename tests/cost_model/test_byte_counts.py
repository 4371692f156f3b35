"""Exact byte counts for each family: how many reads, how many writes."""

import operator

import pytest
import torch
from rooffuse.cost_model import Cost, TensorSpec, kind_of, price

aten = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def cost_of(target, *args, result=None, **kwargs):
    priced = price(target, args, kwargs, target(*args, **kwargs) if result is None else result)
    assert priced.known
    return priced.cost


N = 64 * 32
F32 = 4


def test_pointwise_is_two_reads_and_one_write():
    assert cost_of(aten.add.Tensor, meta(64, 32), meta(64, 32)) == Cost(N, 2 * N * F32, N * F32)


def test_one_tensor_used_twice_is_one_read():
    x = meta(64, 32)
    assert cost_of(aten.mul.Tensor, x, x) == Cost(N, N * F32, N * F32)


def test_equal_but_separate_specs_are_two_reads():
    x, y, out = (TensorSpec((64, 32), torch.float32) for _ in range(3))
    assert cost_of(aten.mul.Tensor, x, y, result=out).bytes_read == 2 * N * F32
    assert cost_of(aten.mul.Tensor, x, x, result=out).bytes_read == N * F32


def test_expanded_input_counts_its_distinct_elements():
    assert cost_of(aten.add.Tensor, meta(64, 32), meta(32).expand(64, 32)).bytes_read == (N + 32) * F32


def test_overlapping_windows_count_the_span_they_cover():
    windows = meta(100).unfold(0, 10, 1)
    assert cost_of(aten.neg.default, windows) == Cost(910, 100 * F32, 910 * F32)


def test_broadcast_input_counts_as_stored():
    assert cost_of(aten.add.Tensor, meta(64, 32), meta(32)).bytes_read == (N + 32) * F32


def test_mask_counts_one_byte_an_element():
    cost = cost_of(aten.masked_fill.Scalar, meta(64, 32), meta(64, 32, dtype=torch.bool), 0.0)
    assert cost == Cost(N, N * F32 + N, N * F32)


def test_in_place_reads_and_writes_its_target():
    x, y = meta(64, 32), meta(64, 32)
    assert cost_of(aten.add_.Tensor, x, y) == Cost(N, 2 * N * F32, N * F32)
    assert cost_of(aten.relu_.default, x) == Cost(N, N * F32, N * F32)


def test_out_buffer_is_written_and_not_read():
    x, out = meta(64, 32), meta(64, 32)
    assert cost_of(aten.sin.out, x, out=out) == Cost(N, N * F32, N * F32)


VIEWS = [
    (aten.view.default, ([N],)),
    (aten._unsafe_view.default, ([N],)),
    (aten.reshape.default, ([N],)),
    (aten.permute.default, ([1, 0],)),
    (aten.slice.Tensor, (0, 1, 3)),
    (aten.select.int, (0, 1)),
    (aten.unbind.int, (0,)),
    (aten.alias.default, ()),
    (aten.detach.default, ()),
    (aten.expand.default, ([2, 64, 32],)),
    (aten.split_with_sizes.default, ([32, 32],)),
    (aten.unsqueeze.default, (0,)),
    (aten.as_strided.default, ([8], [1])),
    (aten.t.default, ()),
    (aten.positive.default, ()),
]


@pytest.mark.parametrize("op, args", VIEWS, ids=[str(op) for op, _ in VIEWS])
def test_views_are_free(op, args):
    assert kind_of(op) == "view"
    assert cost_of(op, meta(64, 32), *args) == Cost.zero()


def test_picking_from_a_tuple_and_arithmetic_on_sizes_are_free():
    x = meta(4)
    for target, args, result in [(operator.getitem, ((x, x), 0), x), (operator.mul, (3, 4), 12)]:
        priced = price(target, args, {}, result)
        assert (priced.cost, priced.kind, priced.known) == (Cost.zero(), "view", True)


def test_copy_reads_the_source_and_writes_the_destination():
    assert cost_of(aten.copy_.default, meta(64, 32), meta(64, 32, dtype=torch.float16)) == Cost(0, N * 2, N * F32)
    assert cost_of(aten.copy.default, meta(64, 32), meta(64, 32, dtype=torch.float16)) == Cost(0, N * 2, N * F32)
    assert cost_of(aten._to_copy.default, meta(64, 32), dtype=torch.float16) == Cost(0, N * F32, N * 2)


def test_contiguous_is_free_only_on_contiguous_tensors():
    x = meta(64, 32)
    assert cost_of(aten.contiguous.default, x) == Cost.zero()
    assert cost_of(aten.contiguous.default, x.t()) == Cost(0, N * F32, N * F32)


def test_cat_and_pad():
    assert cost_of(aten.cat.default, [meta(64, 32), meta(64, 32)], 1) == Cost(0, 2 * N * F32, 2 * N * F32)
    assert cost_of(aten.constant_pad_nd.default, meta(64, 32), [0, 32]) == Cost(0, N * F32, 2 * N * F32)


def test_fills_write_and_allocations_do_not():
    assert cost_of(aten.full.default, [64, 32], 1.0, device="meta") == Cost(0, 0, N * F32)
    assert cost_of(aten.zeros_like.default, meta(64, 32)) == Cost(0, 0, N * F32)
    assert cost_of(aten.fill_.Scalar, meta(64, 32), 0.0) == Cost(0, 0, N * F32)
    assert cost_of(aten.zero_.default, meta(64, 32)) == Cost(0, 0, N * F32)
    assert cost_of(aten.empty.memory_format, [64, 32], device="meta") == Cost.zero()


def test_random_numbers():
    assert cost_of(aten.randn_like.default, meta(64, 32)).bytes_read == 0
    assert cost_of(aten.uniform_.default, meta(64, 32)).bytes == N * F32
    dropped = cost_of(aten.native_dropout.default, meta(64, 32), 0.1, True)
    assert (dropped.bytes_read, dropped.bytes_written) == (N * F32, N * F32 + N)
    assert cost_of(aten.bernoulli_.float, meta(64, 32)).bytes == N * F32
    means = cost_of(aten.normal.Tensor_float, meta(64, 32), 1.0)
    assert means.bytes == 2 * N * F32


def test_reductions_read_all_and_write_rows():
    assert cost_of(aten.sum.dim_IntList, meta(64, 32), [1]) == Cost(N, N * F32, 64 * F32)
    assert cost_of(aten.var_mean.correction, meta(64, 32), [1]) == Cost(4 * N, N * F32, 2 * 64 * F32)
    assert cost_of(aten._softmax.default, meta(64, 32), 1, False) == Cost(5 * N, N * F32, N * F32)
    assert cost_of(aten.max.dim, meta(64, 32), 1) == Cost(N, N * F32, 64 * (F32 + 8))


def test_max_of_two_tensors_is_pointwise():
    assert kind_of(aten.max.other) == "pointwise" and kind_of(aten.max.dim) == "reduction"
    assert cost_of(aten.max.other, meta(64, 32), meta(64, 32)) == Cost(N, 2 * N * F32, N * F32)


def test_scan_and_sort():
    assert cost_of(aten.cumsum.default, meta(64, 32), 1) == Cost(N, N * F32, N * F32)
    assert cost_of(aten.sort.default, meta(64, 32), 1) == Cost(N * 5, N * F32, N * (F32 + 8))
    assert cost_of(aten.topk.default, meta(64, 32), 4, 1) == Cost(N * 3, N * F32, 64 * 4 * (F32 + 8))


def test_layer_norm_forward_and_backward():
    x, w, b = meta(64, 32), meta(32), meta(32)
    forward = cost_of(aten.native_layer_norm.default, x, [32], w, b, 1e-5)
    assert forward == Cost(8 * N, (N + 64) * F32, (N + 2 * 64) * F32)
    mean, rstd = meta(64, 1), meta(64, 1)
    backward = cost_of(
        aten.native_layer_norm_backward.default, meta(64, 32), x, [32], mean, rstd, w, b, [True, True, True]
    )
    assert backward == Cost(14 * N, (2 * N + 2 * 64 + 2 * 32) * F32, (N + 2 * 32) * F32)


def test_batch_norm_writes_its_running_statistics():
    c = 8
    x = meta(4, c, 5, 5)
    cost = cost_of(
        aten._native_batch_norm_legit.default, x, meta(c), meta(c), meta(c), meta(c), True, 0.1, 1e-5
    )
    assert cost == Cost(8 * 800, (800 + 4 * c) * F32, (800 + 2 * c + 2 * c) * F32)


def test_matmul_and_bias():
    assert cost_of(aten.mm.default, meta(8, 16), meta(16, 32)) == Cost(2 * 8 * 16 * 32, (128 + 512) * F32, 256 * F32)
    with_bias = cost_of(aten.addmm.default, meta(32), meta(8, 16), meta(16, 32))
    assert with_bias == Cost(2 * 8 * 16 * 32, (32 + 128 + 512) * F32, 256 * F32)


def test_embedding_reads_the_rows_touched():
    table, tokens = meta(50000, 64), meta(4, 16, dtype=torch.int64)
    assert cost_of(aten.embedding.default, table, tokens) == Cost(0, 64 * 64 * F32 + 64 * 8, 64 * 64 * F32)
    small = meta(10, 64)
    assert cost_of(aten.embedding.default, small, tokens).bytes_read == 10 * 64 * F32 + 64 * 8


def test_gathers_read_what_they_take():
    x, index = meta(1000, 32), meta(5, dtype=torch.int64)
    assert cost_of(aten.index_select.default, x, 0, index) == Cost(0, 160 * F32 + 40, 160 * F32)
    assert cost_of(aten.index.Tensor, x, [index]) == Cost(0, 160 * F32 + 40, 160 * F32)
    assert cost_of(aten.gather.default, x, 0, meta(5, 32, dtype=torch.int64)) == Cost(0, 160 * (F32 + 8), 160 * F32)


def test_functional_scatters_copy_all():
    x = meta(1000, 32)
    for op, args, region in [
        (aten.slice_scatter.default, (meta(5, 32), 0, 0, 5), 160),
        (aten.select_scatter.default, (meta(32), 0, 3), 32),
    ]:
        assert cost_of(op, x, *args) == Cost(0, 32000 * F32, 32000 * F32), (op, region)
    index = meta(5, dtype=torch.int64)
    assert cost_of(aten.index_copy.default, x, 0, index, meta(5, 32)) == Cost(0, (32160) * F32 + 40, 32000 * F32)
    put = cost_of(aten.index_put.default, x, [index], meta(5, 32))
    assert put == Cost(0, 32160 * F32 + 40, 32000 * F32)


def test_in_place_scatters_move_only_the_region():
    x, index, rows = meta(1000, 32), meta(5, dtype=torch.int64), meta(5, 32)
    assert cost_of(aten.index_copy_.default, x, 0, index, rows) == Cost(0, 160 * F32 + 40, 160 * F32)
    assert cost_of(aten.index_put_.default, x, [index], rows) == Cost(0, 160 * F32 + 40, 160 * F32)
    assert cost_of(aten.index_put_.default, x, [index], rows, True) == Cost(160, 320 * F32 + 40, 160 * F32)
    assert cost_of(aten.index_add_.default, x, 0, index, rows) == Cost(160, 320 * F32 + 40, 160 * F32)
    wide = meta(5, 32, dtype=torch.int64)
    assert cost_of(aten.scatter_.src, x, 0, wide, meta(64, 32)) == Cost(0, 160 * (F32 + 8), 160 * F32)
    assert cost_of(aten.scatter_add_.default, x, 0, wide, rows) == Cost(160, 160 * (2 * F32 + 8), 160 * F32)
    assert cost_of(aten.scatter_.value, x, 0, wide, 1.0) == Cost(0, 160 * 8, 160 * F32)


def test_index_put_with_broadcast_indices_and_whole_dimensions():
    cache = meta(2, 8, 128, 64)
    position = meta(3, dtype=torch.int64)
    cost = cost_of(aten.index_put_.default, cache, [None, None, position], meta(2, 8, 3, 64))
    assert cost.bytes_written == 2 * 8 * 3 * 64 * F32
    rows, columns = meta(4, 1, dtype=torch.int64), meta(6, dtype=torch.int64)
    pairs = cost_of(aten.index_put_.default, meta(100, 100, 7), [rows, columns], meta(4, 6, 7))
    assert pairs.bytes_written == 4 * 6 * 7 * F32


def test_index_put_with_a_mask_moves_at_most_what_the_mask_covers():
    mask = meta(64, 32, dtype=torch.bool)
    cost = cost_of(aten.index_put_.default, meta(64, 32, 3), [mask], meta(()))
    assert cost == Cost(0, N + F32, N * 3 * F32)


def test_gradients_of_gathers_and_views_write_the_whole_table():
    grad, tokens = meta(4, 64), meta(4, dtype=torch.int64)
    cost = cost_of(aten.embedding_dense_backward.default, grad, tokens, 100, -1, False)
    assert cost == Cost(256, 256 * F32 + 32, 6400 * F32)
    assert cost_of(aten.slice_backward.default, meta(4, 8), [16, 8], 0, 0, 4, 1).bytes_written == 128 * F32


def test_max_pool_backward_does_not_read_the_input():
    x = meta(1, 2, 8, 8)
    _, where = aten.max_pool2d_with_indices.default(x, [2, 2], [2, 2])
    grad = meta(1, 2, 4, 4)
    cost = cost_of(
        aten.max_pool2d_with_indices_backward.default, grad, x, [2, 2], [2, 2], [0, 0], [1, 1], False, where
    )
    assert cost == Cost(32, 32 * (F32 + 8), 128 * F32)


def test_pooling_counts_windows():
    assert cost_of(aten.avg_pool2d.default, meta(1, 2, 8, 8), [3, 3], [1, 1], [1, 1]) == Cost(
        9 * 128, 128 * F32, 128 * F32
    )


def test_loss_reads_one_log_probability_a_target():
    scores, target = meta(64, 1000), meta(64, dtype=torch.int64)
    cost = cost_of(aten.nll_loss_forward.default, scores, target, None, 1, -100)
    assert cost == Cost(128, 64 * (F32 + 8), 2 * F32)
    weight_total = meta(())
    back = cost_of(aten.nll_loss_backward.default, meta(()), scores, target, None, 1, -100, weight_total)
    assert back.bytes_written == 64000 * F32
    assert back.bytes_read == 2 * F32 + 64 * 8


def test_quantised_weights_count_as_stored():
    x = TensorSpec((1, 4096), torch.bfloat16)
    out = TensorSpec((1, 4096), torch.bfloat16)
    w8, scales = TensorSpec((4096, 4096), torch.int8), TensorSpec((4096,), torch.bfloat16)
    p8 = price(aten._weight_int8pack_mm.default, (x, w8, scales), {}, out)
    assert p8.cost == Cost(2 * 4096**2, 4096**2 + 2 * 8192, 8192) and p8.dtype == torch.bfloat16
    w4 = TensorSpec((512, 32, 32, 4), torch.int32)
    groups = TensorSpec((64, 4096, 2), torch.bfloat16)
    p4 = price(aten._weight_int4pack_mm.default, (x, w4, 64, groups), {}, out)
    assert p4.cost == Cost(2 * 4096**2, 8192 + 4096**2 // 2 + 64 * 4096 * 4, 8192)


def test_fp8_and_int8_matmuls_name_their_peak():
    a, b = meta(64, 32, dtype=torch.float8_e4m3fn), meta(16, 32, dtype=torch.float8_e4m3fn).t()
    out = meta(64, 16, dtype=torch.bfloat16)
    one = meta(())
    fp8 = price(aten._scaled_mm.default, (a, b, one, one), {"out_dtype": torch.bfloat16}, out)
    assert fp8.cost == Cost(2 * 64 * 32 * 16, 64 * 32 + 32 * 16 + F32, 64 * 16 * 2)
    assert (fp8.dtype, fp8.unit, fp8.kind) == (torch.float8_e4m3fn, "tensor", "matmul")
    i8 = price(aten._int_mm.default, (meta(64, 32, dtype=torch.int8), meta(32, 16, dtype=torch.int8)), {}, meta(64, 16))
    assert i8.dtype == torch.int8


def test_vector_work_on_half_types_computes_in_fp32():
    half = price(aten.sin.default, (meta(4, dtype=torch.bfloat16),), {}, meta(4, dtype=torch.bfloat16))
    assert (half.dtype, half.unit) == (torch.float32, "vector")
    double = price(aten.sin.default, (meta(4, dtype=torch.float64),), {}, meta(4, dtype=torch.float64))
    assert double.dtype == torch.float64
    bias = meta(8, dtype=torch.float32)
    left, right = meta(4, 4, dtype=torch.half), meta(4, 8, dtype=torch.half)
    mixed = price(aten.addmm.default, (bias, left, right), {}, meta(4, 8))
    assert mixed.dtype == torch.float16


def test_foreach_and_fused_optimisers():
    lists = [[meta(64, 32), meta(8)] for _ in range(4)]
    total = N + 8
    assert cost_of(aten._foreach_add.List, lists[0], lists[1]) == Cost(total, 2 * total * F32, total * F32)
    assert cost_of(aten._foreach_mul_.Scalar, lists[0], 2.0, result=()) == Cost(total, total * F32, total * F32)
    steps = [meta(()), meta(())]
    cost = cost_of(
        aten._fused_adamw_.default,
        *lists,
        [],
        steps,
        result=(),
        lr=1e-3,
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.0,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )
    # Reads parameters, gradients and two moments; writes all but the gradients. Steps are read, and counted by foreach.
    assert cost == Cost(14 * total, 4 * total * F32 + 2 * F32, 3 * total * F32)


def test_collectives_count_local_traffic():
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    x, out = meta(64, 32), meta(64, 32)
    reduced = price(torch.ops._c10d_functional.all_reduce.default, (x, "sum", "0"), {}, out)
    assert (reduced.kind, reduced.cost) == ("collective", Cost(N, N * F32, N * F32))
    waited = price(torch.ops._c10d_functional.wait_tensor.default, (out,), {}, out)
    assert (waited.kind, waited.cost) == ("collective", Cost.zero())


def test_math_attention_moves_the_scores_four_times():
    q = meta(1, 2, 16, 8)
    out, weights = meta(1, 2, 16, 8), meta(1, 2, 16, 16)
    cost = cost_of(aten._scaled_dot_product_attention_math.default, q, meta(1, 2, 16, 8), meta(1, 2, 16, 8),
                   result=(out, weights))  # fmt: skip
    assert cost.bytes == (4 * 256 + 4 * 512) * F32
    assert cost.flops == 4 * 2 * 16 * 16 * 8


@pytest.mark.parametrize(("rows", "read"), [(3, 3), (8, 8), (100, 8)])
def test_grouped_products_read_the_matrices_that_rows_meet(rows, read):
    x, experts = meta(rows, 16, dtype=torch.bfloat16), meta(8, 16, 32, dtype=torch.bfloat16)
    offsets, out = meta(8, dtype=torch.int32), meta(rows, 32, dtype=torch.bfloat16)
    cost = price(aten._grouped_mm.default, (x, experts, offsets), {}, out).cost
    assert cost == Cost(2 * rows * 16 * 32, 2 * (rows * 16 + read * 16 * 32) + 8 * 4, 2 * rows * 32)
    # The same product from the other side: each group's rows of weights meet its columns.
    turned = price(aten._grouped_mm.default, (experts.mT, x.t(), offsets), {}, out.t()).cost
    assert turned == cost


def test_grouped_products_of_equal_ranks():
    offsets = meta(8, dtype=torch.int32)
    slices = price(aten._grouped_mm.default, (meta(16, 100), meta(100, 32), offsets), {}, meta(8, 16, 32)).cost
    assert slices == Cost(2 * 16 * 100 * 32, 4 * (16 * 100 + 100 * 32 + 8), 4 * 8 * 16 * 32)
    batched = price(aten._grouped_mm.default, (meta(8, 4, 16), meta(8, 16, 32)), {}, meta(8, 4, 32)).cost
    assert batched.flops == 2 * 8 * 4 * 16 * 32 and batched.bytes_read == 4 * (8 * 4 * 16 + 8 * 16 * 32)


def test_grouped_heads_save_bytes_and_no_flops():
    q = meta(1, 8, 16, 64)
    few = [meta(1, 2, 16, 64) for _ in range(2)]
    many = [meta(1, 8, 16, 64) for _ in range(2)]
    op = aten.scaled_dot_product_attention.default
    grouped = cost_of(op, q, *few, enable_gqa=True, result=meta(1, 8, 16, 64))
    full = cost_of(op, q, *many, result=meta(1, 8, 16, 64))
    expanded = cost_of(op, q, *(kv[:, :1].expand(1, 8, 16, 64) for kv in many), result=meta(1, 8, 16, 64))
    assert grouped.flops == full.flops == expanded.flops
    assert full.bytes - grouped.bytes == 2 * 6 * 16 * 64 * F32
    assert full.bytes - expanded.bytes == 2 * 7 * 16 * 64 * F32
