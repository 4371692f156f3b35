"""Products are rounded before anything is added to them, as in eager execution, unless all that is done is a sum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_unit import print_unit
from rooffuse.codegen.ir import Compute
from rooffuse.codegen.summed_products import summed_products
from rooffuse.codegen.triton_kernel import print_kernel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from .kernels import CppUnit, assert_same, lower

FORMS: dict[str, Callable[..., Tensor]] = {
    "a product and an addition": lambda a, b, c: a * b + c,
    "two products": lambda a, b, c: a * b - c * a,
    "a scaled operand": lambda a, b, c: torch.sub(a, b, alpha=0.3) + c * 0.1,
    "a polynomial": lambda a, b, c: ((0.3 * a + 0.7) * a - b) * a + c,
    "a product that is also summed": lambda a, b, c: a * b - (a * b).amax(-1, keepdim=True),
}


def numbers(dtype: torch.dtype, *shape: int) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_those_of_eager_execution_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    inputs = numbers(dtype, 37, 259)
    kernels = {name: lower(form, *inputs) for name, form in FORMS.items()}
    unit = CppUnit(kernels, DiskCache(tmp_path))
    for name, form in FORMS.items():
        found, = unit.run(name, kernels[name], inputs)
        assert torch.equal(found, form(*inputs)), name


def test_nothing_is_above_its_own_maximum(tmp_path: Path) -> None:
    def distance(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        scaled = a * b
        return (scaled.amax(-1, keepdim=True) - scaled).sqrt() * c

    inputs = {str(width): numbers(torch.float32, 33, width) for width in (5, 64, 1000, 5000)}
    kernels = {width: lower(distance, *inputs[width]) for width in inputs}
    unit = CppUnit(kernels, DiskCache(tmp_path))
    for width, kernel in kernels.items():
        found, = unit.run(width, kernel, inputs[width])
        assert not found.isnan().any()


def test_a_product_that_is_the_same_in_all_rows_is_computed_before_they_are_summed(tmp_path: Path) -> None:
    def spread(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        rows = a[0].expand(9, -1)
        apart = rows - rows.mean(0)
        return (apart * apart).sum(0), rows.argmax(0)

    inputs = numbers(torch.float32, 3, 13)
    kernel = lower(spread, *inputs)
    assert not any(summed_products(n) for n in kernel.group.kernel.nests)
    assert_same(CppUnit({"it": kernel}, DiskCache(tmp_path)).run("it", kernel, inputs), spread(*inputs))


def test_only_products_that_are_summed_and_nothing_else_are_found() -> None:
    def found(fn: Callable[..., Tensor]) -> int:
        return sum(len(summed_products(n)) for n in lower(fn, *numbers(torch.float32, 8, 40)).group.kernel.nests)

    assert found(lambda a, b, c: (a * b).sum(-1)) == 1
    assert found(lambda a, b, c: (a * b).sum(-1) + (a * c).sum(-1)) == 2
    assert found(lambda a, b, c: (a * b).sum(-1) + (a * b).amax(-1)) == 0
    assert found(lambda a, b, c: (a * b).amax(-1)) == 0
    assert found(lambda a, b, c: (a + b).sum(-1)) == 0
    assert found(lambda a, b, c: (a > 0).mul(b > 0).sum(-1)) == 0


def test_sums_take_factors_in_place_of_products(tmp_path: Path) -> None:
    def summed(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (a * b).sum(-1)

    kernel = lower(summed, *numbers(torch.float32, 8, 1024)).group.kernel
    text = print_unit([kernel], [(0, (0, 1, 2))])
    assert "__builtin_fmaf(v0, v1, part_" in text[text.index("kernel_0"):]
    assert "fma.rn.f32" in compile_for(print_kernel(kernel), DiskCache(tmp_path), 90).asm["ptx"]


@pytest.mark.parametrize("form", [name for name in FORMS if name != "a scaled operand"])
def test_gpus_are_given_no_other_contraction(form: str, tmp_path: Path) -> None:
    with FakeTensorMode():
        source = print_kernel(lower(FORMS[form], *numbers(torch.float32, 64, 256)).group.kernel)
    ptx = compile_for(source, DiskCache(tmp_path), 90).asm["ptx"]
    assert "mul.rn.f32" in ptx
    assert "fma" not in ptx


@pytest.mark.parametrize(("fn", "contracted"), [
    (lambda a, b, c: (a * b).sum(-1), True),
    (lambda a, b, c: F.silu(a) * b * c, True),
    (lambda a, b, c: (a - b) * c + (a + b).abs().amax(-1, keepdim=True), False),
    (lambda a, b, c: ((a - b) * c).sum(-1) + a.amax(-1), True),
    (lambda a, b, c: a - (b * c).neg(), False),
    (lambda a, b, c: a + torch.where(c > 0, b * c, 0), False),
    (lambda a, b, c: a.prod(-1) + b.sum(-1), False),
    (lambda a, b, c: a.tanh() + b, False),
])
def test_kernels_are_contracted_that_have_nothing_but_sums_of_products(
        fn: Callable[..., Tensor], contracted: bool) -> None:
    with FakeTensorMode():
        source = print_kernel(lower(fn, *numbers(torch.float32, 64, 256)).group.kernel)
    assert source.contracted == contracted


def test_an_operators_own_products_are_contracted_and_no_others() -> None:
    def norm(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return F.layer_norm(a, a.shape[-1:], b[0], c[0])

    def by_hand(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return F.layer_norm(a, a.shape[-1:]) * b[0] + c[0]

    def operations(fn: Callable[..., Tensor]) -> list[str]:
        statements = lower(fn, *numbers(torch.float32, 8, 40)).group.kernel.statements()
        return [s.op for s in statements if isinstance(s, Compute)]

    assert operations(norm).count("fma") == 1 and operations(by_hand).count("fma") == 0
    assert operations(by_hand).count("mul") == operations(norm).count("mul") + 1
