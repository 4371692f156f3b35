"""Transposing loops in tiles: every width of elements, sizes that aren't whole blocks, windows, borders, in place."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen import build_cpp
from rooffuse.codegen.build_cpp import find_compiler
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_unit import print_function, print_unit
from rooffuse.cost_model import get_device
from rooffuse.targets import target_for
from torch import Tensor

from .kernels import CppUnit, Lowered, assert_same, lower

NEAR = torch.channels_last


def images(*shape: int) -> Callable[[torch.dtype], list[Tensor]]:
    return lambda dtype: [torch.randn(shape).to(memory_format=NEAR).to(dtype)]


def matrices(*shapes: tuple[int, ...]) -> Callable[[torch.dtype], list[Tensor]]:
    return lambda dtype: [torch.randn(shape).mul(50).to(dtype) for shape in shapes]


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EVERY = (*FLOATS, torch.int8, torch.int16, torch.int64, torch.bool, torch.float8_e4m3fn)
#: Functions, what makes their inputs, and their types.
FORMS: dict[str, tuple[Callable[..., Any], Callable[[torch.dtype], list[Tensor]], tuple[torch.dtype, ...]]] = {
    "copy": (lambda x: x.t().contiguous(), matrices((64, 96)), EVERY),
    "copy_of_parts": (lambda x: x.t().contiguous(), matrices((60, 84)), EVERY),
    "copy_of_few": (lambda x: x.t().contiguous(), matrices((7, 128)), EVERY),
    "copy_of_a_prime_number": (lambda x: x.t().contiguous(), matrices((67, 197)), EVERY),
    "copy_of_just_more": (lambda x: x.t().contiguous(), matrices((17, 33)), EVERY),
    "prime_sum": (lambda x, y: (x.t() + y).tanh().contiguous(), matrices((67, 101), (101, 67)), FLOATS),
    "batched": (lambda x: x.transpose(1, 2).contiguous(), matrices((3, 40, 24)), (torch.float32, torch.bfloat16)),
    "computed": (lambda x: (x.t() * 2 + 1).sigmoid().contiguous(), matrices((48, 80)), FLOATS),
    "two_results": (lambda x: ((x.t() * 2).contiguous(), x.t().exp().contiguous()), matrices((64, 32)), FLOATS[:2]),
    "two_types": (lambda x: (x.t().contiguous(), x.t().half().contiguous()), matrices((64, 32)), FLOATS[:2]),
    "with_what_lies_so": (lambda x, y: (x.t() + y).contiguous(), matrices((64, 32), (32, 64)), FLOATS[:2]),
    "with_a_row": (lambda x, y, z: ((x + y).t() * z).contiguous(), matrices((64, 32), (64, 32), (64,)), FLOATS[:2]),
    "pooled_odd": (lambda x: F.max_pool2d(x, 3, 2, 1).contiguous(), images(2, 37, 15, 45), FLOATS[:2]),
    "pooled": (lambda x: F.avg_pool2d(x, 2).contiguous(), images(2, 32, 16, 48), FLOATS),
    "pooled_with_border": (lambda x: F.max_pool2d(x, 3, 2, 1).contiguous(), images(2, 24, 16, 48), FLOATS),
    "activated": (lambda x: F.mish(x).contiguous(), images(2, 32, 8, 24), FLOATS),
}
CASES = [pytest.param(name, dtype, id=f"{name}_{dtype}") for name, form in FORMS.items() for dtype in form[2]]
#: Forms with one load whose results begin anywhere in a line.
RAGGED = ("copy_of_parts", "copy_of_a_prime_number", "copy_of_just_more", "prime_sum", "batched")
#: Without vectors of this width, blocks aren't transposed in registers.
NARROWER = ("-mno-avx512bw", "-mno-avx512vl")


def finished(name: str, dtype: torch.dtype) -> tuple[Lowered, list[Tensor]]:
    torch.manual_seed(len(name))
    fn, make, _ = FORMS[name]
    kernel = lower(fn, *(inputs := make(dtype)))
    target = target_for(get_device("cpu"))
    return replace(kernel, group=replace(kernel.group, kernel=target.finish(kernel.group.kernel))), inputs


@pytest.fixture(scope="module")
def kernels() -> dict[str, tuple[Lowered, list[Tensor]]]:
    return {f"{name}_{dtype}": finished(name, dtype) for name, form in FORMS.items() for dtype in form[2]}


@pytest.fixture(scope="module")
def unit(kernels: dict[str, tuple[Lowered, list[Tensor]]], tmp_path_factory: pytest.TempPathFactory) -> CppUnit:
    return CppUnit({n: k for n, (k, _) in kernels.items()}, DiskCache(tmp_path_factory.mktemp("kernels")))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_tiles(name: str, dtype: torch.dtype, kernels: dict[str, tuple[Lowered, list[Tensor]]], unit: CppUnit) -> None:
    kernel, inputs = kernels[f"{name}_{dtype}"]
    straddling = name in RAGGED and dtype.itemsize >= 4
    if name != "copy_of_few" and not straddling:
        assert "rf_turn<" in print_function(kernel.group.kernel, "kernel")
    found, wanted = unit.run(f"{name}_{dtype}", kernel, inputs), FORMS[name][0](*inputs)
    if name.startswith("copy"):
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        assert torch.equal(found[0].view(bits), wanted.view(bits))
    else:
        assert_same(found, wanted)


def test_what_is_only_moved_is_not_converted(kernels: dict[str, tuple[Lowered, list[Tensor]]]) -> None:
    assert "rf_to_bf16" not in print_function(kernels["copy_torch.bfloat16"][0].group.kernel, "kernel")
    both = print_function(kernels["two_types_torch.bfloat16"][0].group.kernel, "kernel")
    assert "= v0_bits;" in both and "rf_to_fp16(" in both


def test_processors_without_wide_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cpp, "FLAGS", (*build_cpp.FLAGS, *NARROWER))
    for name in ("copy_of_parts", "pooled"):
        kernel, inputs = finished(name, torch.float32)
        assert_same(CppUnit({name: kernel}, DiskCache(tmp_path)).run(name, kernel, inputs), FORMS[name][0](*inputs))


@pytest.mark.skipif("avx512bw" not in Path("/proc/cpuinfo").read_text(), reason="the processor has no such vectors")
def test_blocks_are_transposed_in_registers(tmp_path: Path) -> None:
    kernel, _ = finished("copy", torch.float32)
    source = tmp_path / "kernel.cpp"
    source.write_text(print_unit([kernel.group.kernel], [(0, (0, 1))]))
    assembly = tmp_path / "kernel.s"
    subprocess.run([find_compiler(), *build_cpp.FLAGS, "-S", source, "-o", assembly], check=True)
    text = assembly.read_text()
    assert sum(text.count(name) for name in ("vpermt2ps", "vpermi2ps", "vunpck", "vshuf", "vperm2f")) >= 64
