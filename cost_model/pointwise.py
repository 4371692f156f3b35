"""Element-wise operators: FLOPs per output element.

Counting convention: an addition, multiplication, comparison, selection, bit operation, division, square root or
transcendental function counts one; a fused multiply-add counts two. Composed activations count their arithmetic, so
exact GELU, ``0.5·x·(1 + erf(x/√2))``, is five: scale, erf, add, two products.
"""

from __future__ import annotations

from .cost import Cost, Size
from .registry import Call, register


def _each(flops: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), flops)


FLOPS_PER_ELEMENT: dict[str, int] = {
    # one operation
    **_each(
        1,
        """abs absolute acos acosh add angle asin asinh atan atan2 atanh arccos arccosh arcsin arcsinh arctan arctan2
        arctanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil
        clamp_max clamp_min conj_physical _conj_physical copysign cos cosh deg2rad digamma div divide eq erf erfc
        erfinv exp exp2 expm1 fix floor fmax fmin ge greater greater_equal gt heaviside isfinite isinf isnan isneginf
        isposinf le leaky_relu less less_equal lgamma log log10 log1p log2 logical_and logical_not logical_or
        logical_xor lt masked_fill maximum minimum mul multiply ne neg negative not_equal pow rad2deg
        reciprocal relu round rsqrt rsub sgn sign signbit sin sinh special_airy_ai sqrt square sub subtract tan tanh
        threshold threshold_backward trunc true_divide where __and__ __or__ __xor__ __lshift__ __rshift__
        __iand__ __ior__ __ixor__ complex isreal nextafter equal float_power _masked_scale
        masked_scatter_backward _add_relu""",
    ),
    # two: a pair of comparisons, a product and a sum, a division and its rounding
    **_each(
        2,
        """clamp clip hardtanh relu6 floor_divide fmod frac frexp ldexp remainder nan_to_num hypot addcdiv addcmul
        lerp native_dropout_backward prelu _prelu_kernel leaky_relu_backward hardtanh_backward xlogy special_xlog1py
        sinc tanh_backward hardshrink softshrink hardshrink_backward softshrink_backward polar rrelu isclose
        elu_backward rrelu_with_noise_backward""",
    ),
    **_each(4, "logaddexp logaddexp2 logit elu celu selu softplus sigmoid_backward gcd lcm"),
    **_each(3, "_prelu_kernel_backward logit_backward softplus_backward"),
    # exp, add, divide and the products around them
    "sigmoid": 3,
    "log_sigmoid": 4,
    "log_sigmoid_forward": 4,
    "log_sigmoid_backward": 5,
    "silu": 4,
    "silu_backward": 7,
    "hardsigmoid": 4,
    "hardsigmoid_backward": 3,
    "hardswish": 5,
    "hardswish_backward": 5,
    "mish": 5,
    "mish_backward": 10,
    "glu": 4,
    "glu_backward": 8,
    "gelu": 5,
    # cdf as in the forward pass (4), density: two products and an exp, then combine
    "gelu_backward": 11,
    # polynomial or rational approximations of special functions, by the order of their length
    **_each(
        30,
        """i0 special_i0e special_i1 special_i1e special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
        special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1
        special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 special_spherical_bessel_j0 special_erfcx
        special_ndtri special_log_ndtr special_entr special_zeta igamma igammac polygamma mvlgamma
        special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
        special_chebyshev_polynomial_w special_hermite_polynomial_h special_hermite_polynomial_he
        special_laguerre_polynomial_l special_legendre_polynomial_p special_shifted_chebyshev_polynomial_t
        special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
        special_shifted_chebyshev_polynomial_w _standard_gamma_grad""",
    ),
    # quantise, clamp, dequantise
    **_each(
        7,
        """fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
        fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
        _fake_quantize_per_tensor_affine_cachemask_tensor_qparams""",
    ),
    "fake_quantize_per_tensor_affine_cachemask_backward": 1,
    "fake_quantize_per_channel_affine_cachemask_backward": 1,
    "quantize_per_tensor": 5,
    "quantize_per_channel": 5,
    "dequantize": 2,
}

# Tanh form, 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), counted in the same way as the exact one.
GELU_TANH_FLOPS = 9
GELU_TANH_BACKWARD_FLOPS = 17

_QUANTISED_DECOMPOSED = {"quantize_per_tensor": 5, "quantize_per_channel": 5, "quantize_per_token": 5} | {
    "dequantize_per_tensor": 2,
    "dequantize_per_channel": 2,
    "dequantize_per_token": 2,
}


# Primitives that are called as their ATen operators are.
_PRIMS = """abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil
    conj_physical cos cosh digamma div eq erf erfc exp exp2 expm1 floor fmax fmin fmod ge gt hypot igamma igammac
    isfinite le lgamma log log10 log1p log2 lt maximum minimum ne neg nextafter pow reciprocal remainder round rsqrt
    sign signbit sin sinh sqrt sub tan tanh trunc where"""


def _elements(call: Call) -> Size:
    """Output elements; backward operators that write several gradients are counted on the largest."""
    return call.output_numel()


def _register_table() -> None:
    table = {f"aten::{name}": flops for name, flops in FLOPS_PER_ELEMENT.items() if not name.startswith("gelu")}
    table |= {f"quantized_decomposed::{name}": flops for name, flops in _QUANTISED_DECOMPOSED.items()}
    table |= {f"prims::{name}": FLOPS_PER_ELEMENT[name] for name in _PRIMS.split()}
    table |= {
        "prims::convert_element_type": 0,
        "prims::mul": 1,
        "prims::fma": 2,
        "prims::device_put": 0,
    }
    for name, flops in table.items():

        def formula(call: Call, flops: int = flops) -> Cost:
            return call.moves(flops * _elements(call))

        register(name, kind="pointwise")(formula)


_register_table()


@register("aten::gelu", kind="pointwise")
def gelu(call: Call) -> Cost:
    """Five FLOPs an element in the exact form, nine with ``approximate="tanh"``."""
    flops = GELU_TANH_FLOPS if call["approximate"] == "tanh" else FLOPS_PER_ELEMENT["gelu"]
    return call.moves(flops * _elements(call))


@register("aten::gelu_backward", kind="pointwise")
def gelu_backward(call: Call) -> Cost:
    """As for `gelu`, derivative included."""
    flops = GELU_TANH_BACKWARD_FLOPS if call["approximate"] == "tanh" else FLOPS_PER_ELEMENT["gelu_backward"]
    return call.moves(flops * _elements(call))


@register("aten::dropout", kind="random")
def dropout(call: Call) -> Cost:
    """Outside training the identity. In training a random number, a comparison, a selection and a scale."""
    return call.moves(RANDOM_FLOPS * _elements(call)) if call["train"] else Cost.zero()


# Philox-4x32-10 draws four numbers in ten rounds of about six integer operations: 15 each, and a scale.
RANDOM_FLOPS = 16
