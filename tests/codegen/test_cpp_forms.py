"""Loops as g++ makes vectors of them: what is printed where its own forms of them are slow, and that it is right."""
from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen.build_cpp import FLAGS, find_compiler
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_cuts import LONGEST_STRIDE
from rooffuse.codegen.cpp_unit import print_unit
from rooffuse.codegen.triton_tiles import memory_along_rows
from rooffuse.compile import kernel_steps, step_source
from torch import Tensor

from tests.fuser.graphs import planned

from .kernels import assert_same, checked, finished, printed


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> DiskCache:
    return DiskCache(tmp_path_factory.mktemp("kernels"))


# -- the rest of a row ------------------------------------------------------------------------------------------------


def joined(x: Tensor) -> tuple[Tensor, ...]:
    return x.sum(-1), (x * x).sum(-1), x.amax(-1), x.amin(-1)


def truths(x: Tensor) -> tuple[Tensor, ...]:
    return (x > 2).any(-1), (x < 2).all(-1), (x * .1 + 1).prod(-1)


def scaled(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("fn", [joined, truths, scaled])
@pytest.mark.parametrize("size", [33, 49, 50, 63, 65, 100, 127, 129, 1000, 1023])
def test_the_rest_of_a_row_is_a_step_that_keeps_what_was_taken(fn: Callable, size: int, cache: DiskCache) -> None:
    x = torch.randn(70, size)
    if fn is joined:
        x[3, -1], x[4, 0], x[5, -40 if size > 40 else 0] = torch.nan, torch.nan, torch.inf
    assert "before_" in printed(fn, x)
    checked(fn, x, cache=cache)


def gradients(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return (x * g).sum(-1, keepdim=True) * x, (x * g).sum(0)


def test_what_is_summed_along_other_axes_too_is_taken_once(cache: DiskCache) -> None:
    """Sums down the columns would have an element twice."""
    x, g = torch.randn(3000, 65), torch.randn(3000, 65)
    found = torch.compile(gradients, backend="rooffuse", options={"strict": True})(x, g)
    torch.testing.assert_close(found, gradients(x.double(), g.double()), rtol=1e-4, atol=1e-3, check_dtype=False)


# -- pairs at the ends of rows ----------------------------------------------------------------------------------------


def turned(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised rows of which each pair is turned."""
    y = x * torch.rsqrt(x.square().mean((-2, -1), keepdim=True) + 1e-5) * w
    return torch.stack((-y[..., 1], y[..., 0]), -1), y.amax((-2, -1))


@pytest.mark.parametrize("pair", [2, 3])
@pytest.mark.parametrize("count", [16, 37, 64])
def test_pairs_at_the_ends_of_rows_are_written_out(count: int, pair: int, cache: DiskCache) -> None:
    def fn(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = x * torch.rsqrt(x.square().mean((-2, -1), keepdim=True) + 1e-5) * w
        return y.flip(-1) - y, y.amax((-2, -1))

    x, w = torch.randn(9, count, pair), torch.randn(count, pair)
    assert all(a.size >= 16 for n in finished(fn, x, w).group.kernel.nests for a in n.reduction)
    checked(fn, x, w, cache=cache)
    if pair == 2:
        checked(turned, x, w, cache=cache)


# -- loads under conditions -------------------------------------------------------------------------------------------


def other_diagonal(x: Tensor, y: Tensor) -> Tensor:
    """All lanes have the same element, or none."""
    return torch.diagonal_scatter(x, y) + x


def parity(x: Tensor) -> Tensor:
    """Which of the parts holds an element is decided by its row, and its columns are neighbours in all of them."""
    out = x.new_zeros(x.shape[0], 2 * x.shape[1], 2 * x.shape[2])
    for k in (0, 1):
        for j in (0, 1):
            out = out + F.pad(x * (k + 2 * j + 1), (j * x.shape[2], (1 - j) * x.shape[2], k * x.shape[1],
                                                    (1 - k) * x.shape[1]))
    return out.cumsum(0)


def rows_below(x: Tensor, limit: Tensor) -> Tensor:
    return torch.where(limit[:, None] > 0, x.roll(1, 0), 0).sum(-1)


@pytest.mark.parametrize("shape", [(17, 33, 33), (5, 8, 64)])
def test_loads_under_conditions_read_where_they_may(shape: tuple[int, ...], cache: DiskCache) -> None:
    x = torch.randn(shape)
    checked(parity, x, cache=cache)
    checked(rows_below, x[0], torch.randn(shape[1]), cache=cache)
    square, diagonal = torch.randn(40, 40), torch.randn(40)
    checked(other_diagonal, square, diagonal, cache=cache)
    assert "rf_chosen(" in printed(other_diagonal, square, diagonal)


# -- distances between lanes ------------------------------------------------------------------------------------------


def corners(x: Tensor) -> Tensor:
    return x[:, 3, 0] * x[:, 0, 0] + x[:, 3, 1] * x[:, 1, 0] + x[:, 3, 2]


@pytest.mark.parametrize("size", [4, 8, 16, 64])
def test_long_distances_between_lanes_are_not_for_the_compiler_to_know(size: int, cache: DiskCache) -> None:
    x = torch.randn(100, size, size)
    assert ("rf_pitch(" in printed(corners, x)) == (size * size > LONGEST_STRIDE)
    checked(corners, x, cache=cache)


# -- columns ----------------------------------------------------------------------------------------------------------


def pooled_softmax(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2).softmax(1).amax(1)


def discounted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    total = (x * y).cumsum(0)
    return total / (y + 9), total + x


def rolled_state(new: Tensor, state: Tensor, rows: Tensor) -> Tensor:
    """Each row's states, without the oldest, are written where they were."""
    moved = torch.cat((state[:new.shape[0], 1:], new[:, None]), 1)
    state[rows] = moved
    return moved.sum(1)


def test_columns_are_lanes_where_memory_runs_along_them(cache: DiskCache) -> None:
    """With two elements to a lane, too, in scans, and where rows are scattered."""
    image, x, y = torch.randn(2, 48, 20, 46), torch.randn(90, 300), torch.randn(90, 300)
    for fn, args in ((pooled_softmax, (image,)), (discounted, (x, y))):
        assert "for (int64_t j = 0; j < end - begin; ++j)" in printed(fn, *args)
        checked(fn, *args, cache=cache)


def test_scattered_rows_are_columns_in_order(cache: DiskCache) -> None:
    new, state, rows = torch.randn(9, 200), torch.randn(12, 4, 200), torch.randint(0, 5, (9,))
    expected, moved = state.clone(), torch.cat((state[:9, 1:], new[:, None]), 1)
    for row, value in zip(rows, moved):
        expected[row] = value
    found = torch.compile(rolled_state, backend="rooffuse", options={"strict": True})(new, state, rows)
    assert_same([found], [moved.sum(1)])
    torch.testing.assert_close(state, expected, rtol=0, atol=0)


# -- choices ----------------------------------------------------------------------------------------------------------


def chosen_few(x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(x.shape, dtype=torch.bool).scatter(1, places, True)
    weights = x * mask
    return weights / weights.sum(-1, keepdim=True), mask.sum(0)


def test_choices_of_truth_values_are_no_choices(cache: DiskCache) -> None:
    """And places that are looked up are compared as numbers of 32 bits."""
    x, places = torch.rand(40, 128) + 1, torch.stack([torch.randperm(128)[:8] for _ in range(40)])
    plan = planned(chosen_few, x, places, device="cpu")
    text = "".join(step_source(s, plan.target) for s in kernel_steps(plan.program))
    assert text.count("(int32_t)") >= 8 and "? true" not in text and ": false" not in text
    found = torch.compile(chosen_few, backend="rooffuse", options={"strict": True})(x, places)
    torch.testing.assert_close(found, chosen_few(x, places))


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_constant_side_of_a_choice(holds: bool, first: bool, cache: DiskCache) -> None:
    def fn(x: Tensor, y: Tensor) -> Tensor:
        constant = torch.full_like(x, holds, dtype=torch.bool)
        return torch.where(x > 0, constant, y > 0) if first else torch.where(x > 0, y > 0, constant)

    checked(fn, torch.randn(5, 70), torch.randn(5, 70), cache=cache)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for names of x86's vector functions")
def test_functions_whose_results_are_chosen_are_vectors(tmp_path: Path) -> None:
    """g++ would call them for one side of the choice alone."""
    def fn(x: Tensor) -> Tensor:
        return torch.where(x > 20, x, x.exp().log1p()) * x.sigmoid()

    source, assembly = tmp_path / "kernel.cpp", tmp_path / "kernel.s"
    source.write_text(print_unit([finished(fn, torch.randn(64, 640)).group.kernel], [(0, (0, 1))]))
    subprocess.run([find_compiler(), *FLAGS, "-S", str(source), "-o", str(assembly)], check=True, capture_output=True)
    # the prelude's functions call it, too: the kernel's own code is what counts
    own = re.findall(r"^_ZL?\d+kernel_0[\w.]*:$(.*?)\.size", assembly.read_text(), re.DOTALL | re.MULTILINE)
    assert any(re.search(r"call\s+\*?_ZGV\w+log1pf", body) for body in own)


def test_values_that_only_held_ones_are_made_of_are_not_held() -> None:
    def fn(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(torch.exp(x.clamp(max=3)))
        return y / y.sum(-1, keepdim=True), y.sum(-1)

    text = printed(fn, torch.randn(64, 640))
    held = set(re.findall(r"(held_\w+)\[", text))
    assert held and all(f"= {name}[" in text for name in held)


def test_rows_of_what_is_concatenated_along_other_axes_are_printed_for_each_piece(cache: DiskCache) -> None:
    """As the channels of a skip connection are before a group norm, or a token before the others."""
    def fn(x: Tensor, y: Tensor) -> Tensor:
        return F.group_norm(torch.cat([x, y], 1), 3)

    x, y = torch.randn(2, 7, 9, 20), torch.randn(2, 5, 9, 20)
    text = printed(fn, x, y)
    assert re.search(r"if \(v\d+\)", text) and not re.search(r"if \(v\d+ & v\d+\)", text)
    checked(fn, x, y, cache=cache)


def test_segments_of_rows_across_memory_are_reduced_by_themselves(cache: DiskCache) -> None:
    """Their loops would read one element of each line of memory."""
    def fn(x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + 1e-5)

    plan = planned(fn, torch.empty(8192, 4096, dtype=torch.bfloat16), device="cpu")
    nests = [n for s in kernel_steps(plan.program) for n in s.group.lowered.kernel.nests]
    assert nests and not any(n.segmented and not memory_along_rows(n) for n in nests)
    checked(fn, torch.randn(300, 33), cache=cache)
