"""Loops that g++ makes no vectors of unless they are printed otherwise: as what, and that it is right."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.short_rows import MOST_COLUMNS, strip_of_short_rows
from rooffuse.compile import kernel_steps, step_source
from torch import Tensor

from tests.fuser.graphs import planned

from .kernels import assert_same, checked, finished, lower, printed


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> DiskCache:
    return DiskCache(tmp_path_factory.mktemp("kernels"))


# -- scatters of what rows come to ------------------------------------------------------------------------------------


def likeliest(x: Tensor, y: Tensor) -> Tensor:
    """How often each class is taken for which."""
    at = (y * x.shape[1] + x.argmax(1)).flatten()
    return torch.zeros(x.shape[1] ** 2).scatter_add(0, at, torch.ones(at.shape[0]))


def latest(x: Tensor, at: Tensor) -> Tensor:
    return torch.zeros(50).index_put((at,), x.sum(1).flatten())


def ours(fn: Callable, *args: Tensor) -> tuple[Any, str]:
    """The results of ``fn``, compiled, and its kernels' source."""
    plan = planned(fn, *args, device="cpu")
    text = "".join(step_source(s, plan.target) for s in kernel_steps(plan.program))
    return torch.compile(fn, backend="rooffuse", dynamic=False, options={"strict": True})(*args), text


@pytest.mark.parametrize("size", [1, 33, 600])
def test_columns_are_lanes_until_their_results_are_scattered(size: int) -> None:
    x, y = torch.randn(3, 5, size), torch.randint(0, 5, (3, size))
    found, text = ours(likeliest, x, y)
    assert_same(found, likeliest(x, y))
    assert "lanes_" in text or size == 1


def test_places_written_twice_have_what_was_written_last() -> None:
    """Lanes are stored in order."""
    x, at = torch.randn(9, 4, 40), torch.randint(0, 50, (360,))
    found, text = ours(latest, x, at)
    expected = torch.zeros(50)
    for place, value in zip(at, x.double().sum(1).flatten().float()):
        expected[place] = value
    assert_same(found, expected)
    assert "lanes_" in text


# -- strips of short rows ---------------------------------------------------------------------------------------------


def shares(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p = x.softmax(-1)
    return p.sum(1), (p * p).sum(1), p.amax(-1)


def of_classes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    p = x.log_softmax(1)
    return p.gather(1, y[:, None])[:, 0], (p.exp() * x).sum(1)


@pytest.mark.parametrize("size", [2, 3, 4, 7, 10, 15, 16])
@pytest.mark.parametrize("rows", [65, 1000])
def test_columns_of_short_rows_are_sums_of_their_own(size: int, rows: int, cache: DiskCache) -> None:
    x = torch.randn(6, rows, size, generator=torch.Generator().manual_seed(size))
    checked(shares, x, cache=cache)
    nests = lower(shares, x).group.kernel.nests
    strips = [n for n in nests if n.strip]
    assert strips and all(strip_of_short_rows(n) == (size < 16 and 2 * size <= MOST_COLUMNS) for n in strips)
    assert any(n.strip for n in finished(shares, x).group.kernel.nests) == (size == 16)


@pytest.mark.parametrize("size", [2, 5, 10])
def test_what_is_looked_up_in_a_row_that_is_written_out_is_chosen(size: int, cache: DiskCache) -> None:
    x = torch.randn(4, size, 70, generator=torch.Generator().manual_seed(size))
    y = torch.randint(-size, size, (4, 70), generator=torch.Generator().manual_seed(size)) % size
    for dtype in (torch.float32, torch.bfloat16):
        fn = lambda x, y: tuple(r.float() for r in of_classes(x.float(), y))  # noqa: E731
        checked(fn, x.to(dtype), y, cache=cache)
    wanted = printed(of_classes, x, y)
    assert "rf_within" in wanted and wanted.count("i0[") == size  # each element is loaded once


def test_a_class_that_does_not_exist_is_told(cache: DiskCache) -> None:
    y = torch.zeros(4, 70, dtype=torch.int64)
    y[2, 3] = 5
    compiled = torch.compile(of_classes, backend="rooffuse", options={"strict": True})
    with pytest.raises(IndexError):
        compiled(torch.randn(4, 5, 70), y)


# -- truth values, conditions and functions that lanes share ----------------------------------------------------------


def ignoring(x: Tensor, y: Tensor) -> Tensor:
    kept = (y != 3)[:, None]
    same = (torch.arange(x.shape[1])[:, None] == y[:, None]) & kept
    return x.softmax(1) - torch.where(same, x.amax(1, keepdim=True), 0.0)


def cut_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    whole = F.pad(x, (0, 0, 0, 2), value=torch.inf).view(4, -1, x.shape[1])
    return whole.amin(1), whole.sum(1)


def gated(x: Tensor, g: Tensor) -> Tensor:
    return x * g.sigmoid()[..., None] + x


def test_truth_values_wait_as_numbers(cache: DiskCache) -> None:
    x, y = torch.randn(3, 70, 300), torch.randint(0, 70, (3, 300))
    assert "int32_t lanes_" in printed(ignoring, x, y) and "bool lanes_" not in printed(ignoring, x, y)
    checked(ignoring, x, y, cache=cache)


def test_columns_are_read_apart_where_their_row_is_there(cache: DiskCache) -> None:
    x = torch.randn(70, 40)
    assert printed(cut_rows, x).count("if (v") >= 1
    checked(lambda x: cut_rows(x)[0], x, cache=cache)


@pytest.mark.parametrize("shape", [(4, 56, 56), (3000, 64), (7, 5, 300)])
def test_gates_of_short_rows_are_vectors_over_rows(shape: tuple[int, ...], cache: DiskCache) -> None:
    x, g = torch.randn(shape), torch.randn(shape[:-1])
    assert ("shared_" in printed(gated, x, g)) == (shape[-1] <= 256)
    checked(gated, x, g, cache=cache)


def gated_twice(x: Tensor, g: Tensor, h: Tensor) -> Tensor:
    return x * (g.exp().sigmoid() + 1)[:, None, None] + (h.exp().sigmoid() + 1)[:, None]


def test_gates_of_outer_axes_are_vectors_over_these(cache: DiskCache) -> None:
    for sizes in ((90, 20, 6), (60, 3, 20)):
        x, g, h = torch.randn(sizes), torch.randn(sizes[0]), torch.randn(sizes[0], sizes[2])
        assert "shared_" in printed(gated_twice, x, g, h)
        checked(gated_twice, x, g, h, cache=cache)


def turns(x: Tensor, w: Tensor) -> Tensor:
    total = x
    for k in range(12):
        total = total + torch.sin(x * w[k]) * w[k + 1] - torch.cos(x * w[k]) * k
    return total


def test_three_lanes_are_written_out_whatever_they_compute(cache: DiskCache) -> None:
    x, w = torch.randn(500, 5)[:, :3], torch.randn(13)
    assert "p1" not in printed(turns, x, w)
    checked(turns, x, w, cache=cache)


def scaled_heads(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return x * (a * (b - c).exp())[..., None]


def test_what_is_the_same_along_a_row_is_no_side_of_a_tile(cache: DiskCache) -> None:
    x, a = torch.randn(6, 64, 64), torch.randn(6, 64)
    assert "rf_turn<" not in printed(scaled_heads, x, a, a, a)
    checked(scaled_heads, x, a, a + 1, a - 1, cache=cache)
