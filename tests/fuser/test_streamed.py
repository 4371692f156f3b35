"""Which results go past a CPU's caches: by size, by who reads them, and by how much is computed for them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rooffuse import streamed
from rooffuse.compile import cpp_source, kernel_steps
from rooffuse.cost_model import get_device
from rooffuse.program import KernelStep

from .graphs import planned

#: What the last-level cache holds of a square of this many columns, in fp32.
COLUMNS, CACHE = 256, 256 * 256 * 4


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[KernelStep]]:
    """Plans as on a processor with such stores and a cache of `CACHE` bytes."""
    monkeypatch.setattr(streamed.platform, "machine", lambda: "x86_64")
    device = replace(get_device("cpu"), l2_bytes=CACHE, bandwidth=2e10, l2_bandwidth=3e10)
    return lambda fn, *args: kernel_steps(streamed.stream_results(planned(fn, *args).program, device))


def caches(times: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As many rows as take so many times the cache's size."""
    return torch.empty(int(times * CACHE) // (COLUMNS * dtype.itemsize), COLUMNS, dtype=dtype)


@pytest.mark.parametrize(("fn", "dtype", "least"), [
    (torch.relu, torch.float32, 1 / 4), (torch.relu, torch.bfloat16, 2), (F.gelu, torch.float32, 2),
    (lambda x: x.softmax(-1), torch.float32, 1), (lambda x: x.softmax(-1), torch.bfloat16, 1)])
def test_a_result_that_leaves(plan: Any, fn: Callable[..., Any], dtype: torch.dtype, least: float) -> None:
    (below,), (at,) = plan(fn, caches(least * 0.98, dtype)), plan(fn, caches(least, dtype))
    assert not below.streamed and at.streamed == ("o0",)
    assert "rf_stream(&" in cpp_source([at]) and "rf_stream(&" not in cpp_source([below])


def test_quick_caches_keep_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed.platform, "machine", lambda: "x86_64")
    device = replace(get_device("cpu"), l2_bytes=CACHE, bandwidth=2e10, l2_bandwidth=4e10)
    for times, wanted in ((0.9, ()), (1, ("o0",))):
        program = streamed.stream_results(planned(torch.relu, caches(times)).program, device)
        assert [s.streamed for s in kernel_steps(program)] == [wanted]


def test_a_result_that_the_program_reads(plan: Any) -> None:
    def both(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = x.relu()
        return h, h @ w

    weight = torch.empty(COLUMNS, COLUMNS)
    assert [s.streamed for s in plan(both, caches(1.5), weight)] == [()]
    assert [s.streamed for s in plan(both, caches(2), weight)] == [("o0",)]
    assert [s.streamed for s in plan(lambda x, w: x.relu() @ w, caches(1.5), weight)] == [()]


def test_only_the_large_ones_of_a_kernels_results(plan: Any) -> None:
    (step,) = plan(lambda x: (x.softmax(-1), x.logsumexp(-1)), caches(1))
    assert len(step.streamed) == 1


def test_what_is_written_in_place_was_read(plan: Any) -> None:
    (step,) = plan(lambda x: x.copy_(x * 2 + 1), caches(4))
    assert "i0[p0] = v6" in cpp_source([step]) and step.streamed == ("o0",)


def test_equal_kernels_with_other_roles_are_two(plan: Any) -> None:
    def twice(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.relu() @ w, (y @ w).relu()

    weight = torch.empty(COLUMNS, COLUMNS)
    steps = plan(twice, caches(1), caches(1), weight)
    assert sorted(s.streamed for s in steps) == [(), ("o0",)]
    assert cpp_source(steps).count("rf_stream(&") == 1 and "kernel_1(" in cpp_source(steps)


@pytest.mark.parametrize(("device", "machine"), [("h100", "x86_64"), ("cpu", "aarch64")])
def test_no_results_elsewhere(device: str, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed.platform, "machine", lambda: machine)
    program = planned(torch.relu, caches(4)).program
    assert streamed.stream_results(program, replace(get_device(device), l2_bytes=CACHE)) is program
