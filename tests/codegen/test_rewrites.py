"""Kernels as they are finished for a target: every case that a rewriting changes still computes the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.exact_rounding import drop_exact_roundings
from rooffuse.codegen.ir import Compute, Kernel
from rooffuse.codegen.jam import JAMMED, jam_rows
from rooffuse.codegen.row_factors import take_out_row_factors
from rooffuse.codegen.triton_tiles import memory_along_rows
from rooffuse.codegen.verify import verify

from .cases import BY_NAME, CASES
from .kernels import CppUnit, Lowered, assert_same, lower, run_interpreter

REWRITES = {
    "jam": lambda k: jam_rows(k, lambda kernel, nest: memory_along_rows(nest)),
    "row_factors": take_out_row_factors,
    "exact_rounding": drop_exact_roundings,
}


def rewritten(lowered: Lowered, how: str) -> Lowered:
    kernel = verify(REWRITES[how](lowered.group.kernel))
    return replace(lowered, group=replace(lowered.group, kernel=kernel))


@pytest.fixture(scope="module")
def changed() -> dict[str, Lowered]:
    """What each rewriting makes of the cases that it changes, by ``how/name``."""
    found: dict[str, Lowered] = {}
    for case in CASES:
        before = lower(case.fn, *case.inputs())
        for how in REWRITES:
            after = rewritten(before, how)
            if after.group.kernel != before.group.kernel:
                found[f"{how}/{case.name}"] = after
    return found


def test_all_rewrite_many_cases(changed: dict[str, Lowered]) -> None:
    assert sum(k.startswith("jam/") for k in changed) >= 20
    assert sum(k.startswith("row_factors/") for k in changed) >= 5
    assert sum(k.startswith("exact_rounding/") for k in changed) >= 5


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
