"""Kernels as they are finished for a target: every case that a rewriting changes still computes the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_unit import print_function
from rooffuse.codegen.exact_rounding import drop_exact_roundings
from rooffuse.codegen.ir import Compute, Kernel
from rooffuse.codegen.jam import JAMMED, LONG_ROW, jam_rows
from rooffuse.codegen.row_factors import take_out_row_factors
from rooffuse.codegen.short_axes import write_out_short_axes
from rooffuse.codegen.short_rows import write_out_short_rows
from rooffuse.codegen.triton_tiles import memory_along_rows
from rooffuse.codegen.turned import crosses, turn_in_tiles
from rooffuse.codegen.verify import verify
from torch._subclasses.fake_tensor import FakeTensorMode

from .cases import BY_NAME, CASES
from .kernels import CppUnit, Lowered, assert_same, lower, lower_case, run_interpreter

REWRITES = {
    "jam": lambda k: jam_rows(k, lambda kernel, nest: memory_along_rows(nest)),
    "row_factors": take_out_row_factors,
    "exact_rounding": drop_exact_roundings,
    "turned": turn_in_tiles,
    "short_axes": write_out_short_axes,
    "short_rows": lambda k: write_out_short_rows(k, fewest=1),
}


def rewritten(lowered: Lowered, how: str) -> Lowered:
    kernel = verify(REWRITES[how](lowered.group.kernel))
    return replace(lowered, group=replace(lowered.group, kernel=kernel))


@pytest.fixture(scope="module")
def changed() -> dict[str, Lowered]:
    """What each rewriting makes of the cases that it changes, by ``how/name``."""
    found: dict[str, Lowered] = {}
    for case in CASES:
        before = lower_case(case)
        for how in REWRITES:
            after = rewritten(before, how)
            if after.group.kernel != before.group.kernel:
                found[f"{how}/{case.name}"] = after
    return found


def test_all_rewrite_many_cases(changed: dict[str, Lowered]) -> None:
    assert sum(k.startswith("jam/") for k in changed) >= 20
    assert sum(k.startswith("row_factors/") for k in changed) >= 5
    assert sum(k.startswith("exact_rounding/") for k in changed) >= 5
    assert sum(k.startswith("turned/") for k in changed) >= 2
    assert sum(k.startswith("short_axes/") for k in changed) >= 5
    assert sum(k.startswith("short_rows/") for k in changed) >= 25


def test_interpreter(changed: dict[str, Lowered]) -> None:
    for key, after in changed.items():
        case = BY_NAME[key.split("/")[1]]
        inputs = case.inputs()
        assert_same(run_interpreter(after, inputs), case.fn(*inputs))


def test_cpp(changed: dict[str, Lowered], tmp_path) -> None:
    unit = CppUnit(changed, DiskCache(tmp_path))
    for key, after in changed.items():
        case = BY_NAME[key.split("/")[1]]
        inputs = case.inputs()
        assert_same(unit.run(key, after, inputs), case.fn(*inputs))


def operations(kernel: Kernel, op: str) -> int:
    return sum(isinstance(s, Compute) and s.op == op for s in kernel.statements())


def test_a_softmax_divides_once_a_row() -> None:
    kernel = take_out_row_factors(lower(lambda x: x.softmax(-1), torch.randn(5, 40)).group.kernel)
    (nest,) = kernel.nests
    (division,) = (s for s in nest.body if isinstance(s, Compute) and s.op == "div")
    assert not nest.scopes[division.name] & {a.symbol for a in nest.reduction}


def test_exponentials_of_a_log_softmax_are_those_of_its_sum() -> None:
    kernel = lower(lambda x: (x.log_softmax(-1).exp() * x).sum(-1), torch.randn(5, 40)).group.kernel
    assert (operations(kernel, "exp"), operations(take_out_row_factors(kernel), "exp")) == (2, 1)


@pytest.mark.parametrize("fn", [lambda x: x / x.sum(-1, keepdim=True), lambda x: x / x.exp().sum(-1, keepdim=True),
                                lambda x: (x - x.exp().sum(-1, keepdim=True).log()).exp()])
def test_sums_that_may_be_tiny_or_huge_are_divided_by(fn) -> None:
    kernel = lower(fn, torch.randn(5, 40)).group.kernel
    assert take_out_row_factors(kernel) == kernel


def test_what_is_left_of_the_rows_is_a_nest_of_its_own() -> None:
    kernel = jam_rows(lower(lambda x: x.sum(-1), torch.randn(11, 40)).group.kernel, lambda kernel, nest: True)
    assert [n.parallel[0].size for n in kernel.nests] == [11 // JAMMED, 11 % JAMMED]


@pytest.mark.parametrize("fn, at_once", [
    (lambda x, w: (x * w).sum(-1), JAMMED), (lambda x, w: x.square().sum(-1), 1),
    (lambda x, w: ((x * w).sum(-1), (x + w).square().sum(-1)), JAMMED // 2)])
def test_long_rows_are_taken_together_for_what_they_share(fn, at_once) -> None:
    kernel = lower(fn, torch.randn(64, LONG_ROW), torch.randn(LONG_ROW)).group.kernel
    rows = jam_rows(kernel, lambda kernel, nest: True).nests[0].parallel[0].size
    assert rows == 64 // at_once


def test_a_transposition_goes_in_tiles_of_whole_lines() -> None:
    def turned(*shape: int, dtype: torch.dtype = torch.float32) -> list[list[int]]:
        x = torch.empty(shape, dtype=dtype).mT
        kernel = lower(lambda x: x.clone(memory_format=torch.contiguous_format), x).group.kernel
        return [[a.size for a in nest.axes] for nest in turn_in_tiles(kernel).nests]

    assert turned(3, 64, 160) == [[3, 10, 4, 16, 16]]
    assert turned(3, 64, 160, dtype=torch.bfloat16) == [[3, 5, 2, 32, 32]]
    assert turned(48, 7) == [[3, 7, 16]]
    assert turned(3, 48) == [[48, 3]]
    assert turned(48, 67) == [[4, 3, 16, 16], [3, 48]]
    assert turned(55, 40) == [[2, 3, 16, 16], [3, 8, 16], [2, 16, 7], [8, 7]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_lies_apart_is_loaded_before_it_is_computed_at_length(dtype, tmp_path) -> None:
    """g++ calls no vector of a library's functions on elements that lie apart, as in rows too short for tiles."""
    x = torch.randn(160, 3, 160, dtype=dtype).mT
    calls = {"mish": lambda x: F.mish(x).contiguous(), "relu": lambda x: x.relu().contiguous()}
    lowered = {name: lower(fn, x) for name, fn in calls.items()}
    assert all(turn_in_tiles(k.group.kernel) == k.group.kernel for k in lowered.values())
    unit = CppUnit(lowered, DiskCache(tmp_path))
    for name, fn in calls.items():
        assert_same(unit.run(name, lowered[name], [x]), fn(x))
        assert ("stage" in print_function(lowered[name].group.kernel, "k")) == (name == "mish")


def test_reductions_that_go_through_memory_along_two_axes() -> None:
    def fn(x, y):
        return (x + y).sum(1)

    x, y = torch.empty(64, 128), torch.empty(128, 64).t()
    crossing, straight = (lower(fn, x, other).group.kernel for other in (y, x))
    assert crosses(crossing, crossing.nests[0], 1024) and not crosses(straight, straight.nests[0], 1024)
    assert not crosses(crossing, crossing.nests[0], 1 << 20)


@pytest.mark.parametrize(("rows", "columns"), [(64, 48), (64, 8192), (8, 3)])
def test_sides_of_outer_products_that_stay_in_cache_are_gone_through_along_any_axis(rows: int, columns: int) -> None:
    with FakeTensorMode():
        sides = torch.empty(4096, rows), torch.empty(4096, columns)
        large = torch.empty(512, 4096), torch.empty(4096, 512)
    small = lower(lambda a, b: (a[:, :, None] - b[:, None]).abs().sum(2), *sides).group.kernel
    leaping = lower(lambda a, b: (a[:, :, None] - b[None]).abs().sum(1), *large).group.kernel
    assert not crosses(small, small.nests[0], 1024) and crosses(leaping, leaping.nests[0], 1024)
