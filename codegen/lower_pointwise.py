"""Pointwise ATen operators as IR operations: one short rule each, on values already cast to the right type."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .builder import NestBuilder as B


@dataclass(frozen=True)
class PointwiseRule:
    """``emit(builder, *operands, **parameters)``.

    ``operands`` is how many leading arguments are tensors or numbers; ``typing`` says how they are cast before:
    "result" (to the result's compute type), "common" (to the promoted type of the operands), "own" (not at all),
    "bool" (to truth values). ``first_bool`` makes a truth value of the first operand (a condition). Other
    arguments reach ``emit`` as they stand in the graph.
    """

    emit: Callable[..., str]
    operands: int
    typing: str = "result"
    first_bool: bool = False


RULES: dict[str, PointwiseRule] = {}


def rule(names: str, operands: int, typing: str = "result", first_bool: bool = False):
    """Register one rule under every operator name in ``names`` (without the namespace and overload)."""

    def register(emit: Callable[..., str]) -> Callable[..., str]:
        for name in names.split():
            if name in RULES:
                raise ValueError(f"aten.{name} already has a pointwise rule")
            RULES[name] = PointwiseRule(emit, operands, typing, first_bool)
        return emit

    return register


for _name in (
    "neg abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh "
    "asinh acosh atanh erf erfc lgamma sigmoid"
).split():
    rule(_name, 1)(lambda b, x, _op=_name: b.compute(_op, x))
for _name in ["floor", "ceil", "trunc"]:
    rule(_name, 1)(lambda b, x, _op=_name: b.compute(_op, x) if b.dtypes[x].is_floating_point else x)
for _name in ["isnan", "isinf", "signbit"]:
    rule(_name, 1, "own")(lambda b, x, _op=_name: _float_test(b, _op, x))
for _name, _op in dict(lt="lt", le="le", gt="gt", ge="ge", eq="eq", ne="ne").items():
    rule(_name, 2, "common")(lambda b, x, y, _op=_op: b.compute(_op, x, y))
for _name, _op in dict(minimum="min", maximum="max", fmod="fmod", remainder="remainder", pow="pow", atan2="atan2",
                       copysign="copysign", bitwise_and="and", bitwise_or="or", bitwise_xor="xor",
                       bitwise_left_shift="shl", bitwise_right_shift="shr", __lshift__="shl",
                       __rshift__="shr").items():
    rule(_name, 2)(lambda b, x, y, _op=_op: _binary(b, _op, x, y))
for _name, _op in dict(logical_and="and", logical_or="or", logical_xor="xor").items():
    rule(_name, 2, "bool")(lambda b, x, y, _op=_op: b.compute(_op, x, y))
rule("logical_not", 1, "bool")(lambda b, x: b.compute("not", x))
rule("bitwise_not", 1)(lambda b, x: b.compute("not" if b.dtypes[x] == torch.bool else "invert", x))
rule("clone alias detach lift_fresh_copy lift_fresh _to_copy copy", 1, "own")(lambda b, x, *a, **k: x)


def _float_test(b: B, op: str, x: str) -> str:
    return b.compute(op, x) if b.dtypes[x].is_floating_point or op == "signbit" else b.const(False, torch.bool)


def _binary(b: B, op: str, x: str, y: str) -> str:
    if op == "pow" and y in b.constants:
        return power(b, x, b.constants[y])
    if op in ("fmod", "remainder") and b.dtypes[x].is_floating_point:
        return b.compute("fmod", x, y) if op == "fmod" else float_remainder(b, x, y)
    return b.compute(op, x, y)


def power(b: B, x: str, exponent: float) -> str:
    """``x ** exponent`` by multiplications and roots where they give what a correctly rounded power would."""
    one = b.const(1, b.dtypes[x])
    if exponent == 0:
        return one
    if exponent == 1:
        return x
    if exponent == 2:
        return b.compute("mul", x, x)
    if exponent == 3:
        return b.compute("mul", b.compute("mul", x, x), x)
    if b.dtypes[x].is_floating_point:
        if exponent == 0.5:
            return b.compute("sqrt", x)
        if exponent == -0.5:
            return b.compute("rsqrt", x)
        if exponent == -1:
            return b.compute("div", one, x)
        if exponent == -2:
            return b.compute("div", one, b.compute("mul", x, x))
    return b.compute("pow", x, b.const(exponent, b.dtypes[x]))


def float_remainder(b: B, x: str, y: str) -> str:
    """Remainder with the divisor's sign, as Python's ``%``."""
    r = b.compute("fmod", x, y)
    zero = b.const(0, b.dtypes[x])
    opposite = b.compute("ne", b.compute("lt", y, zero), b.compute("lt", r, zero))
    wrong = b.compute("and", b.compute("ne", r, zero), opposite)
    return b.where(wrong, b.compute("add", r, y), r)


def float_floordiv(b: B, x: str, y: str) -> str:
    """Floor division that agrees with ``float_remainder``: the quotient is exact before it is floored."""
    zero, one = b.const(0, b.dtypes[x]), b.const(1, b.dtypes[x])
    quotient = b.compute("div", x, y)
    r = b.compute("fmod", x, y)
    opposite = b.compute("ne", b.compute("lt", y, zero), b.compute("lt", r, zero))
    exact = b.compute("div", b.compute("sub", x, r), y)
    exact = b.where(b.compute("and", b.compute("ne", r, zero), opposite), b.compute("sub", exact, one), exact)
    floored = b.compute("floor", exact)
    half = b.compute("gt", b.compute("sub", exact, floored), b.const(0.5, b.dtypes[x]))
    floored = b.where(half, b.compute("add", floored, one), floored)
    floored = b.where(b.compute("eq", exact, zero), b.compute("copysign", zero, quotient), floored)
    return b.where(b.compute("eq", y, zero), quotient, floored)


@rule("add", 2)
def add(b: B, x: str, y: str, alpha: float = 1) -> str:
    if b.dtypes[x] == torch.bool:
        return b.compute("or", x, y) if alpha else x
    return b.compute("add", x, y) if alpha == 1 else _plus_scaled(b, x, y, alpha)


def _plus_scaled(b: B, x: str, y: str, alpha: float) -> str:
    """``x + alpha * y``, rounded once where eager execution rounds once."""
    factor = b.const(alpha, b.dtypes[y])
    if b.dtypes[x].is_floating_point:
        return b.compute("fma", factor, y, x)
    return b.compute("add", x, b.compute("mul", y, factor))


@rule("sub", 2)
def sub(b: B, x: str, y: str, alpha: float = 1) -> str:
    return b.compute("sub", x, y) if alpha == 1 else _plus_scaled(b, x, y, -alpha)


@rule("rsub", 2)
def rsub(b: B, x: str, y: str, alpha: float = 1) -> str:
    return sub(b, y, x, alpha)


@rule("mul", 2)
def mul(b: B, x: str, y: str) -> str:
    return b.compute("and" if b.dtypes[x] == torch.bool else "mul", x, y)


@rule("div", 2)
def div(b: B, x: str, y: str, rounding_mode: str | None = None) -> str:
    floating = b.dtypes[x].is_floating_point
    if rounding_mode == "floor":
        return float_floordiv(b, x, y) if floating else b.compute("floordiv", x, y)
    if rounding_mode == "trunc":
        return b.compute("trunc", b.compute("div", x, y)) if floating else b.compute("truncdiv", x, y)
    return b.compute("div", x, y)


rule("fma", 3)(lambda b, x, y, z: b.compute("fma", x, y, z))
rule("floor_divide", 2)(lambda b, x, y: div(b, x, y, "floor"))
rule("square", 1)(lambda b, x: b.compute("mul", x, x))
rule("reciprocal", 1)(lambda b, x: b.compute("div", b.const(1, b.dtypes[x]), x))


@rule("round", 1)
def round_(b: B, x: str, decimals: int = 0) -> str:
    return b.compute("round", x) if b.dtypes[x].is_floating_point else x


@rule("sign sgn", 1)
def sign(b: B, x: str) -> str:
    if b.dtypes[x] == torch.bool:
        return x
    zero, one = b.const(0, b.dtypes[x]), b.const(1, b.dtypes[x])
    negative = b.where(b.compute("lt", x, zero), b.const(-1, b.dtypes[x]), zero)
    return b.where(b.compute("gt", x, zero), one, negative)


@rule("relu", 1)
def relu(b: B, x: str) -> str:
    return b.compute("max", x, b.const(0, b.dtypes[x]))


@rule("clamp clip", 3)
def clamp(b: B, x: str, low: str | None = None, high: str | None = None) -> str:
    x = x if low is None else b.compute("max", x, low)
    return x if high is None else b.compute("min", x, high)


for _name, _op in dict(fmax="max", fmin="min").items():
    rule(_name, 2)(lambda b, x, y, _op=_op: _of_numbers(b, _op, x, y))


def _of_numbers(b: B, op: str, x: str, y: str) -> str:
    """The larger or smaller of two where a number wins over NaN."""
    found = b.compute(op, x, y)
    if not b.dtypes[x].is_floating_point:
        return found
    return b.where(b.compute("isnan", x), y, b.where(b.compute("isnan", y), x, found))


rule("clamp_min", 2)(lambda b, x, y: b.compute("max", x, y))
rule("clamp_max", 2)(lambda b, x, y: b.compute("min", x, y))


@rule("hardtanh", 3)
def hardtanh(b: B, x: str, low: str | None = None, high: str | None = None) -> str:
    low = b.const(-1, b.dtypes[x]) if low is None else low
    return clamp(b, x, low, b.const(1, b.dtypes[x]) if high is None else high)


@rule("where", 3, first_bool=True)
def where(b: B, condition: str, x: str, y: str) -> str:
    return b.where(condition, x, y)


@rule("masked_fill", 3)
def masked_fill(b: B, x: str, mask: str, value: str) -> str:
    return b.where(b.cast(mask, torch.bool), value, x)


@rule("silu", 1)
def silu(b: B, x: str) -> str:
    return b.compute("mul", x, b.compute("sigmoid", x))


@rule("gelu", 1)
def gelu(b: B, x: str, approximate: str = "none") -> str:
    d = b.dtypes[x]
    if approximate == "tanh":
        cube = b.compute("mul", b.compute("mul", x, x), x)
        inner = b.compute("mul", b.const(math.sqrt(2 / math.pi), d),
                          b.compute("fma", b.const(0.044715, d), cube, x))
        bell = b.compute("tanh", inner)
    else:
        bell = b.compute("erf", b.compute("mul", x, b.const(math.sqrt(0.5), d)))
    half = b.compute("mul", b.const(0.5, d), x)
    return b.compute("fma", half, bell, half)


@rule("leaky_relu", 2)
def leaky_relu(b: B, x: str, slope: str | None = None) -> str:
    slope = b.const(0.01, b.dtypes[x]) if slope is None else slope
    return b.where(b.compute("gt", x, b.const(0, b.dtypes[x])), x, b.compute("mul", x, slope))


@rule("elu", 1)
def elu(b: B, x: str, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> str:
    d = b.dtypes[x]
    negative = b.compute("mul", b.const(alpha * scale, d),
                         b.compute("expm1", b.compute("mul", x, b.const(input_scale, d))))
    return b.where(b.compute("gt", x, b.const(0, d)), b.compute("mul", x, b.const(scale, d)), negative)


@rule("softplus", 1)
def softplus(b: B, x: str, beta: float = 1, threshold: float = 20) -> str:
    d = b.dtypes[x]
    scaled = b.compute("mul", x, b.const(beta, d))
    soft = b.compute("div", b.compute("log1p", b.compute("exp", scaled)), b.const(beta, d))
    return b.where(b.compute("gt", scaled, b.const(threshold, d)), x, soft)


def _relu6(b: B, x: str) -> str:
    shifted = b.compute("add", x, b.const(3, b.dtypes[x]))
    return clamp(b, shifted, b.const(0, b.dtypes[x]), b.const(6, b.dtypes[x]))


rule("hardswish", 1)(lambda b, x: b.compute("div", b.compute("mul", x, _relu6(b, x)), b.const(6, b.dtypes[x])))
rule("hardsigmoid", 1)(lambda b, x: b.compute("div", _relu6(b, x), b.const(6, b.dtypes[x])))


@rule("mish", 1)
def mish(b: B, x: str) -> str:
    return b.compute("mul", x, b.compute("tanh", softplus(b, x)))
