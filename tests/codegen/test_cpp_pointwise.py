"""What all steps of outer loops share is computed before them: indices, masks, tables, in every type, in blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_pointwise import shared_points
from rooffuse.codegen.cpp_unit import print_function
from rooffuse.codegen.ir import Store
from rooffuse.cost_model import get_device
from rooffuse.targets import target_for
from torch import Tensor

from .kernels import CppUnit, Lowered, assert_same, lower


def upper(x: Tensor) -> Tensor:
    i = torch.arange(27)
    return x[:, (i * i + 3) % 11, (2 * i + 1) % 13]


def bucketed(s: Tensor, table: Tensor) -> Tensor:
    """A bias that hangs on how far apart two positions are, as T5 has it."""
    far = (torch.arange(s.shape[-1])[None] - torch.arange(s.shape[-2])[:, None]).abs()
    bucket = (torch.log(far.float().clamp(min=1)) * 2).long().clamp(max=7)
    return s + table[bucket].permute(2, 0, 1)


def expanded(table: Tensor, at: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """What is looked up is itself a result, once for each of the outermost steps."""
    found = table[at].expand(x.shape)
    return found.clone(), x * found


def padded(x: Tensor, w: Tensor) -> Tensor:
    return x + F.pad(torch.tanh(w).exp(), (3, 5), value=0.25)


def two_tables(x: Tensor, w: Tensor) -> Tensor:
    """One along the last axis, and another, made of that, along the last two."""
    row = torch.erf(w)
    return x * row + torch.sin(row + torch.arange(x.shape[1])[:, None] % 2)


Inputs = Callable[[torch.dtype], list[Tensor]]
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FORMS: dict[str, tuple[Callable[..., Any], Inputs]] = {
    "upper": (upper, lambda d: [torch.randn(19, 13, 17).to(d)]),
    "bucketed": (bucketed, lambda d: [torch.randn(9, 8, 37, 41).to(d), torch.randn(8, 8).to(d)]),
    "expanded": (expanded, lambda d: [torch.randn(11, 33).to(d), torch.randint(-11, 11, (21,)),
                                      torch.randn(8, 21, 33).to(d)]),
    "padded": (padded, lambda d: [torch.randn(31, 45).to(d), torch.randn(37).to(d)]),
    "two_tables": (two_tables, lambda d: [torch.randn(16, 12, 67).to(d), torch.randn(67).to(d)]),
    "chunks": (lambda x, w: x + torch.tanh(w), lambda d: [torch.randn(8, 9001).to(d), torch.randn(9001).to(d)]),
}
CASES = [pytest.param(n, d, id=f"{n}_{d}") for n in FORMS for d in FLOATS]


def finished(name: str, dtype: torch.dtype) -> tuple[Lowered, list[Tensor]]:
    torch.manual_seed(len(name))
    fn, make = FORMS[name]
    kernel = lower(fn, *(inputs := make(dtype)))
    target = target_for(get_device("cpu"))
    return replace(kernel, group=replace(kernel.group, kernel=target.finish(kernel.group.kernel))), inputs


@pytest.fixture(scope="module")
def kernels() -> dict[str, tuple[Lowered, list[Tensor]]]:
    return {f"{n}_{d}": finished(n, d) for n in FORMS for d in FLOATS}


@pytest.fixture(scope="module")
def unit(kernels: dict[str, tuple[Lowered, list[Tensor]]], tmp_path_factory: pytest.TempPathFactory) -> CppUnit:
    return CppUnit({n: k for n, (k, _) in kernels.items()}, DiskCache(tmp_path_factory.mktemp("kernels")))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_shared_before_the_loops(name: str, dtype: torch.dtype, kernels: dict[str, tuple[Lowered, list[Tensor]]],
                                 unit: CppUnit) -> None:
    kernel, inputs = kernels[f"{name}_{dtype}"]
    assert any(shared_points(kernel.group.kernel, nest) for nest in kernel.group.kernel.nests)
    assert "shared_" in print_function(kernel.group.kernel, "kernel")
    assert_same(unit.run(f"{name}_{dtype}", kernel, inputs), FORMS[name][0](*inputs))


def test_an_index_out_of_range_is_told(kernels: dict[str, tuple[Lowered, list[Tensor]]], unit: CppUnit) -> None:
    kernel, (table, at, x) = kernels["expanded_torch.float32"]
    for wrong in (11, -12):
        with pytest.raises(IndexError):
            unit.run("expanded_torch.float32", kernel, [table, at.clone().fill_(wrong), x])


def test_what_is_looked_up_waits_as_it_lies_in_memory(kernels: dict[str, tuple[Lowered, list[Tensor]]]) -> None:
    text = print_function(kernels["bucketed_torch.bfloat16"][0].group.kernel, "kernel")
    assert "rf_bf16 shared_" in text and "int64_t shared_" in text


@pytest.mark.parametrize(("fn", "shape"), [
    (lambda x, w: x + torch.tanh(w), (4, 64)), (lambda x, w: x + w * 2, (64, 64)),
    (lambda x, w: x + torch.tanh(w), (64, 1 << 17))], ids=["few_steps", "little_work", "long_rows"])
def test_what_is_not_worth_an_array(fn: Callable[..., Tensor], shape: tuple[int, int]) -> None:
    (nest,) = (kernel := lower(fn, torch.randn(shape), torch.randn(shape[-1])).group.kernel).nests
    assert not shared_points(kernel, nest)


def test_what_the_kernel_writes_is_read_at_its_turn() -> None:
    kernel = lower(lambda x, w: x + torch.tanh(w), torch.randn(64, 32), torch.randn(32)).group.kernel
    (nest,) = kernel.nests
    assert shared_points(kernel, nest)
    read = next(b.name for b in kernel.buffers if b.size == 32)
    body = tuple(replace(s, buffer=read) if isinstance(s, Store) else s for s in nest.body)
    in_place = replace(kernel, nests=(replace(nest, body=body),))
    assert not shared_points(in_place, in_place.nests[0])
