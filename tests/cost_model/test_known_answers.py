"""Figures that the literature quotes, from the formulas."""

import math

import pytest
import torch
from rooffuse.cost_model import Cost, TensorSpec, estimate, get_device, price

aten = torch.ops.aten
HALF = torch.float16


def spec(*shape, dtype=HALF):
    return TensorSpec(shape, dtype)


def test_square_gemm():
    cost = price(aten.mm.default, (spec(4096, 4096), spec(4096, 4096)), {}, spec(4096, 4096)).cost
    assert cost.flops == 137_438_953_472
    assert cost.bytes == 100_663_296
    assert round(cost.intensity) == 1365


def test_gelu_intensity():
    """Exact GELU is five operations on two bytes in and two bytes out."""
    cost = price(aten.gelu.default, (spec(4096, 4096),), {}, spec(4096, 4096)).cost
    assert cost.intensity == 1.25


def test_linear_at_batch_one_is_one_flop_a_byte():
    x, w, y = (TensorSpec(shape, torch.bfloat16) for shape in ((1, 4096), (4096, 4096), (1, 4096)))
    assert price(aten.linear.default, (x, w), {}, y).cost.intensity == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "name, dtype, flop_per_byte",
    [
        ("V100", torch.float16, 139),
        ("A100-80", torch.bfloat16, 153),
        ("H100", torch.bfloat16, 295),
        ("H200", torch.bfloat16, 206),
        ("B200", torch.bfloat16, 281),
        ("H100", torch.float8_e4m3fn, 591),
    ],
)
def test_ridge_points(name, dtype, flop_per_byte):
    assert round(get_device(name).ridge_point(dtype)) == flop_per_byte


def linear_cost(rows):
    args = (spec(rows, 4096), spec(4096, 4096))
    return price(aten.linear.default, args, {}, spec(rows, 4096)).cost


@pytest.mark.parametrize("name, rows", [("A100", 166), ("H100", 346)])
def test_batch_at_which_a_linear_turns_compute_bound(name, rows):
    """B·4096 / (2·B + 4096) ≥ r gives B ≥ 4096·r / (4096 - 2·r): more than the ridge r, as activations move too."""
    device = get_device(name)
    ridge = device.ridge_point(HALF)
    assert math.ceil(4096 * ridge / (4096 - 2 * ridge)) == rows
    assert estimate(linear_cost(rows), device, HALF, "tensor").bound == "compute"
    assert estimate(linear_cost(rows - 1), device, HALF, "tensor").bound == "memory"


@pytest.mark.parametrize("name", ["V100", "A100", "H100", "H200", "B200", "MI300X", "L4"])
def test_prefill_is_compute_bound_everywhere(name):
    assert estimate(linear_cost(2048), get_device(name), HALF, "tensor").bound == "compute"


def test_fusing_gemm_gelu_layer_norm_saves_two_intermediates():
    """Each intermediate of 2048 rows is 16.8 MB; two of them are written once and read once."""
    x, w, b = spec(2048, 4096), spec(4096, 4096), spec(4096)
    h, g, y = spec(2048, 4096), spec(2048, 4096), spec(2048, 4096)
    statistics = spec(2048, 1), spec(2048, 1)
    costs = [
        price(aten.mm.default, (x, w), {}, h).cost,
        price(aten.gelu.default, (h,), {}, g).cost,
        price(aten.native_layer_norm.default, (g, [4096], b, spec(4096), 1e-5), {}, (y, *statistics)).cost,
    ]
    assert round(h.nbytes / 1e6, 1) == 16.8
    apart = sum(costs, Cost.zero()).bytes
    outside = [x, w, b, b, y, *statistics]
    assert apart - sum(t.nbytes for t in outside) == 4 * h.nbytes
    assert round((apart - sum(t.nbytes for t in outside)) / 1e6, 1) == 67.1


def test_fusing_bias_gelu_dropout_saves_two_intermediates():
    x, bias, h, g, y = spec(2048, 4096), spec(4096), spec(2048, 4096), spec(2048, 4096), spec(2048, 4096)
    mask = TensorSpec((2048, 4096), torch.bool)
    costs = [
        price(aten.add.Tensor, (x, bias), {}, h).cost,
        price(aten.gelu.default, (h,), {}, g).cost,
        price(aten.native_dropout.default, (g, 0.1, True), {}, (y, mask)).cost,
    ]
    saved = sum(costs, Cost.zero()).bytes - sum(t.nbytes for t in (x, bias, y, mask))
    assert round(saved / 1e6, 1) == 67.1


def test_attention_materialised_against_fused():
    """64 heads, 8192 tokens, d = 128: four passes over the scores against query, key, value and output alone."""
    q, k, v, out = (spec(1, 64, 8192, 128) for _ in range(4))
    fused = price(aten.scaled_dot_product_attention.default, (q, k, v), {}, out).cost
    scores = spec(1, 64, 8192, 8192)
    plain = price(aten._scaled_dot_product_attention_math.default, (q, k, v), {}, (out, scores)).cost
    assert round(fused.bytes / 1e6, 1) == 536.9
    assert round(plain.bytes / 1e9, 1) == 34.9
    assert round(plain.bytes / fused.bytes) == 65
    assert plain.flops == fused.flops


def test_key_value_cache():
    def cache(layers, heads, tokens):
        return TensorSpec((2, layers, heads, tokens, 128), torch.bfloat16).nbytes

    assert round(cache(80, 64, 4096) / 1e9, 1) == 10.7
    assert round(cache(80, 8, 4096) / 1e9, 2) == 1.34
    assert cache(32, 32, 1) == 512 * 1024  # Llama-2-7B, 0.5 MiB a token


def test_decode_floor():
    """7 billion bf16 weights read once a token at 3.35 TB/s: 4.18 ms.

    Rounded to 4.2 ms that is often quoted as 238 tokens a second; unrounded it is 239.
    """
    weights = TensorSpec((7_000_000_000,), torch.bfloat16)
    floor = estimate(Cost(2 * 7_000_000_000, weights.nbytes, 0), get_device("h100"), torch.bfloat16, "tensor")
    assert floor.bound == "memory"
    assert round(floor.memory_s * 1e3, 1) == 4.2
    assert round(1 / floor.memory_s) == 239
    assert round(1 / round(floor.memory_s, 4)) == 238


def test_int4_weights_with_group_scales():
    """One fp16 scale for 64 weights adds a quarter of a bit."""
    rows, columns = 4096, 4096
    packed = TensorSpec((rows, columns // 2), torch.uint8)
    scales = TensorSpec((rows, columns // 64), torch.float16)
    assert 8 * (packed.nbytes + scales.nbytes) / (rows * columns) == 4.25


def test_no_sparse_rates():
    h100 = get_device("h100")
    assert h100.peaks["bf16"] == 989.4e12
    assert h100.peaks["fp8"] == 1978.9e12
    assert get_device("l4").peaks["fp8"] == 242e12
    assert get_device("b200").peaks["bf16"] == 2250e12
