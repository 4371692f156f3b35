"""Long chains of writes that are read in between go to memory that is written in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import rooffuse.backend
import torch
from conftest import assert_same_results, targets, trace
from rooffuse.compile import Plan
from rooffuse.cost_model import get_device
from rooffuse.passes import run_passes
from rooffuse.passes.filled_memory import FILLED_MEMORY_PASS, LEAST_WRITES
from rooffuse.passes.graph import storage_roots
from rooffuse.targets import Target
from torch import Tensor

from tests.fuser.graphs import planned
from tests.models.eager import STRICT, same_as_eager

aten = torch.ops.aten
INTERPRETED = Target("triton", get_device("h100"), torch.device("cpu"), interpreted=True)
#: Columns of the shortest chain that goes to memory: the first one isn't written.
SIZE = LEAST_WRITES + 1

Function = Callable[..., Any]


def substitute(a: Tensor) -> Tensor:
    """The inversion of a triangular matrix, row after row, as chunked linear attention has it."""
    for i in range(1, a.shape[-1]):
        row = a[..., i, :i].clone()
        a[..., i, :i] = row + (row.unsqueeze(-1) * a[..., :i, :i].clone()).sum(-2)
    return a


def inverse(a: Tensor) -> Tensor:
    return substitute(-a.tril(-1)) + torch.eye(a.shape[-1])


def columns(a: Tensor, b: Tensor, first: int = 1) -> Tensor:
    """A chain of functional writes that begins with ``a``: each column is made of the one before."""
    for i in range(first, a.shape[-1]):
        column = b[..., i:i + 1] + aten.slice(a, -1, i - 1, i).sin()
        a = aten.slice_scatter(a, column, -1, i, i + 1)
    return a


def of_an_input(a: Tensor, b: Tensor) -> Tensor:
    return columns(a, b)


def of_a_value(a: Tensor, b: Tensor) -> Tensor:
    return columns(a * 2, b) * 3


def read_at_the_end(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """An input is what it was, whoever reads it afterwards."""
    end = columns(a * 1, b)
    return end, (a + end).sum(-1)


def two_chains(a: Tensor, b: Tensor) -> Tensor:
    return columns(a * 2, b) - columns(b + 1, a)


def one_after_another(a: Tensor, b: Tensor) -> Tensor:
    return columns(columns(a, b).cos(), b)


def base_is_read_later(a: Tensor, b: Tensor) -> Tensor:
    base = a.exp()
    return columns(base, b) * base


MOVED = {of_an_input: 1, of_a_value: 1, read_at_the_end: 1, two_chains: 2, one_after_another: 2, base_is_read_later: 1}


def too_short(a: Tensor, b: Tensor) -> Tensor:
    return columns(a, b, 2)


def not_read_in_between(a: Tensor, b: Tensor) -> Tensor:
    for i in range(a.shape[-1]):
        a = aten.slice_scatter(a, b[..., :1] * i, -1, i, i + 1)
    return a


def parts_of_columns(a: Tensor, b: Tensor) -> Tensor:
    """Of each column there is read what is written over."""
    for i in range(1, a.shape[-1]):
        a = aten.select_scatter(a, aten.slice_scatter(aten.select(a, -1, i), b[..., :2, i], -1, 0, 2), -1, i)
    return a


def a_state_is_returned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    half = columns(a, b)
    return half, aten.slice_scatter(half, half[..., :1].exp(), -1, 3, 4)


def an_early_state_is_returned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    first = aten.slice_scatter(a, b[..., :1], -1, 0, 1)
    return columns(first, b), first


def a_state_is_read_later(a: Tensor, b: Tensor) -> Tensor:
    first = aten.slice_scatter(a, b[..., :1], -1, 0, 1)
    return columns(first, b) + first.sum(-1, keepdim=True)


def not_contiguous(a: Tensor, b: Tensor) -> Tensor:
    """What a write of an expanded tensor makes has other strides."""
    return columns(a[0].expand(a.shape), b)


STAY = (too_short, parts_of_columns, not_read_in_between, a_state_is_returned, an_early_state_is_returned,
        a_state_is_read_later, not_contiguous)


def named(fn: Function) -> str:
    return fn.__name__


def lower(*sizes: int) -> Tensor:
    return torch.randn(sizes).tril(-1) / sizes[-1] ** 0.5


def made(size: int = SIZE) -> list[Tensor]:
    return [torch.randn(3, 5, size), torch.randn(3, 5, size)]


def of_full_size(plan: Plan, elements: int) -> int:
    """How many calls make tensors of their own that are as large as the whole."""
    roots = storage_roots(plan.graph.graph)
    return sum(n.op == "call_function" and roots[n] is n and n.meta["val"].numel() >= elements
               for n in plan.graph.graph.nodes)


@pytest.mark.parametrize("device", ["cpu", "h100"])
def test_rows_are_written_without_copies_of_the_whole(device: str) -> None:
    """The tensor before the rows, its lower triangle, their memory and the sum: that is all of its size."""
    plan = planned(inverse, lower(2, 26, 26), device=device)
    found = targets(plan.graph)
    assert not any("_scatter" in name for name in found) and found.count("aten.copy_.default") == 25
    assert of_full_size(plan, 2 * 26 * 26) <= 4


def test_a_triangular_matrix_is_inverted() -> None:
    torch._dynamo.reset()
    run = torch.compile(inverse, backend="rooffuse", options=STRICT)
    for _ in range(2):
        a = lower(3, 30, 30)
        exact = torch.linalg.inv(torch.eye(30, dtype=torch.float64) + a.double())
        found = run(a)
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, inverse(a), rtol=1e-5, atol=1e-6)


def test_a_triangular_matrix_is_inverted_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: INTERPRETED)
    torch._dynamo.reset()
    run, a = torch.compile(inverse, backend="rooffuse", options=STRICT), lower(2, 26, 26)
    torch.testing.assert_close(run(a).double(), inverse(a.double()).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("fn", "chains"), MOVED.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_long_chains_are_written_in_place(fn: Function, chains: int) -> None:
    before = trace(fn, *made())
    after = run_passes(before, [FILLED_MEMORY_PASS])
    found = targets(after)
    assert "aten.slice_scatter.default" not in found and found.count("aten.clone.default") == chains
    assert found.count("aten.copy_.default") == chains * LEAST_WRITES
    assert_same_results(before, after, made())


@pytest.mark.parametrize("fn", STAY, ids=named)
def test_other_chains_stay(fn: Function) -> None:
    before = trace(fn, *made())
    after = run_passes(before, [FILLED_MEMORY_PASS])
    assert targets(after) == targets(before)
    assert_same_results(before, after, made())


def test_a_chain_that_stays_leaves_others_alone() -> None:
    def fn(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return columns(a * 2, b) + 1, *an_early_state_is_returned(b, a)

    before = trace(fn, *made())
    after = run_passes(before, [FILLED_MEMORY_PASS])
    found = targets(after)
    assert found.count("aten.copy_.default") == LEAST_WRITES and found.count("aten.clone.default") == 1
    assert found.count("aten.slice_scatter.default") == SIZE
    assert_same_results(before, after, made())


@pytest.mark.parametrize("fn", [read_at_the_end, an_early_state_is_returned], ids=named)
def test_compiled_chains_do_what_eager_does(fn: Function) -> None:
    """And leave their inputs as they are."""
    same_as_eager(fn, made)


def test_an_input_that_is_written_has_its_new_values() -> None:
    def fn(a: Tensor) -> Tensor:
        for i in range(1, a.shape[-1]):
            a[..., i] = a[..., i] + a[..., i - 1].sin()
        return a.sum(-1)

    same_as_eager(fn, lambda: made()[:1])


@pytest.mark.slow
def test_gradients_are_those_of_eager() -> None:
    torch._dynamo.reset()
    run, grads = torch.compile(of_a_value, backend="rooffuse", options=STRICT), []
    inputs = made()
    for fn in (run, of_a_value):
        leaves = [t.clone().requires_grad_() for t in inputs]
        fn(*leaves).square().sum().backward()
        grads.append([t.grad for t in leaves])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
