"""Chains of writes that leave nothing of what was there are concatenations; what is written isn't copied first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import assert_same_results, targets, trace
from rooffuse.passes.dce import dce
from rooffuse.passes.pipeline import copy_graph
from rooffuse.passes.redundant import redundant
from rooffuse.passes.verify import verify
from rooffuse.passes.whole_writes import whole_writes
from rooffuse.program import KernelStep
from torch import Tensor
from torch.fx import GraphModule

from tests.fuser.graphs import planned
from tests.models.eager import same_as_eager

aten = torch.ops.aten
#: Slices and rows are written into a tensor.
part, row = aten.slice_scatter.default, aten.select_scatter.default
OLD, NEW = torch.randn(4, 7), torch.randn(4, 7)

Function = Callable[..., Any]


def run(gm: GraphModule, rule: Callable[[GraphModule], GraphModule] = whole_writes) -> GraphModule:
    after = rule(copy_graph(gm))
    after.recompile()
    verify(after)
    return after


def writes(gm: GraphModule) -> int:
    return sum("_scatter" in name for name in targets(gm))


def halves(x: Tensor, y: Tensor) -> Tensor:
    return part(part(x, y[:, :3], 1, 0, 3), y[:, 3:] * 2, 1, 3, 7)


def the_end_first(x: Tensor, y: Tensor) -> Tensor:
    return part(part(part(x, y[:, 5:], 1, 5, 7), y[:, :1], 1, 0, 1), y[:, 1:5], 1, 1, 5)


def rows(x: Tensor, y: Tensor) -> Tensor:
    for k in (2, 0, 3, 1):
        x = row(x, y[k] + k, 0, k)
    return x


def rows_from_the_end(x: Tensor, y: Tensor) -> Tensor:
    for k in (-1, 0, 2, -3):
        x = row(x, y[k] - k, -2, k)
    return x


def columns(x: Tensor, y: Tensor) -> Tensor:
    for k in range(7):
        x = row(x, y[:, 6 - k], -1, k)
    return x


def rows_and_slices(x: Tensor, y: Tensor) -> Tensor:
    return part(row(part(x, y[:2], 0, 0, -2), y[3] * 2, 0, 2), y[2:3], 0, -1)


def without_ends(x: Tensor, y: Tensor) -> Tensor:
    """Ends past the last element, or none."""
    return part(part(x, y[1:], 0, 1), y[:1], 0, None, 1) + part(part(x, y[1:], 0, 1, 1 << 62), y[:1], 0, 0, 1)


def ones_are_read(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What the chain ends with has other readers, and itself goes on."""
    whole = halves(x, y)
    return whole, row(whole * 2, whole[0], 0, 1)


def written_before(x: Tensor, y: Tensor) -> Tensor:
    """What is written over later is never read."""
    return halves(part(x, y[:, 1:3], 1, 2, 4), y)


def the_first_again(x: Tensor, y: Tensor) -> Tensor:
    return row(rows(x, y), y[0] * 3, 0, 2)


def one_chain_in_another(x: Tensor, y: Tensor) -> Tensor:
    return row(row(x[:2], halves(x, y)[0], 0, 0), halves(y, x)[1], 0, 1)


WHOLE = (halves, the_end_first, rows, rows_from_the_end, columns, rows_and_slices, without_ends, written_before,
         the_first_again, one_chain_in_another)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("fn", WHOLE, ids=lambda fn: fn.__name__)
def test_writes_of_all_elements_are_a_concatenation(fn: Function, dtype: torch.dtype) -> None:
    inputs = [(t * 10).to(dtype) for t in (OLD, NEW)]
    before = trace(fn, *inputs)
    after = run(before)
    assert "aten.cat.default" in targets(after) and not writes(after)
    assert_same_results(before, after, inputs)


def test_the_end_of_a_chain_may_be_read_and_written_again() -> None:
    before = trace(ones_are_read, OLD, NEW)
    after = run(before)
    assert "aten.cat.default" in targets(after) and writes(after) == 1
    assert_same_results(before, after, (OLD, NEW))


def test_what_was_read_to_be_written_over_is_read_no_more() -> None:
    """As slices of the tensors in between are when ``x[:, :3] = y`` is traced."""
    def fn(x: Tensor, y: Tensor) -> Tensor:
        first = part(x, y[:, :3], 1, 0, 3)
        aten.slice(first, 1, 3, 7)
        return part(first, y[:, 3:], 1, 3, 7)

    after = run(trace(fn, OLD, NEW))
    assert not writes(after) and targets(after) == ["aten.slice.Tensor", "aten.slice.Tensor", "aten.cat.default"]


def overlapping(x: Tensor, y: Tensor) -> Tensor:
    return part(part(x, y[:, :5], 1, 0, 5), y[:, 3:], 1, 3, 7)


def within_another(x: Tensor, y: Tensor) -> Tensor:
    """As many elements as there are."""
    return part(part(x, y[:, 1:4], 1, 1, 4), y[:, :4], 1, 0, 4)


def one_row_twice(x: Tensor, y: Tensor) -> Tensor:
    for k in (0, 2, 2, 1, 3):
        x = row(x, y[k] + k, 0, k)
    return x


def with_a_gap(x: Tensor, y: Tensor) -> Tensor:
    return part(part(x, y[:, :3], 1, 0, 3), y[:, 4:], 1, 4, 7)


def without_the_first(x: Tensor, y: Tensor) -> Tensor:
    return part(part(x, y[:, 1:3], 1, 1, 3), y[:, 3:], 1, 3, 7)


def in_steps(x: Tensor, y: Tensor) -> Tensor:
    return part(part(x, y[:, ::2], 1, 0, 7, 2), y[:, 1::2], 1, 1, 7, 2)


def along_two_dimensions(x: Tensor, y: Tensor) -> Tensor:
    return part(part(x, y[:3], 0, 0, 3), y[:, 3:], 1, 3, 7)


def of_another_type(x: Tensor, y: Tensor) -> Tensor:
    return part(part(x, y[:, :3].double(), 1, 0, 3), y[:, 3:], 1, 3, 7)


def of_a_narrower_type(x: Tensor, y: Tensor) -> Tensor:
    return part(part(x, y[:, :3].to(torch.int64), 1, 0, 3), y[:, 3:], 1, 3, 7)


def read_in_between(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    first = part(x, y[:, :3], 1, 0, 3)
    return part(first, y[:, 3:], 1, 3, 7), first.sum()


def returned_in_between(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    first = part(x, y[:, :3], 1, 0, 3)
    return part(first, y[:, 3:], 1, 3, 7), first


def read_by_a_later_write(x: Tensor, y: Tensor) -> Tensor:
    first = part(x, y[:, :3], 1, 0, 3)
    return part(first, first[:, :4], 1, 3, 7)


def written_from_two(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    first = part(x, y[:, :3], 1, 0, 3)
    return part(first, y[:, 3:], 1, 3, 7), part(first, x[:, 3:] * 2, 1, 3, 7)


def not_contiguous(x: Tensor, y: Tensor) -> Tensor:
    """A write has the strides of what is written to, a concatenation is contiguous."""
    return part(part(x.t().contiguous().t(), y[:, :3], 1, 0, 3), y[:, 3:], 1, 3, 7)


def nothing_at_all(x: Tensor, y: Tensor) -> Tensor:
    return part(part(x, y[:, :0], 1, 3, 3), y[:, :3], 1, 0, 3)


STAY = {overlapping: 2, within_another: 2, one_row_twice: 5, with_a_gap: 2, without_the_first: 2, in_steps: 2,
        along_two_dimensions: 2, of_another_type: 2, of_a_narrower_type: 2, read_in_between: 2,
        returned_in_between: 2, read_by_a_later_write: 2, written_from_two: 3, not_contiguous: 2, nothing_at_all: 2}


@pytest.mark.parametrize(("fn", "count"), STAY.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_other_writes_stay(fn: Function, count: int) -> None:
    before = trace(fn, OLD, NEW)
    after = run(before)
    assert writes(after) == count and "aten.cat.default" not in targets(after)
    assert_same_results(before, after, (OLD, NEW))


@pytest.mark.parametrize("fn", (rows_and_slices, the_first_again, one_chain_in_another, *STAY),
                         ids=lambda fn: fn.__name__)
def test_compiled_writes_do_what_eager_does(fn: Function) -> None:
    same_as_eager(fn, lambda: [torch.randn(4, 7), torch.randn(4, 7)])


def filled(x: Tensor, out: Tensor) -> Tensor:
    for k in range(x.shape[0]):
        out[k] = x[k] * k
    return out


def filled_pieces(x: Tensor, out: Tensor) -> Tensor:
    out[..., :5] = x[..., 2:].sin()
    out[..., 5:] = x[..., :2].cos()
    return out


def filled_in_part(x: Tensor, out: Tensor) -> Tensor:
    for k in range(1, x.shape[0]):
        out[k] = x[k] - out[k - 1]
    return out


def filled_with_another_type(x: Tensor, out: Tensor) -> Tensor:
    for k in range(x.shape[0]):
        out[k] = (x[k] * 3).to(torch.float64) if k % 2 else 7
    return out


@pytest.mark.parametrize("given", [False, True], ids=["made", "given"])
@pytest.mark.parametrize("fn", (filled, filled_pieces, filled_in_part, filled_with_another_type),
                         ids=lambda fn: fn.__name__)
def test_loops_that_fill_a_tensor_do_what_eager_does(fn: Function, given: bool) -> None:
    """One that the function makes, and one that the caller sees change."""
    if given:
        same_as_eager(fn, lambda: [torch.randn(6, 7), torch.randn(6, 7)])
    else:
        same_as_eager(lambda x: fn(x, torch.full_like(x, 2.0)), lambda: [torch.randn(6, 7)])


@pytest.mark.parametrize("device", ["cpu", "h100"])
def test_a_loop_that_fills_a_tensor_is_one_kernel(device: str) -> None:
    plan = planned(lambda x: filled(x, x.new_zeros(x.shape)), torch.randn(6, 7), device=device)
    step, = plan.program.steps
    assert isinstance(step, KernelStep) and not writes(plan.graph) and "aten.cat.default" in targets(plan.graph)


def copied_row(x: Tensor, y: Tensor) -> Tensor:
    return row(x, aten.copy(x[1], y[2] + 1), 0, 1)


def copied_slice(x: Tensor, y: Tensor) -> Tensor:
    return part(x, aten.copy(x[:, 2:5], y[:, :3] * 2), 1, 2, 5)


def copied_diagonal(x: Tensor, y: Tensor) -> Tensor:
    return aten.diagonal_scatter(x, aten.copy(x.diagonal(), y.diagonal() - 1))


def cast_row(x: Tensor, y: Tensor) -> Tensor:
    return row(x, aten.copy(x[1], (y[2] * 100).to(torch.int32)), 0, 1)


def expanded_row(x: Tensor, y: Tensor) -> Tensor:
    return row(x, aten.copy(x[1], y[2, 3]), 0, 1)


def expanded_slice(x: Tensor, y: Tensor) -> Tensor:
    return part(x, aten.copy(x[:, 2:5], y[0, :3]), 1, 2, 5)


def copy_is_the_base(x: Tensor, y: Tensor) -> Tensor:
    return row(aten.copy(x, y), y[0] * 2, 0, 1)


@pytest.mark.parametrize(("fn", "left"), [
    (copied_row, 0), (copied_slice, 0), (copied_diagonal, 0), (cast_row, 1), (expanded_row, 1), (expanded_slice, 1),
    (copy_is_the_base, 1)], ids=lambda v: getattr(v, "__name__", ""))
def test_what_is_written_is_not_copied_over_what_was_there(fn: Function, left: int) -> None:
    """But where the copy casts or expands."""
    before = trace(fn, OLD, NEW)
    after = run(before, lambda gm: dce(redundant(gm)))
    assert targets(before).count("aten.copy.default") == 1 and targets(after).count("aten.copy.default") == left
    assert_same_results(before, after, (OLD, NEW))
    same_as_eager(fn, lambda: [torch.randn(4, 7), torch.randn(4, 7)])


def test_a_copy_that_others_read_stays_for_them() -> None:
    def fn(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        copied = aten.copy(x[1], y[2] + 1)
        return row(x, copied, 0, 1), copied

    before = trace(fn, OLD, NEW)
    after = run(before, lambda gm: dce(redundant(gm)))
    scattered, = after.graph.find_nodes(op="call_function", target=row)
    assert scattered.args[1].target is not aten.copy.default and "aten.copy.default" in targets(after)
    assert_same_results(before, after, (OLD, NEW))
