"""What is interleaved in memory is loaded and stored in one piece, and each element where it belongs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rooffuse.backend
import torch
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.short_axes import write_out_interleaved_axes
from rooffuse.codegen.triton_kernel import print_kernel
from rooffuse.cost_model import get_device
from rooffuse.targets import Target
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from tests.models.eager import STRICT, same_as_eager, tensors

from .kernels import lower, run_interpreter, run_triton
from .test_triton_build import cuobjdump

INTERPRETED = Target("triton", get_device("h100"), torch.device("cpu"), interpreted=True)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def rotated_by_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * cos.repeat_interleave(2, -1) + turned * sin.repeat_interleave(2, -1)


def normed(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotated(x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt(), cos, sin)


def gated(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    y = F.silu(x[..., 0::2]) * x[..., 1::2]
    most = y.abs().amax(-1, keepdim=True)
    return y / most, most


def corners(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b, w, h = x.flatten()[:x.numel() // 4 * 4].view(-1, 4).unbind(-1)
    return torch.stack((a - w / 2, b - h / 2, a + w / 2, b + h / 2), -1)


def column_sums(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x[..., 0::2] * x[..., 1::2]).sum(-2)


def in_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return F.avg_pool2d(x[None], 2)


FUNCTIONS = [rotated, rotated_by_halves, normed, gated, corners, column_sums, in_pairs]


def made(rows: int, size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, rows, 2 * size, dtype=dtype), torch.rand(rows, size, dtype=dtype),
            torch.rand(rows, size, dtype=dtype)]


@pytest.mark.parametrize(("rows", "size"), [(2, 1), (3, 10), (5, 67), (4, 64), (2, 1025)])
@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_each_element_is_where_it_belongs(fn: Callable[..., Any], rows: int, size: int, tmp_path: Path) -> None:
    inputs = made(rows, size)
    lowered = lower(fn, *inputs)
    for programs in (1, 64):
        for ours, reference in zip(run_triton(lowered, inputs, DiskCache(tmp_path), programs),
                                   run_interpreter(lowered, inputs), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_compiled_functions_agree_with_double(fn: Callable[..., Any], size: int, dtype: torch.dtype,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: INTERPRETED)
    torch._dynamo.reset()
    inputs = made(6, size, dtype)
    found = torch.compile(fn, backend="rooffuse", options=STRICT)(*inputs)
    wanted = fn(*[t.double() for t in inputs])
    # Differences of rotated numbers, and sums of six, keep the rounding of what cancels.
    close = {torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    for a, b in zip(tensors(found), tensors(wanted), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=close, atol=close)


@pytest.mark.parametrize("fn", [
    lambda b, x: torch.stack((x.int() & 15, x.int() >> 4), -1).to(torch.uint8),
    lambda b, x: torch.stack((b[..., 0] & b[..., 1], b[..., 0] | b[..., 1]), -1),
    lambda b, x: torch.stack((x.float(), x.float() * 2), -1).to(torch.float8_e4m3fn),
    lambda b, x: torch.stack((b[..., 1].int() + 1, b[..., 0].int()), -1).to(torch.float64)])
def test_elements_of_any_type(fn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: INTERPRETED)
    same_as_eager(fn, lambda: [torch.rand(9, 13, 2) > 0.5, torch.randint(0, 255, (9, 13), dtype=torch.uint8)])


def text_of(fn: Callable[..., Any], *shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> str:
    with FakeTensorMode():
        kernel = lower(fn, *[torch.empty(s, dtype=dtype) for s in shapes]).group.kernel
    text = print_kernel(write_out_interleaved_axes(kernel)).text
    return text[text.rindex("@triton.jit"):]


@pytest.mark.parametrize("fn", [rotated, rotated_by_halves, normed], ids=lambda fn: fn.__name__)
def test_pairs_are_split_and_joined(fn: Callable[..., Any]) -> None:
    text = text_of(fn, (4, 512, 128), (512, 64), (512, 64))
    assert "tl.split" in text and text.count("tl.store") == 1 and "tl.interleave" in text


@pytest.mark.parametrize("fn", [
    lambda x: x[:, 1:-1:2] + x[:, 2::2],  # pairs that don't begin where 16 bytes do
    lambda x: x[:, ::2] * 2])  # of which one is read
def test_others_are_taken_one_by_one(fn: Callable[[Tensor], Tensor]) -> None:
    assert "tl.split" not in text_of(fn, (64, 256))


@pytest.mark.parametrize("fn", [rotated, rotated_by_halves], ids=lambda fn: fn.__name__)
def test_accesses_are_16_bytes_wide_and_need_no_shared_memory(fn: Callable[..., Any], tmp_path: Path) -> None:
    with FakeTensorMode():
        inputs = [torch.empty(s, dtype=torch.bfloat16) for s in ((4, 4096, 128), (4096, 64), (4096, 64))]
        source = print_kernel(write_out_interleaved_axes(lower(fn, *inputs).group.kernel))
    compiled = compile_for(source, DiskCache(tmp_path), 90)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    code = subprocess.run([cuobjdump(), "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    # Cosines and sines are half as many.
    assert set(re.findall(r"\b(?:LDG|STG)\.E\S*?\.(128|64|U16|U8)\b", code)) <= {"128", "64"}
    assert re.search(r"\bSTG\.E\S*\.128\b", code) and compiled.metadata.shared == 0
