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


ROWS = torch.tensor([3, 1, 7])
NEW = torch.randn(3, 8)


def flat_rows(cache):
    cache.view(-1, 8)[ROWS] = NEW
    return cache


def twice_through_views(cache):
    cache.view(-1, 8)[ROWS] = NEW
    seen = cache.view(2, -1).exp()
    cache.view(-1)[ROWS] = 3.0
    return seen, cache * 2


def transposed(cache):
    cache.transpose(1, 2)[:, 5] = cache.transpose(1, 2)[:, 5] + 1
    return cache.sum()


def other_type(cache):
    cache.view(torch.int32).view(-1, 8).index_put_((ROWS,), NEW.view(torch.int32))
    return cache.sin()


def layers(cache):
    x = NEW
    for layer in cache.unbind(0):
        layer.view(-1, 8)[ROWS] = x
        x = x + layer.sum()
    return x


def both_halves(cache):
    k, v = cache.chunk(2, 1)
    k[0].index_copy_(1, ROWS, NEW.expand(2, 3, 8))
    v[1, 0].index_add_(0, ROWS, NEW)
    return k.amax(), v.amin()


def a_diagonal(cache):
    cache.diagonal(0, 0, 1)[2:4].fill_(3.0)
    cache.view(-1, 8).scatter_(0, ROWS[:, None].expand(3, 8), NEW)
    return cache.cos()


def from_neighbours(cache):
    cache[:, 1:-1, 2:] -= 0.1 * cache[:, :-2, 1:-1]
    seen = cache[:, 1].sin()
    cache[0, 2:] *= cache[0, :-2]
    return seen, cache.sum()


VIEWED = (from_neighbours, flat_rows, twice_through_views, transposed, other_type, layers, both_halves, a_diagonal)


@pytest.mark.parametrize("function", VIEWED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("offset", [0, 1])
def test_writes_to_views_reach_the_cache_without_a_copy(function, offset):
    """As the compiler's user writes them, on memory that begins with the tensor and in the middle of another."""
    def fresh():
        torch.manual_seed(0)
        return torch.randn(2, *CACHE.shape)[offset]

    capture, expected = Capture(), fresh()
    expected_out = function(expected)
    cache = fresh()
    with torch.no_grad():
        out = torch.compile(function, backend=capture)(cache)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(cache, expected)
    graph = capture.after[0].graph
    whole = [n.name for n in graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)
             if n.args[0].op == "placeholder"]
    assert not whole and any(n.target in WRITES for n in graph.nodes)


WRITES = frozenset({torch.ops.aten.index_put_.default, torch.ops.aten.index_copy_.default,
                    torch.ops.aten.index_add_.default, torch.ops.aten.scatter_.src, torch.ops.aten.copy_.default})


def expanded(cache, row, pos):
    several = torch.ops.aten.expand(torch.ops.aten.unsqueeze(cache, 0), [2, 2, 4, 16, 8])
    new = torch.ops.aten.index_copy(several, 3, pos, torch.stack((row, row + 1)))
    torch.ops.aten.copy_.default(cache, torch.ops.aten.select(new, 0, 0))
    return row + 1


def another_order(cache, row, pos):
    turned = torch.ops.aten.permute(cache[:, :, :8], [0, 1, 3, 2])
    new = torch.ops.aten.slice_scatter(cache, torch.ops.aten.index_copy(turned, 2, pos, row), 2, 0, 8)
    torch.ops.aten.copy_.default(cache, new)
    return row + 1


def part_of_another_state(cache, row, pos):
    part = torch.ops.aten.index_copy(torch.ops.aten.slice(cache, 2, 0, 8), 2, pos, row)
    first = torch.ops.aten.index_copy(cache, 2, pos + 1, row)
    torch.ops.aten.copy_.default(cache, torch.ops.aten.slice_scatter(first, part, 2, 0, 8))
    return row + 1


def source_is_a_state(cache, row, pos):
    first = torch.ops.aten.index_copy(cache, 2, pos, row)
    new = torch.ops.aten.index_copy(first, 2, torch.arange(1, 16), torch.ops.aten.slice(first, 2, 0, 15))
    torch.ops.aten.copy_.default(cache, new)
    return row + 1


@pytest.mark.parametrize("function", [expanded, another_order, part_of_another_state, source_is_a_state],
                         ids=lambda f: f.__name__)
def test_what_is_not_a_write_to_the_same_memory_keeps_its_values(function):
    inputs = (CACHE, ROW, POS)
    before = trace(function, *inputs)
    assert_same_results(before, run(before), inputs)


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


def scaled_after(cache, row, pos):
    torch.ops.aten.copy_.default(cache, torch.ops.aten.index_put(cache, [None, None, pos], row, True) * 2)
    return row + 1


def scaled_in_view(cache, row, pos):
    rows = torch.ops.aten.index_put(cache.view(-1, 8), [pos], row[0, 0])
    total = rows.sum()
    torch.ops.aten.copy_.default(cache, rows.view(2, 4, 16, 8).exp())
    return total


def reads_after_the_end(cache, row, pos):
    middle = torch.ops.aten.index_copy(cache, 2, pos, row)
    torch.ops.aten.copy_.default(cache, middle * 2)
    return middle.sum()


def turned_over(cache, row, pos):
    new = torch.ops.aten.index_copy(cache, 2, pos, row)
    torch.ops.aten.copy_.default(cache, new.view(2, 4, 8, 16).transpose(2, 3))
    return row + 1


def returns_middle(cache, row, pos):
    middle = torch.ops.aten.index_copy(cache, 2, pos, row)
    torch.ops.aten.copy_.default(cache, middle * 2)
    return middle


def reads_old_between(cache, row, pos):
    middle = torch.ops.aten.index_copy(cache, 2, pos, row)
    torch.ops.aten.copy_.default(cache, middle * cache)
    return row + 1


@pytest.mark.parametrize("function", (shared_middle, scaled_after, scaled_in_view))
def test_what_is_overwritten_in_the_end_is_written_before(function):
    inputs = (CACHE, ROW, POS)
    before = trace(function, *inputs)
    after = run(before)
    assert len([t for t in targets(after) if t in ("aten.index_put_.default", "aten.index_copy_.default")]) == 1
    assert "aten.copy_.default" in targets(after)
    assert_same_results(before, after, inputs)


@pytest.mark.parametrize(
    ("function", "reason"),
    (
        (reads_old_after, "reads the old value"),
        (returns_new, "is returned"),
        (writes_itself, "a view of"),
        (scatters_itself, "reads what it writes into"),
        (other_source, "not a partial write"),
        (turned_over, "at other places"),
        (returns_middle, "is returned"),
        (reads_old_between, "reads the old value"),
        (reads_after_the_end, "reads the old value"),
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
