"""Scans: what they refuse, what a target leaves to a library, and how exact they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_unit import print_function
from rooffuse.codegen.errors import InvalidKernel, NotLowerable
from rooffuse.codegen.index import symbol
from rooffuse.codegen.ir import Axis, Buffer, Kernel, Load, Nest, Scan, Store
from rooffuse.codegen.verify import verify
from rooffuse.cost_model import get_device
from rooffuse.targets import target_for

from .kernels import CppUnit, assert_same, lower, run_triton


def kernel(scan: Scan, reduction: bool = True) -> Kernel:
    r0 = symbol("r0")
    nest = Nest((Axis(r0, 9, reduction),), (Load("v0", torch.float32, "i0", r0), scan, Store("o0", r0, "v1")))
    return Kernel("k", (Buffer("i0", torch.float32, 9), Buffer("o0", scan.dtype, 9)), (nest,))


def test_the_rules_of_a_scan() -> None:
    verify(kernel(Scan("v1", torch.float32, "sum", "v0")))
    for bad, reduction in ((Scan("v1", torch.float32, "sum", "v0"), False), (Scan("v1", torch.float32, "argmax", "v0"),
                           True), (Scan("v1", torch.float64, "sum", "v0"), True)):
        with pytest.raises(InvalidKernel, match="scan"):
            verify(kernel(bad, reduction))


@pytest.mark.parametrize("fn", [
    lambda x: x.cumsum(-1)[:, -1],
    lambda x: x.cumsum(-1) + x.flip(-1).cumsum(-1).flip(-1),
    lambda x: torch.nn.functional.pad(x.cumsum(-1), (1, 2)) * 2,
    lambda x: x.cumsum(0) + x.cumsum(1),
], ids=["last", "both ways", "under a mask", "rows and columns"])
def test_scans_that_do_not_share_a_row_are_kernels_of_their_own(fn) -> None:
    with pytest.raises(NotLowerable):
        lower(fn, torch.randn(5, 33))


def test_few_rows_beyond_the_registers_are_left_to_a_parallel_scan() -> None:
    gpu = target_for(get_device("h100"))
    long = lower(lambda x: x.cumsum(-1), torch.empty(2, 1 << 18)).group.kernel
    with pytest.raises(NotLowerable, match="tile by tile"):
        gpu.finish(long)
    for shape in ((1, 4096), (1000, 1 << 18)):
        assert gpu.finish(lower(lambda x: x.cumsum(-1), torch.empty(shape)).group.kernel)


def test_sums_of_long_rows_stay_as_exact_as_eagers(tmp_path: Path) -> None:
    x = torch.rand(2, 300_001)
    lowered = lower(lambda x: x.cumsum(-1), x)
    cache = DiskCache(tmp_path)
    ours = CppUnit({"k": lowered}, cache).run("k", lowered, [x])[0]
    exact = x.double().cumsum(-1)
    assert (ours - exact).abs().max() <= (x.cumsum(-1) - exact).abs().max() * 1.01


def test_a_row_of_several_tiles_carries_its_total(tmp_path: Path) -> None:
    torch.manual_seed(1)
    x, w = torch.rand(2, 40_000) - 0.5, torch.rand(40_000)
    lowered = lower(lambda x, w: (x.cumsum(-1) + w, (x + 1).cumsum(-1).amax(-1)), x, w)
    assert_same(run_triton(lowered, [x, w], DiskCache(tmp_path)),
                [x.cumsum(-1) + w, (x + 1).double().cumsum(-1).amax(-1).float()])


def test_what_is_computed_beside_a_scan_is_vectorised() -> None:
    """In loops of their own, before it and after it; loads and stores alone stay in one, and so does a plain total."""
    def loops(fn, *inputs):
        source = print_function(lower(fn, *inputs).group.kernel, "k")
        return source.count("#pragma omp simd"), source.count("for (int64_t r0 = ")

    x = torch.randn(9, 700)
    assert loops(lambda x: x.exp().cumsum(-1).sqrt(), x) == (2, 3)
    assert loops(lambda x: x.exp().cumsum(-1), x) == (1, 2)
    assert loops(lambda x: x.cumsum(-1).exp().cumsum(-1), x) == (1, 3)
    assert loops(lambda x: x.cumsum(-1), x) == (0, 1)
    assert loops(lambda x: x.cumsum(-1), x.bfloat16()) == (2, 3)


def test_a_row_may_be_written_where_it_was_read() -> None:
    """A result can take the memory of an operand that nobody needs later: what is read there is read before."""
    source = print_function(lower(lambda x: (x.cumsum(-1), x.cumsum(-1) * x), torch.randn(9, 700)).group.kernel, "k")
    assert source.rindex("i0[") < source.index("o0[")
