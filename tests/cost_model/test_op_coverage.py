"""Every core operator has a formula, and FLOPs agree with torch's own counter."""

import random

import pytest
import torch
from rooffuse.cost_model import KINDS, OPS, kind_of, price
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def overloads():
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("aten::"):
            packet = getattr(aten, schema.name[6:], None)
            op = getattr(packet, schema.overload_name or "default", None) if packet is not None else None
            if op is not None:
                yield op


CORE = sorted({str(op): op for op in overloads() if torch.Tag.core in op.tags}.items())
POINTWISE = sorted({str(op): op for op in overloads() if torch.Tag.pointwise in op.tags}.items())


def has_formula(op):
    return OPS.find(op._schema.name, op._schema.overload_name or "default", op._schema.is_mutable) is not None


def test_core_operators_were_found():
    assert len(CORE) > 150


@pytest.mark.parametrize("op", [op for _, op in CORE], ids=[name for name, _ in CORE])
def test_every_core_operator_has_a_formula(op):
    assert has_formula(op)
    assert kind_of(op) in KINDS
    assert kind_of(op) != "other" or "fft" in str(op)


def test_every_pointwise_operator_has_a_formula():
    # Shifts in place have no functional twin of the same name; a tracer turns them into bitwise shifts.
    missing = [name for name, op in POINTWISE if not has_formula(op) and "shift__" not in name]
    assert missing == []


def test_core_operators_price_on_samples():
    """Calls of core operators on meta tensors: formulas must not trip over real argument lists."""
    x, i = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    row, weight = torch.empty(6, 8, device="meta"), torch.empty(5, 3, 3, 3, device="meta")
    calls = [
        (aten.arange.start_step, (0, 10, 1), {"device": "meta"}),
        (aten.argmax.default, (row, 1), {}),
        (aten.any.dims, (row, [0, 1]), {}),
        (aten._adaptive_avg_pool2d.default, (x, [2, 2]), {}),
        (aten._adaptive_avg_pool2d_backward.default, (x, x), {}),
        (aten.avg_pool2d_backward.default, (x, x, [3, 3], [1, 1], [1, 1], False, True, None), {}),
        (aten.col2im.default, (torch.empty(2, 27, 64, device="meta"), [8, 8], [3, 3], [1, 1], [1, 1], [1, 1]), {}),
        (aten.convolution.default, (x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1), {}),
        (aten._cdist_forward.default, (row, row.clone(), 2.0, None), {}),
        (aten.elu.default, (row,), {}),
        (aten._fft_r2c.default, (row, [1], 0, True), {}),
        (aten.flip.default, (row, [0]), {}),
        (aten.grid_sampler_2d.default, (x, torch.empty(2, 4, 4, 2, device="meta"), 0, 0, False), {}),
        (aten.native_group_norm.default, (x, None, None, 2, 3, 64, 3, 1e-5), {}),
        (aten.index.Tensor, (row, [None, i]), {}),
        (aten._log_softmax.default, (row, 1, False), {}),
        (aten.masked_scatter.default, (row, row > 0, row), {}),
        (aten.max_pool2d_with_indices.default, (x, [2, 2]), {}),
        (aten.pow.Tensor_Scalar, (row, 2), {}),
        (aten.rand.default, ([4],), {"device": "meta"}),
        (aten.reflection_pad2d.default, (x, [1, 1, 1, 1]), {}),
        (aten.repeat.default, (row, [2, 2]), {}),
        (aten.scatter_reduce.two, (row, 0, i[:, None].expand(4, 8), row, "sum"), {}),
        (aten.upsample_bilinear2d.vec, (x, None, False, [2.0, 2.0]), {}),
        (aten.upsample_nearest2d.vec, (x, None, [2.0, 2.0]), {}),
        (aten.where.self, (row > 0, row, row), {}),
    ]
    for op, args, kwargs in calls:
        priced = price(op, args, kwargs, op(*args, **kwargs))
        assert priced.known, op
        assert isinstance(priced.cost.flops, int) and isinstance(priced.cost.bytes, int), op
        assert priced.cost.bytes > 0, op


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def flops_of(op, args, kwargs, result):
    return price(op, args, kwargs, result).cost.flops


def torch_flops(packet, args, kwargs, result):
    return flop_registry[packet](*args, **kwargs, out_val=result)


def agree(op, args, kwargs=None, result=None):
    kwargs = kwargs or {}
    result = op(*args, **kwargs) if result is None else result
    ours, theirs = flops_of(op, args, kwargs, result), torch_flops(op.overloadpacket, args, kwargs, result)
    assert ours == theirs > 0, (op, ours, theirs)


def seeds():
    return pytest.mark.parametrize("seed", range(5))


def dims(seed, count, low=1, high=40):
    rng = random.Random(seed)
    return [rng.randint(low, high) for _ in range(count)]


@seeds()
def test_matmuls_agree(seed):
    b, m, k, n = dims(seed, 4)
    agree(aten.mm.default, (meta(m, k), meta(k, n)))
    agree(aten.addmm.default, (meta(n), meta(m, k), meta(k, n)))
    agree(aten.bmm.default, (meta(b, m, k), meta(b, k, n)))
    agree(aten.baddbmm.default, (meta(b, m, n), meta(b, m, k), meta(b, k, n)))
    a, w = meta(16 * m, 16 * k, dtype=torch.float8_e4m3fn), meta(16 * n, 16 * k, dtype=torch.float8_e4m3fn).t()
    agree(aten._scaled_mm.default, (a, w, meta(()), meta(())), {"out_dtype": torch.bfloat16}, meta(16 * m, 16 * n))


@seeds()
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 2])
def test_convolutions_agree(seed, transposed, groups, rank):
    n, c, o, s, k = dims(seed, 5, 1, 5)
    c, o = c * groups, o * groups
    x = meta(n, c, *[s + 5] * rank)
    weight = meta(c, o // groups, *[k] * rank) if transposed else meta(o, c // groups, *[k] * rank)
    rest = ([1 + seed % 2] * rank, [seed % 2] * rank, [1] * rank, transposed, [0] * rank, groups)
    out = aten.convolution.default(x, weight, None, *rest)
    agree(aten.convolution.default, (x, weight, None, *rest))
    ours = flops_of(aten.convolution.default, (x, weight, None, *rest), {}, out)
    for name in ("_convolution", "convolution_overrideable"):
        op = getattr(aten, name).default
        extra = (False, False, False, False) if name == "_convolution" else ()
        assert flops_of(op, (x, weight, None, *rest, *extra), {}, out) == ours
        assert torch_flops(op.overloadpacket, (x, weight, None, *rest, *extra), {}, out) == ours
    if not transposed:
        # torch's formulas for these two assume the argument list of aten.convolution.
        args = (x, weight, [0] * rank, [1] * rank, [1] * rank, groups, False, False, False)
        assert flops_of(aten.cudnn_convolution.default, args, {}, out) == ours
        assert flops_of(aten._slow_conv2d_forward.default, (x, weight, [k] * rank, None, [1], [0]), {}, out) == ours
        assert flop_registry[aten._slow_conv2d_forward](x, weight, None, *rest, out_val=out) == ours


@seeds()
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mask", [[True, True, False], [True, False, False], [False, True, False]])
def test_convolution_backward_agrees(seed, transposed, mask):
    n, c, o, s, k = dims(seed, 5, 1, 5)
    x = meta(n, c, s + 5, s + 6)
    weight = meta(c, o, k, k) if transposed else meta(o, c, k, k)
    rest = ([1, 1], [0, 0], [1, 1], transposed, [0, 0], 1)
    out = aten.convolution.default(x, weight, None, *rest)
    result = (x if mask[0] else None, weight if mask[1] else None, None)
    agree(aten.convolution_backward.default, (out, x, weight, None, *rest, mask), {}, result)


def test_grouped_weight_gradient_is_not_counted_per_pair_of_groups():
    """Here torch's counter lets channels of different groups meet, ``groups`` times the work."""
    x, weight = meta(2, 8, 9, 9), meta(12, 2, 3, 3)
    rest = ([1, 1], [0, 0], [1, 1], False, [0, 0], 4)
    out = aten.convolution.default(x, weight, None, *rest)
    args = (out, x, weight, None, *rest, [False, True, False])
    result = (None, weight, None)
    ours = flops_of(aten.convolution_backward.default, args, {}, result)
    assert ours == flops_of(aten.convolution.default, (x, weight, None, *rest), {}, out)
    assert torch_flops(aten.convolution_backward, args, {}, result) == 4 * ours


#: torch 2.11's counter refuses heads that share keys and values.
COUNTS_SHARED_HEADS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)


def sdpa_shapes(seed):
    b, h, sq, sk, d, dv = dims(seed, 6, 2, 24)
    grouped = 2 * h if seed % 2 and COUNTS_SHARED_HEADS else h
    return meta(b, grouped, sq, d), meta(b, h, sk, d), meta(b, h, sk, dv), meta(b, grouped, sq, dv)


FORWARDS = ["efficient", "flash", "cudnn"]


@seeds()
@pytest.mark.parametrize("name", FORWARDS)
def test_attention_agrees_without_causal_mask(seed, name):
    q, k, v, out = sdpa_shapes(seed)
    op = getattr(aten, f"_scaled_dot_product_{name}_attention").default
    middle = {"efficient": (None, False), "flash": (), "cudnn": (None, False)}[name]
    agree(op, (q, k, v, *middle), {}, (out, None))


@seeds()
@pytest.mark.parametrize("name", FORWARDS)
def test_attention_backward_agrees_without_causal_mask(seed, name):
    q, k, v, out = sdpa_shapes(seed)
    op = getattr(aten, f"_scaled_dot_product_{name}_attention_backward").default
    grad, lse = meta(*out.shape), meta(*out.shape[:-1])
    zero = meta(())
    tail = {
        "efficient": (None, out, lse, zero, zero, 0.0, [True, True, True, False]),
        "flash": (out, lse, None, None, 4, 4, 0.0, False, zero, zero),
        "cudnn": (out, lse, zero, zero, None, None, None, 4, 4, 0.0, False),
    }[name]
    agree(op, (grad, q, k, v, *tail), {}, (q, k, v))


@seeds()
def test_low_level_attention_agrees(seed):
    b, h, s, d = dims(seed, 4, 2, 24)
    q, k, v = (meta(b, h, s, d) for _ in range(3))
    # These operators take (B, S, H, d); torch's counter reads (B, H, S, d), which agrees where S equals H.
    square = [meta(b, s, s, d) for _ in range(3)]
    agree(aten._flash_attention_forward.default, (*square, None, None, s, s, 0.0, False, False), {}, (square[0],))
    agree(aten._efficient_attention_forward.default, (*square, None, None, None, s, s, 0.0, 0), {}, (square[0],))
    lse, zero = meta(b, s, s), meta(())
    flash = (meta(b, s, s, d), *square, meta(b, s, s, d), lse, None, None, s, s, 0.0, False, zero, zero)
    agree(aten._flash_attention_backward.default, flash, {}, tuple(square))
    efficient = (meta(b, s, s, d), *square, None, meta(b, s, s, d), None, None, s, s, lse, 0.0, zero, zero, 0, False)
    agree(aten._efficient_attention_backward.default, efficient, {}, tuple(square))
    del q, k, v


@seeds()
def test_packed_sequences_agree(seed):
    count, h, longest, d = dims(seed, 4, 2, 24)
    offsets = meta(count + 1, dtype=torch.int32)
    q, k, v = (meta(count * longest, h, d) for _ in range(3))
    args = (q, k, v, offsets, offsets, longest, longest, 0.0, False, False)
    agree(aten._flash_attention_forward.default, args, {}, (q,))
    grads = (meta(*q.shape), q, k, v, q, meta(h, count * longest), *args[3:9], meta(()), meta(()))
    agree(aten._flash_attention_backward.default, grads, {}, (q, k, v))
    padded = [meta(1, count * longest, h, d) for _ in range(3)]
    packed = (*padded, None, offsets, offsets, longest, longest, 0.0, 0)
    agree(aten._efficient_attention_forward.default, packed, {}, (padded[0],))


@seeds()
def test_flex_attention_agrees(seed):
    from torch._higher_order_ops.flex_attention import flex_attention, flex_attention_backward

    if flex_attention not in flop_registry:
        pytest.skip("this torch doesn't count it")
    q, k, v, out = sdpa_shapes(seed)
    assert flops_of(flex_attention, (q, k, v), {}, (out,)) == flop_registry[flex_attention](q, k, v)
    args = (q, k, v, out, meta(*out.shape[:-1]), meta(*out.shape))
    ours = flops_of(flex_attention_backward, args, {}, (q, k, v))
    assert ours == flop_registry[flex_attention_backward](*args) > 0


@pytest.mark.parametrize("name", ["flash", "cudnn"])
def test_causal_attention_is_half(name):
    """Deliberately unlike torch's counter, which ignores the mask: masked blocks are not computed."""
    q, k, v = (meta(2, 4, 64, 32) for _ in range(3))
    op = getattr(aten, f"_scaled_dot_product_{name}_attention").default
    middle = (None, False) if name == "cudnn" else ()
    full = flops_of(op, (q, k, v, *middle, 0.0, False), {}, (q,))
    causal = flops_of(op, (q, k, v, *middle, 0.0, True), {}, (q,))
    assert full == 2 * causal == 4 * 2 * 4 * 64 * 64 * 32


def test_causal_mask_on_unequal_lengths_is_aligned_top_left():
    op = aten.scaled_dot_product_attention.default
    short, long = meta(1, 1, 16, 8), meta(1, 1, 64, 8)

    def causal(q, kv):
        return flops_of(op, (q, kv, meta(*kv.shape)), {"is_causal": True}, q)

    assert causal(short, long) == 4 * 8 * (16 * 16 // 2)
    assert causal(long, short) == 4 * 8 * (16 * 16 // 2 + 48 * 16)
    assert causal(meta(1, 1, 1, 8), long) == 4 * 8 * 64


def test_every_operator_of_the_flop_counter_has_a_formula():
    for target in flop_registry:
        assert kind_of(target) in ("matmul", "convolution", "attention"), target
