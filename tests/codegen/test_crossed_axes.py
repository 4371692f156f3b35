"""Nests that read along one axis and write along another: tiles of both, right at ragged sizes and wide accesses."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.crossed_axes import SIDE, cross_in_tiles, crossed_axes
from rooffuse.codegen.triton_kernel import print_kernel
from rooffuse.codegen.triton_tiles import NARROWEST, choose_tile
from rooffuse.codegen.verify import verify
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from .kernels import Lowered, assert_same, lower, run_interpreter, run_triton
from .test_triton_build import cuobjdump


def causal_convolution(x: Tensor, w: Tensor) -> Tensor:
    """Along the middle axis, of which the results are next to each other."""
    padded = F.pad(x, (0, 0, 2, 0))
    return F.silu(sum(padded[:, k:k + x.shape[1]] * w[k] for k in range(3))).transpose(1, 2).contiguous()


def next_to_last(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


def normalised(x: Tensor, w: Tensor) -> Tensor:
    """Channels that lie apart, stored next to each other."""
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), w)


MAPS: dict[str, tuple[Callable, list[tuple[int, ...]]]] = {
    "transpose": (lambda x: x.t().contiguous(), [(128, 192)]),
    "transpose_of_primes": (lambda x: x.t().contiguous() * 2, [(131, 197)]),
    "prime_and_even": (lambda x: x.t().contiguous(), [(131, 64)]),
    "even_and_prime": (lambda x: x.t().contiguous(), [(96, 257)]),
    "short_side": (lambda x: x.t().contiguous(), [(20, 1000)]),
    "other_short_side": (lambda x: x.t().contiguous(), [(1000, 20)]),
    "planes": (next_to_last, [(3, 80, 112)]),
    "planes_of_planes": (lambda x: x.permute(2, 0, 3, 1).contiguous(), [(3, 20, 5, 48)]),
    "sum_of_both": (lambda x, y: (x.transpose(1, 2) + y).exp(), [(2, 128, 64), (2, 64, 128)]),
    "two_results": (lambda x, y: (x.t() + y, x - y.t()), [(96, 160), (160, 96)]),
    "convolution": (causal_convolution, [(2, 40, 64), (3, 64)]),
    "row_and_column": (lambda x, a, b: (x.t() * a[:, None] + b).contiguous(), [(100, 60), (60,), (100,)]),
    "all_reversed": (lambda x: x.permute(2, 1, 0).contiguous(), [(33, 7, 65)]),
}


def tiled(lowered: Lowered, programs: int) -> Lowered:
    kernel = cross_in_tiles(lowered.group.kernel, programs)
    return replace(lowered, group=replace(lowered.group, kernel=verify(kernel)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAPS)
def test_a_map_of_two_axes_has_tiles_of_both(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    fn, shapes = MAPS[name]
    torch.manual_seed(1)
    inputs = [torch.randn(s).to(dtype) for s in shapes]
    plain = lower(fn, *inputs)
    lowered = tiled(plain, 1)
    nest, = lowered.group.kernel.nests
    crossed = crossed_axes(plain.group.kernel, plain.group.kernel.nests[0])
    assert crossed is not None and nest.reduction
    tile = choose_tile(lowered.group.kernel, nest, 1)
    assert tile.xblock * tile.rblock <= SIDE * SIDE and tile.rblock >= min(16, *(a.size for a in crossed))
    expected = fn(*[x.float() for x in inputs])
    expected = expected if isinstance(expected, tuple) else (expected,)
    for results in (run_triton(lowered, inputs, DiskCache(tmp_path), 1), run_interpreter(lowered, inputs)):
        assert_same(results, [e.to(dtype) for e in expected])


@pytest.mark.parametrize("fn, shapes", [
    (lambda x: x * 2, [(128, 128)]),
    (lambda x, y: x + y[:, None], [(128, 128), (128,)]),
    (lambda x: x.transpose(1, 2).contiguous(), [(64, 256, 3)]),
    (lambda x: x.transpose(1, 2).contiguous(), [(4, 64, 8, 128)]),
    (lambda x, y: x + y.t()[:1], [(4096, 64), (64, 1)]),
    (lambda x: x[:, ::2].contiguous(), [(128, 128)]),
], ids=["along", "column", "shared sectors", "whole rows", "small", "every other"])
def test_what_lies_along_one_axis_is_left_alone(fn: Callable, shapes: list[tuple[int, ...]]) -> None:
    kernel = lower(fn, *[torch.randn(s) for s in shapes]).group.kernel
    assert cross_in_tiles(kernel, 1) is kernel


def test_an_axis_without_sides_is_gone_through_whole_where_programs_are_enough() -> None:
    with FakeTensorMode():
        kernel = lower(lambda x: x.transpose(1, 2).contiguous(), torch.empty(64, 197, 211)).group.kernel
    few, many = cross_in_tiles(kernel, 264), cross_in_tiles(kernel, 132)
    assert few is kernel and [a.size for a in many.nests[0].reduction] in ([197], [211])


def code_of(fn: Callable, shapes: list[tuple[int, ...]], folder: Path) -> list[str]:
    """The widths of a kernel's accesses in bits, as in "LDG.E.128"; nothing may spill."""
    with FakeTensorMode():
        lowered = tiled(lower(fn, *[torch.empty(s, dtype=torch.bfloat16) for s in shapes]), 264)
    cubin = compile_for(print_kernel(lowered.group.kernel), DiskCache(folder), 90).asm["cubin"]
    (folder / "kernel.cubin").write_bytes(cubin)
    usage, code = (subprocess.run([cuobjdump(), what, str(folder / "kernel.cubin")], capture_output=True, text=True,
                                  check=True).stdout for what in ("--dump-resource-usage", "-sass"))
    assert "STACK:0" in usage and "LOCAL:0" in usage
    return re.findall(r"\b((?:LDG|STG)\.E\S*)", code)


@pytest.mark.parametrize("fn, shapes", [
    (MAPS["transpose"][0], [(8192, 4096)]),
    (MAPS["sum_of_both"][0], [(8, 4096, 768), (8, 768, 4096)]),
    (lambda x: x.permute(0, 3, 1, 2).contiguous(), [(16, 64, 64, 256)]),
    (lambda x: F.softmax(x, -1).transpose(1, 2).contiguous(), [(96, 1024, 1024)]),
])
def test_every_access_is_16_bytes_wide(fn: Callable, shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    widths = code_of(fn, shapes, tmp_path)
    assert {w[:3] for w in widths} == {"LDG", "STG"} and all(w.endswith(".128") for w in widths), widths


@pytest.mark.parametrize("columns", [768, 1152])
def test_rows_that_lie_apart_are_stored_with_their_neighbours(columns: int) -> None:
    """Whole sectors are read, and registers hold so many rows."""
    with FakeTensorMode():
        shapes = (8, columns, 32, 32), (columns,)
        kernel = lower(normalised, *[torch.empty(s, dtype=torch.bfloat16) for s in shapes]).group.kernel
    tile = choose_tile(kernel, kernel.nests[0], 264)
    assert tile.persistent and tile.xblock >= NARROWEST and tile.xblock * tile.rblock <= 32 * 32 * tile.warps


@pytest.mark.parametrize("shape", [(2, 48, 5, 7), (1, 17, 3, 64)])
def test_rows_that_lie_apart_are_right(shape: tuple[int, ...], tmp_path: Path) -> None:
    inputs = [torch.randn(shape), torch.randn(shape[1])]
    assert_same(run_triton(lower(normalised, *inputs), inputs, DiskCache(tmp_path), 1), normalised(*inputs))
