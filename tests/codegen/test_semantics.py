"""What operators mean at their edges: NaN, infinities, zeros with a sign, integer overflow, casts, promotion.

Each test compiles many calls as one function, so that one C++ build serves them, and names those that differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

INF, NAN = math.inf, math.nan
SPECIAL = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, NAN, INF, -INF, 0.5, -0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 1e10, -1e10, 2.0, 3.0, 127.5, -128.7]
)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}
Call = tuple[str, Callable[..., Any], Sequence[Any]]


def whole_numbers(dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    small = [0, 1, 2, 3, 5, 7, 100, limits.max, limits.min]
    return torch.tensor(small + ([200] if dtype == torch.uint8 else [-1, -2, -3, -7, -100]), dtype=dtype)


def differences(ours: Any, eager: Any) -> str | None:
    """Why a result isn't eager's, or None. The sign of a zero counts where eager's own kernels agree on it."""
    if not isinstance(eager, Tensor):
        return next((d for a, b in zip(ours, eager) if (d := differences(a, b))), None)
    tolerance = TOLERANCE.get(eager.dtype, 0)
    try:
        torch.testing.assert_close(ours, eager, rtol=tolerance, atol=tolerance / 5, equal_nan=True)
    except AssertionError as error:
        return f"{str(error).splitlines()[0]} {ours.tolist()} instead of {eager.tolist()}"
    return None


def check(calls: Sequence[Call], **options: Any) -> None:
    def function(arguments: list[Sequence[Any]]) -> list[Any]:
        return [f(*a) for (_, f, _), a in zip(calls, arguments)]

    torch._dynamo.reset()
    arguments = [a for _, _, a in calls]
    compiled = torch.compile(
        function, backend="rooffuse", fullgraph=True, options={"strict": True, "verify": True, **options}
    )
    wrong = [
        f"{name}: {d}"
        for (name, _, _), ours, eager in zip(calls, compiled(arguments), function(arguments))
        if (d := differences(ours, eager))
    ]
    assert not wrong, "\n".join(wrong)


UNARY = """neg abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt tan asin acos atan sinh cosh tanh asinh acosh atanh
erf erfc floor ceil round trunc isnan isinf signbit sigmoid relu sign reciprocal square isfinite frac sgn isposinf
isneginf nan_to_num logical_not""".split()
BINARY = """add sub mul div atan2 copysign minimum maximum fmin fmax lt le gt ge eq ne logical_and logical_or
logical_xor""".split()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_special_values_of_unary_functions(dtype: torch.dtype) -> None:
    check([(name, getattr(torch, name), [SPECIAL.to(dtype)]) for name in UNARY])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_special_values_of_binary_functions(dtype: torch.dtype) -> None:
    x, y = SPECIAL.to(dtype)[:, None], SPECIAL.to(dtype)[None]
    check([(name, getattr(torch, name), [x, y]) for name in BINARY])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_division_with_remainder_of_floats(dtype: torch.dtype) -> None:
    some = SPECIAL[SPECIAL.abs().nan_to_num(0) < 1e9].to(dtype)
    x, y = some[:, None], some[None]
    check(
        [(name, getattr(torch, name), [x, y]) for name in ("fmod", "remainder", "floor_divide")]
        + [
            (f"div {mode}", lambda a, b, m=mode: torch.div(a, b, rounding_mode=m), [x, y])
            for mode in ("floor", "trunc")
        ]
        + [(f"by {s}", lambda a, s=s: (a // s, a % s, torch.fmod(a, s)), [some]) for s in (2, -0.3, 0.7)]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_powers(dtype: torch.dtype) -> None:
    x = SPECIAL.to(dtype)
    check(
        [(f"x ** {s}", lambda a, s=s: a**s, [x]) for s in (0, 1, 2, 3, 0.5, -0.5, -1, -2, 4, 2.5, -3)]
        + [(f"{s} ** x", lambda a, s=s: s**a, [x]) for s in (0, 1, 2, 0.5, -1)]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_and_limits(dtype: torch.dtype) -> None:
    x = SPECIAL.to(dtype)
    names = """relu6 hardtanh hardswish hardsigmoid softplus elu silu mish leaky_relu logsigmoid celu selu softsign
    tanhshrink softshrink hardshrink""".split()
    check(
        [(n, getattr(F, n), [x]) for n in names]
        + [
            ("gelu", F.gelu, [x[x != INF]]),
            ("gelu tanh", lambda a: F.gelu(a, approximate="tanh"), [x]),
            ("threshold", lambda a: F.threshold(a, 0.1, 3.0), [x]),
            ("clamp", lambda a: a.clamp(-1, 1), [x]),
            # torch 2.11 keeps the numbers here, and has NaN where there is an upper limit, too.
            ("clamp nan", lambda a: a.clamp(min=NAN, max=INF), [x]),
            ("clamp tensors", lambda a: a.clamp(a.flip(0), a), [x]),
            ("round decimals", lambda a: torch.round(a, decimals=1), [x[7:14]]),
        ]
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_zero_keeps_its_sign(dtype: torch.dtype) -> None:
    zeros = torch.tensor([0.0, -0.0] * 20, dtype=dtype)
    functions = [
        torch.neg,
        torch.relu,
        torch.abs,
        torch.floor,
        torch.sqrt,
        lambda a: a * -1,
        lambda a: a.to(torch.float64),
    ]
    torch._dynamo.reset()
    compiled = torch.compile(lambda a: [f(a) for f in functions], backend="rooffuse")
    for k, (ours, function) in enumerate(zip(compiled(zeros), functions)):
        assert torch.equal(torch.signbit(ours), torch.signbit(function(zeros))), k


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_reductions_with_nan_and_infinity(dtype: torch.dtype) -> None:
    x = SPECIAL.to(dtype)
    rows = [
        x[:4],
        x[:4].flip(0),
        x[5:7],
        x[[2, 3, 7]],
        x[[5, 2]],
        x[[6, 3]],
        x[[0]],
        x[[4]],
        x[[5, 5]],
        x[[6, 6]],
        x[[2, 4, 5]],
    ]
    names = "sum prod amax amin argmax argmin any all max min mean var".split()
    calls = [(f"{n} {r.tolist()}", getattr(torch, n), [r]) for n in names for r in rows if n != "var" or len(r) > 1]
    calls += [(f"logsumexp {r.tolist()}", lambda a: torch.logsumexp(a, 0), [r]) for r in rows]
    calls += [(f"softmax {r.tolist()}", lambda a: F.softmax(a, 0), [r]) for r in rows]
    check(calls)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integer_arithmetic(dtype: torch.dtype) -> None:
    x = whole_numbers(dtype)
    column, row = x[:, None], x[None]
    divisor = torch.where(row == 0, torch.ones_like(row), row)
    # C++ leaves the smallest number divided by -1 undefined, so that eager's own answer is chance.
    dividend = column if dtype == torch.uint8 else torch.where(column == torch.iinfo(dtype).min, 5, column)
    names = """add sub mul minimum maximum lt le gt ge eq ne bitwise_and bitwise_or bitwise_xor logical_and logical_or
    logical_xor""".split()
    calls: list[Call] = [(n, getattr(torch, n), [column, row]) for n in names]
    calls += [(n, getattr(torch, n), [dividend, divisor]) for n in ("fmod", "remainder", "floor_divide", "div")]
    calls += [
        (f"div {m}", lambda a, b, m=m: torch.div(a, b, rounding_mode=m), [dividend, divisor])
        for m in ("floor", "trunc")
    ]
    exponents = torch.tensor([0, 1, 2, 3, 7, 31], dtype=dtype)[None]
    calls += [
        ("pow", torch.pow, [column, exponents]),
        ("not", torch.bitwise_not, [x]),
        ("abs", torch.abs, [x]),
        ("sign", torch.sign, [x]),
        ("square", torch.square, [x]),
        ("x * x * x + x", lambda a: a * a * a + a, [x]),
    ]
    calls += [(f"x {s}", lambda a, s=s: (a + s, a * s, a < s, a == s, a - s), [x]) for s in (2, 3, 2.5, -1)]
    calls += [(f"{s} ** x", lambda a, s=s: torch.pow(s, a), [exponents[0]]) for s in (-2, -1, 0, 1, 2, 3)]
    check(calls)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integer_shifts(dtype: torch.dtype) -> None:
    x = whole_numbers(dtype)
    bits = 8 * dtype.itemsize
    amounts = torch.tensor([0, 1, 2, 3, bits - 2, bits - 1], dtype=dtype)[None]
    check(
        [
            ("left", torch.bitwise_left_shift, [x[:, None], amounts]),
            ("right", torch.bitwise_right_shift, [x[:, None], amounts]),
        ]
    )


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
def test_integer_reductions_and_selection(dtype: torch.dtype) -> None:
    x = whole_numbers(dtype) if dtype != torch.bool else torch.tensor([True, False, True, True, False])
    names = "sum prod argmax argmin any all max min amax amin" if dtype != torch.bool else "sum prod any all amax amin"
    calls: list[Call] = [(n, getattr(torch, n), [x]) for n in names.split()]
    calls += [
        ("where", lambda a: torch.where(a > 0, a, 1), [x]),
        ("where float", lambda a: torch.where(a > 0, a, 2.5), [x]),
        ("masked_fill", lambda a: a.masked_fill(a > 0, 1), [x]),
        ("float mean", lambda a: a.float().mean(), [x[:6]]),
        ("divided", lambda a: a / 3, [x]),
        ("with 0-dim", lambda a: a + torch.tensor(1.5), [x]),
        ("with 0-dim integer", lambda a: a + torch.tensor(3), [x]),
        ("to bool", lambda a: a.bool(), [x]),
        ("sum of type", lambda a: a.sum(dtype=torch.int32), [x]),
    ]
    if dtype != torch.bool:
        calls += [
            ("clamp", lambda a: a.clamp(2, 90), [x]),
            ("clamp by float", lambda a: a.clamp(1.5), [x]),
            ("clamp tensors", lambda a: a.clamp(min=a.flip(0), max=a), [x]),
            ("as float", lambda a: a.float().to(a.dtype), [x[:6]]),
        ]
    check(calls)


def test_truth_values() -> None:
    x, y = torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])
    check(
        [
            ("add", torch.add, [x, y]),
            ("mul", torch.mul, [x, y]),
            ("or", torch.bitwise_or, [x, y]),
            ("xor", torch.logical_xor, [x, y]),
            ("not", torch.logical_not, [x]),
            ("bitwise not", torch.bitwise_not, [x]),
            ("max", torch.maximum, [x, y]),
            ("lt", torch.lt, [x, y]),
            ("times 3", lambda a: a * 3, [x]),
            ("plus 1.5", lambda a: a + 1.5, [x]),
            ("sign", torch.sign, [x]),
            ("div", torch.div, [x, y]),
            ("add alpha", lambda a, b: torch.add(a, b, alpha=False), [x, y]),
            ("abs of float", lambda a: (a.float() * -1).bool(), [x]),
        ]
    )


@pytest.mark.parametrize("source", FLOATS, ids=str)
def test_casts(source: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, 0.9, 1.5, 2.5, 100.7, 3.99], dtype=source)
    wide = torch.cat([x, -x])
    targets: list[torch.dtype] = [*INTEGERS, torch.bool, *FLOATS]
    check(
        [(str(t), lambda a, t=t: a.to(t), [x if t == torch.uint8 else wide]) for t in targets]
        + [("nan is true", lambda a: a.bool(), [torch.tensor([NAN, INF, 1e-30], dtype=source)])]
    )


def test_type_promotion() -> None:
    half, single, double = (torch.randn(4).to(d) for d in (torch.bfloat16, torch.float32, torch.float64))
    integer, byte, truth = torch.arange(4), torch.arange(4, dtype=torch.uint8), torch.tensor([True, False, True, True])
    operands = [
        half,
        single,
        double,
        integer,
        byte,
        truth,
        torch.tensor(1.5),
        torch.tensor(2),
        torch.tensor(1.5, dtype=torch.float64),
    ]
    check([(f"{x.dtype} {y.dtype}", lambda a, b: (a + b, a * b, a > b), [x, y]) for x in operands for y in operands])


def test_erf_is_exact_to_some_units_in_the_last_place() -> None:
    """Our own spelling of it: on a dense grid against float64, odd, at most one, and one for all that rounds to it."""
    x = torch.cat([torch.linspace(0, 4.5, 100_001), torch.logspace(-38, 38, 2000)])
    ours = torch.compile(torch.erf, backend="rooffuse", fullgraph=True)(torch.cat([x, -x]))
    assert torch.equal(ours[: len(x)], -ours[len(x) :])
    exact = torch.erf(x.double())
    assert ((ours[: len(x)] - exact).abs() <= 6 * torch.finfo(torch.float32).eps * exact / 2).all()
    assert ours.max() == 1 and (ours[: len(x)][x > 3.92] == 1).all()
