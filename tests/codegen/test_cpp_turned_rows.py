"""Rows that memory runs along and across: tiles of several rows, and what is left of a block of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_unit import print_function
from rooffuse.codegen.turned_rows import SHORT_ROW, turned_rows
from torch import Tensor

from .kernels import CppUnit, assert_same, lower

#: Rows of vectors of lanes and rows that vectors go along, each with blocks of whole tiles, with a rest, or alone.
SHAPES = ((2, 96, 64), (3, 48, 37), (2, 17, 70), (1, 192, 5), (2, 384, 32), (2, 300, 49), (1, 512, 9), (2, 1024, 40))


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x.transpose(1, 2), (x.shape[1],))


def added(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    h = x.transpose(1, 2) + g
    return h, h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)


def turned_out(g: Tensor) -> Tensor:
    return g.softmax(-1).transpose(1, 2).contiguous()


def both_ways(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = x.transpose(1, 2) * g
    top = y.amax(-1, keepdim=True)
    return (y - top).transpose(1, 2).contiguous(), y.argmax(-1), (y * top).to(torch.bfloat16)


def inputs(fn, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    n, channels, size = shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(channels)).to(dtype)
    g = torch.randn(n, size, channels, generator=torch.Generator().manual_seed(size)).to(dtype)
    return {norm: (x,), turned_out: (g,)}.get(fn, (x, g))


@pytest.fixture(scope="module")
def unit(tmp_path_factory) -> tuple[CppUnit, dict]:
    calls = {f"{fn.__name__} {shape} {dtype}": (fn, inputs(fn, shape, dtype))
             for fn in (norm, added, turned_out, both_ways) for shape in SHAPES
             for dtype in (torch.float32, torch.bfloat16)}
    lowered = {n: lower(fn, *args) for n, (fn, args) in calls.items()}
    return CppUnit(lowered, DiskCache(tmp_path_factory.mktemp("kernels"))), {n: (*calls[n], lowered[n]) for n in calls}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("fn", (norm, added, turned_out, both_ways))
def test_rows_are_those_of_eager(unit: tuple[CppUnit, dict], fn, dtype: torch.dtype) -> None:
    library, calls = unit
    for shape in SHAPES:
        name = f"{fn.__name__} {shape} {dtype}"
        _, args, lowered = calls[name]
        kernel = lowered.group.kernel
        found = [turned_rows(kernel, nest) for nest in kernel.nests]
        assert any(found) and all(f is None or f.lanes == (shape[1] <= SHORT_ROW) for f in found if fn is norm)
        assert "rf_turn<" in print_function(kernel, "kernel")
        results = fn(*[a.double() for a in args])
        results = results if isinstance(results, tuple) else (results,)
        narrow = [dtype, dtype, dtype] if fn is not both_ways else [dtype, torch.int64, torch.bfloat16]
        assert_same(library.run(name, lowered, args), [e.to(t) for e, t in zip(results, narrow)])


def test_rows_that_all_memory_runs_along_need_no_tiles() -> None:
    x = torch.randn(4, 64, 96)
    kernel = lower(lambda x, g: F.layer_norm(x + g, (96,)), x, x).group.kernel
    assert turned_rows(kernel, kernel.nests[0]) is None
    # What is read once for many rows, as weights are, is too little to be turned.
    kernel = lower(lambda x, w: x.softmax(-1) * w.t(), torch.randn(8, 64, 96),
                   torch.randn(96, 64)).group.kernel
    assert all(turned_rows(kernel, nest) is None for nest in kernel.nests)


def test_rows_too_long_for_tiles_are_not_turned() -> None:
    kernel = lower(norm, torch.randn(1, 8192, 32)).group.kernel
    assert turned_rows(kernel, kernel.nests[0]) is None
