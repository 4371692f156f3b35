"""Mutated inputs are written in place where that is safe, and copied where it is not."""

from __future__ import annotations

import logging

import pytest
import torch
from conftest import Capture, assert_same_results, targets, trace
from rooffuse.passes.dce import dce
from rooffuse.passes.pipeline import copy_graph
from rooffuse.passes.reinplace import reinplace
from rooffuse.passes.verify import verify

CACHE = torch.randn(2, 4, 16, 8)
ROW = torch.randn(2, 4, 1, 8)
POS = torch.tensor([5])


def run(gm):
    after = dce(reinplace(copy_graph(gm)))
    after.recompile()
    verify(after)
    return after


def index_copy(cache, row, pos):
    new = torch.ops.aten.index_copy(cache, 2, pos, row)
    out = (new * 2).sum(-1)
    torch.ops.aten.copy_.default(cache, new)
    return out


def index_put(cache, row, pos):
    new = torch.ops.aten.index_put(cache, [None, None, pos], row)
    out = new + 1
    torch.ops.aten.copy_.default(cache, new)
    return out


def chained(cache, row, pos):
    new = torch.ops.aten.index_copy(cache, 2, pos, row)
    new = torch.ops.aten.index_add(new, 2, pos, row)
    torch.ops.aten.copy_.default(cache, new)
    return row + 1


def read_before(cache, row, pos):
    old = cache.sum()
    new = torch.ops.aten.index_copy(cache, 2, pos, row)
    torch.ops.aten.copy_.default(cache, new)
    return old


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize(
    ("function", "calls"),
    (
        (index_copy, ["aten.index_copy_.default"]),
        (index_put, ["aten.index_put_.default"]),
        (chained, ["aten.index_copy_.default", "aten.index_add_.default"]),
        (read_before, ["aten.index_copy_.default"]),
    ),
)
def test_partial_writes_become_in_place(function, calls, dtype):
    inputs = (CACHE.to(dtype), ROW.to(dtype), POS)
    before = trace(function, *inputs)
    after = run(before)
    assert [name for name in targets(after) if "_." in name] == calls
    assert not any("copy_.default" in name and "index" not in name for name in targets(after))
    assert_same_results(before, after, inputs)


def test_a_slice_is_written_through_its_view():
    def function(cache, rows):
        new = torch.ops.aten.slice_scatter(cache, rows, 2, 3, 7)
        out = new.sum()
        torch.ops.aten.copy_.default(cache, new)
        return out

    inputs = (CACHE, torch.randn(2, 4, 4, 8))
    before = trace(function, *inputs)
    after = run(before)
    assert targets(after) == ["aten.slice.Tensor", "aten.copy_.default", "aten.sum.default"]
    assert_same_results(before, after, inputs)


def test_a_selected_row_is_written_through_its_view():
    def function(cache, row):
        torch.ops.aten.copy_.default(cache, torch.ops.aten.select_scatter(cache, row, 2, 3))
        return row * 2

    inputs = (CACHE, torch.randn(2, 4, 8))
    before = trace(function, *inputs)
    after = run(before)
    assert targets(after)[:2] == ["aten.select.int", "aten.copy_.default"]
    assert_same_results(before, after, inputs)


def test_a_write_inside_of_a_slice_reaches_the_cache_without_a_copy():
    def function(cache, row, pos):
        part = torch.ops.aten.slice(cache, 0, 0, 1)
        written = torch.ops.aten.index_put(part, [None, None, pos], row[:1])
        torch.ops.aten.copy_.default(cache, torch.ops.aten.slice_scatter(cache, written, 0, 0, 1))
        return row + 1

    inputs = (CACHE, ROW, POS)
    before = trace(function, *inputs)
    after = run(before)
    assert "aten.index_put_.default" in targets(after)
    assert "aten.copy_.default" not in targets(after)
    assert_same_results(before, after, inputs)


def reads_old_after(cache, row, pos):
    view = cache[0]
    new = torch.ops.aten.index_copy(cache, 2, pos, row)
    out = view.sum() + new.sum()
    torch.ops.aten.copy_.default(cache, new)
    return out


def returns_new(cache, row, pos):
    new = torch.ops.aten.index_copy(cache, 2, pos, row)
    torch.ops.aten.copy_.default(cache, new)
    return new[0]


def writes_itself(cache, row, pos):
    new = torch.ops.aten.slice_scatter(cache, cache[:, :, 1:9], 2, 0, 8)
    torch.ops.aten.copy_.default(cache, new)
    return row + 1


def scatters_itself(cache, row, pos):
    index = torch.arange(16).flip(0)[None, None, :, None].expand(cache.shape)
    torch.ops.aten.copy_.default(cache, torch.ops.aten.scatter.src(cache, 2, index, cache))
    return row + 1


def other_source(cache, row, pos):
    torch.ops.aten.copy_.default(cache, torch.ops.aten.index_copy(cache * 2, 2, pos, row))
    return row + 1


def shared_middle(cache, row, pos):
    middle = torch.ops.aten.index_copy(cache, 2, pos, row)
    new = torch.ops.aten.index_add(middle, 2, pos, row)
    out = middle.sum()
    torch.ops.aten.copy_.default(cache, new)
    return out


@pytest.mark.parametrize(
    ("function", "reason"),
    (
        (reads_old_after, "reads the old value"),
        (returns_new, "is returned"),
        (writes_itself, "a view of"),
        (scatters_itself, "reads what it writes into"),
        (other_source, "not a partial write"),
        (shared_middle, "has other readers"),
    ),
)
def test_an_unsafe_write_stays_a_copy_and_says_why(function, reason, caplog):
    inputs = (CACHE, ROW, POS)
    before = trace(function, *inputs)
    with caplog.at_level(logging.DEBUG, logger="rooffuse.passes.reinplace"):
        after = run(before)
    assert reason in caplog.text
    assert targets(after) == targets(before)
    assert_same_results(before, after, inputs)


def test_a_static_cache_is_not_copied():
    cache = torch.zeros(1, 2, 32, 4)

    def step(row, pos):
        cache.index_copy_(2, pos, row)
        return torch.nn.functional.scaled_dot_product_attention(row, cache, cache)

    capture = Capture()
    row, pos = torch.randn(1, 2, 1, 4), torch.tensor([7])
    expected_out = step(row, pos)
    expected = cache.clone()
    cache.zero_()
    with torch.no_grad():
        out = torch.compile(step, backend=capture)(row, pos)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(cache, expected)
    names = targets(capture.after[0])
    assert "aten.index_copy_.default" in names
    assert "aten.copy_.default" not in names
