"""Eight-bit floats: every code and every rounding is eager execution's, on each back end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.float8 import FLOAT8
from rooffuse.codegen.triton_kernel import print_kernel
from torch import Tensor

from .kernels import CppUnit, assert_same, lower, run_interpreter, run_triton

# Triton's interpreter warns of what devices do silently.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
TYPES = list(FLOAT8)
BACK_ENDS = ("cpp", "interpreter", "triton")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> DiskCache:
    return DiskCache(tmp_path_factory.mktemp("float8"))


def run(back_end: str, fn, inputs: list[Tensor], cache: DiskCache) -> Tensor:
    kernel = lower(fn, *inputs)
    if back_end == "cpp":
        return CppUnit({"fn": kernel}, cache).run("fn", kernel, inputs)[0]
    return run_interpreter(kernel, inputs)[0] if back_end == "interpreter" else run_triton(kernel, inputs, cache)[0]


def codes(dtype: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype)


def assert_same_codes(ours: Tensor, eager: Tensor) -> None:
    """Equal bits, where both are numbers: a NaN has no sign worth keeping."""
    number = ~eager.float().isnan()
    assert torch.equal(ours.float().isnan(), ~number)
    assert torch.equal(ours.view(torch.uint8)[number], eager.view(torch.uint8)[number])


def near_ties(dtype: torch.dtype) -> Tensor:
    """Float32 values at, just below and just above every number of the type and the middle between neighbours, and
    beyond the largest, of both signs; smallest float32 numbers, zeros, infinities, NaN."""
    numbers = codes(dtype).float()
    numbers = numbers[numbers.isfinite()].abs().unique()
    beyond = numbers[-1] * torch.tensor([1 + 2 ** -k for k in range(1, 8)] + [2, 1e3, 1e30])
    points = torch.cat([numbers, (numbers[1:] + numbers[:-1]) / 2, beyond])
    infinity = torch.tensor(float("inf"))
    around = torch.cat([points, points.nextafter(infinity), points.nextafter(-infinity)])
    odd = torch.tensor([float("inf"), float("nan"), 0.0, 1e-45, 1e-38])
    return torch.cat([around, -around, odd, -odd])


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_code_widens(dtype: torch.dtype, back_end: str, cache: DiskCache) -> None:
    found = run(back_end, lambda x: x.to(torch.float32), [codes(dtype)], cache)
    expected = codes(dtype).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    number = ~expected.isnan()
    assert torch.equal(found.signbit()[number], expected.signbit()[number])


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_ties_round_to_even(dtype: torch.dtype, back_end: str, cache: DiskCache) -> None:
    x = near_ties(dtype)
    assert_same_codes(run(back_end, lambda x: x.to(dtype), [x], cache), x.to(dtype))


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_half_rounds(dtype: torch.dtype, back_end: str, cache: DiskCache) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    assert_same_codes(run(back_end, lambda x: x.to(dtype), [x], cache), x.to(dtype))


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_rounding_in_between_is_kept(dtype: torch.dtype, back_end: str, cache: DiskCache) -> None:
    """Numbers that pass through the type and go on being computed with; whole numbers aren't exact in it, either."""
    x, n = near_ties(dtype), torch.arange(-128, 128).to(torch.int8)
    for value in (x[x.abs() < 200], n, torch.tensor([False, True])):
        found = run(back_end, lambda v: v.to(dtype).to(torch.float32) * 2, [value], cache)
        assert torch.equal(found, value.to(dtype).float() * 2)


PAIRS = [(torch.float32, torch.int32), (torch.float64, torch.int64), (torch.bfloat16, torch.int16),
         (torch.float16, torch.bfloat16), (torch.float8_e4m3fn, torch.int8), (torch.float8_e5m2, torch.uint8),
         (torch.int8, torch.uint8)]


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("one, other", PAIRS + [p[::-1] for p in PAIRS], ids=str)
def test_memory_is_seen_as_another_type(one: torch.dtype, other: torch.dtype, back_end: str, cache: DiskCache) -> None:
    x = (torch.arange(66).reshape(2, 33) - (0 if one == torch.uint8 else 30)).to(one)
    if other.is_floating_point and not one.is_floating_point:
        x = (x.float() / 7).to(other).view(one)  # bits of ordinary numbers

    def fn(x: Tensor) -> Tensor:
        return x.t().view(other).to(torch.float32) * 2

    assert torch.equal(run(back_end, fn, [x], cache), fn(x))


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_bits_of_what_was_computed_are_those_of_its_type(back_end: str, cache: DiskCache) -> None:
    x = torch.randn(65).half()

    def exponent(x: Tensor) -> Tensor:
        return ((x * x).view(torch.int16) >> 10) + 1

    assert torch.equal(run(back_end, exponent, [x], cache), exponent(x))


def quantised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = 448.0 / x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12)
    return (x.float() * scale).clamp(-448, 448).to(torch.float8_e4m3fn), 1 / scale


def scaled_product(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    return (x @ weight.to(x.dtype).t()) * scales


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_rows_are_quantised_in_one_kernel(back_end: str, cache: DiskCache) -> None:
    x = torch.randn(5, 65).bfloat16()
    kernel = lower(quantised_rows, x)
    results = CppUnit({"rows": kernel}, cache).run("rows", kernel, [x]) if back_end == "cpp" else (
        run_interpreter(kernel, [x]) if back_end == "interpreter" else run_triton(kernel, [x], cache))
    codes, scales = quantised_rows(x)
    assert_same_codes(results[0], codes)
    assert_same(results[1], scales)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_product_with_quantised_weights_is_one_kernel(dtype: torch.dtype, back_end: str, cache: DiskCache) -> None:
    inputs = [torch.randn(1, 200), torch.randn(33, 200).to(dtype), torch.rand(33)]
    assert_same(run(back_end, scaled_product, inputs, cache), scaled_product(*inputs))


@pytest.mark.parametrize("target", [80, 90, 100, "gfx942"], ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_conversions_compile(dtype: torch.dtype, target: int | str, tmp_path: Path) -> None:
    """By the hardware's instruction where there is one, by arithmetic elsewhere."""
    amd = isinstance(target, str)
    for fn, x in ((lambda x: x.to(dtype), torch.randn(1000)), (lambda x: x.to(torch.bfloat16), codes(dtype))):
        built = compile_for(print_kernel(lower(fn, x).group.kernel), DiskCache(tmp_path), target, 64 if amd else 32,
                            "hip" if amd else "cuda")
        if not amd:
            native = FLOAT8[dtype].native is not None and target >= 89
            assert native == (f"{FLOAT8[dtype].name[:4]}x2" in built.asm["ptx"])
