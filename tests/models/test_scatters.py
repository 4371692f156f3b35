"""Scatters through the whole compiler: fused with what makes their values, the same as eager, never out of bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rooffuse.cost_model import get_device
from rooffuse.targets import Target
from torch import Tensor

from tests.fuser.graphs import Options, groups_of, plan_graph, planned, trace

from .eager import Make, same_as_eager

aten = torch.ops.aten


def integers(high: int, *shape: int, low: int = 0) -> Tensor:
    return torch.randint(low, high, shape)


def _expert_outputs(x: Tensor, gate: Tensor, rows: Tensor) -> Tensor:
    return torch.zeros(20, 16).index_add(0, rows, (x * gate).relu())


def _cache_with_rope(cache: Tensor, k: Tensor, position: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = k.shape[-1] // 2
    turned = k * cos + torch.cat([-k[..., half:], k[..., :half]], -1) * sin
    cache[:, :, position] = turned
    return cache.sum()


def _embedding_gradient(weight: Tensor, tokens: Tensor, target: Tensor) -> Any:
    loss = (F.embedding(tokens, weight, padding_idx=2) * target).sum()
    return torch.autograd.grad(loss, weight)


def _picked_log_probability(x: Tensor, labels: Tensor) -> Any:
    loss = -x.log_softmax(-1).gather(-1, labels[:, None]).mean()
    return loss.detach(), *torch.autograd.grad(loss, x)


def _read_before_and_after(x: Tensor, rows: Tensor, v: Tensor) -> Any:
    before = x.sum(1)
    y = (x * 2).index_add(0, rows, v)
    return before, y + 1, x * 3


def _twice(x: Tensor, i: Tensor, v: Tensor) -> Tensor:
    return (x.index_add(0, i, v.sin()).index_add(0, i, v.cos()) * 2).sum(0)


def _both_kept(x: Tensor, i: Tensor, v: Tensor) -> Any:
    y = x + 1
    return y, y.index_add(0, i, v * 2)


CALLS: dict[str, tuple[Callable[..., Any], Make]] = {
    "experts": (_expert_outputs, lambda: [torch.randn(60, 16), torch.rand(60, 1), integers(20, 60)]),
    "cache": (_cache_with_rope, lambda: [torch.randn(2, 4, 32, 8), torch.randn(2, 4, 3, 8), torch.tensor([4, 9, 31]),
                                         torch.randn(3, 8), torch.randn(3, 8)]),
    "embedding": (_embedding_gradient, lambda: [torch.randn(12, 8, requires_grad=True), integers(12, 4, 6),
                                                torch.randn(4, 6, 8)]),
    "picked": (_picked_log_probability, lambda: [torch.randn(9, 33, requires_grad=True), integers(33, 9)]),
    "read": (_read_before_and_after, lambda: [torch.randn(9, 4), integers(9, 30), torch.randn(30, 4)]),
    "twice": (_twice, lambda: [torch.randn(9, 4), integers(9, 30), torch.randn(30, 4)]),
    "both": (_both_kept, lambda: [torch.randn(9, 4), integers(9, 30), torch.randn(30, 4)]),
    "mask": (lambda x, m: (x * 2).index_put((m > 1,), torch.tensor(-1.0)), lambda: [torch.randn(5, 7),
                                                                                   integers(3, 5, 7)]),
    "mask of rows": (lambda x, m: (x * 2).index_put((m > 1,), torch.tensor(-1.0)), lambda: [torch.randn(5, 7),
                                                                                           integers(3, 5)]),
    "mask in place": (lambda x, m: x.mul_(2).masked_fill_(m > 1, 3).index_put_((m > 0,), torch.tensor(7.0)).sum(),
                      lambda: [torch.randn(5, 7), integers(3, 5, 7)]),
    "scalar": (lambda x, i: x.scatter(1, i, 3.0) + 1, lambda: [torch.randn(5, 7), integers(7, 5, 2)]),
    "part of source": (lambda x, i, v: x.scatter_add(1, i, v.exp()), lambda: [torch.randn(5, 7), integers(7, 3, 2),
                                                                            torch.randn(4, 6)]),
    "filled": (lambda x, i: x.index_fill(-1, i, 2.0), lambda: [torch.randn(5, 7), integers(7, 3)]),
    "one hot": (lambda i: torch.zeros(6, 9).scatter(1, i[:, None], 1.0) * 2, lambda: [integers(9, 6)]),
    "few hot": (lambda i: torch.zeros(6, 9).scatter(1, i, 1.0) * 2, lambda: [integers(9, 6, 3)]),
    "few values": (lambda x: torch.full((6, 9), 2.0).scatter(0, x.topk(4, 0).indices, x.exp()), lambda: [
        torch.randn(6, 9)]),
    "few added": (lambda i, v: torch.ones(6, 9).scatter_add(1, i, v), lambda: [integers(9, 6, 5), torch.randn(6, 5)]),
    "one hot added": (lambda i, v: torch.ones(6, 9).scatter_add(1, i, v), lambda: [
        integers(9, 6, 1), torch.randn(6, 2)]),
    "reduced": (lambda x, i, v: x.scatter_reduce(0, i, v * 2, "sum"), lambda: [torch.randn(7), integers(7, 40),
                                                                              torch.randn(40)]),
    "mean": (lambda x, i, v: x.scatter_reduce(0, i, v * 2, "mean"), lambda: [torch.randn(7), integers(7, 40),
                                                                            torch.randn(40)]),
    "put broadcast": (lambda x, i, v: aten.index_put(x, [None, i], v.sin(), True),
                      lambda: [torch.randn(5, 7), integers(7, 30), torch.randn(1)]),
    "counted": (lambda i: torch.zeros(10, dtype=torch.int64).index_add(0, i, torch.ones_like(i)),
                lambda: [integers(10, 500)]),
    "sixteen bits": (lambda x, i, v: x.index_add(0, i, v * 2), lambda: [
        torch.randn(9, 4).bfloat16(), integers(9, 30), torch.randn(30, 4).bfloat16()]),
    "transposed": (lambda x, i, v: x.t().index_add(0, i, v.sin()) + 1, lambda: [torch.randn(4, 9), integers(9, 30),
                                                                               torch.randn(30, 4)]),
    "expanded": (lambda x, i, v: x.expand(9, 4).index_add(0, i, v.sin()), lambda: [torch.randn(4), integers(9, 30),
                                                                                  torch.randn(30, 4)]),
    "zero-dimensional": (lambda x, v: x.scatter(0, torch.tensor(0), v * 2), lambda: [torch.randn(()), torch.randn(())]),
    "one row by a 0-dim index": (lambda x, v: aten.index_put(x, [torch.tensor(3)], v.sin(), True),
                                 lambda: [torch.randn(5, 4), torch.randn(4)]),
    "one row of a gradient": (_embedding_gradient, lambda: [torch.randn(12, 8, requires_grad=True), torch.tensor(5),
                                                            torch.randn(8)]),
    "its own source": (lambda x, i: (y := x.sin()).scatter_add(0, i, y) * 2,
                       lambda: [torch.randn(3, 32, 13), integers(3, 1, 32, 13)]),
    "into itself": (lambda x, i: x.copy_(x.scatter_add(0, i, x)) * 2, lambda: [torch.randn(3, 5), integers(3, 2, 5)]),
    "empty": (lambda x, i, v: x.index_add(0, i, v * 2), lambda: [torch.randn(9, 4), integers(9, 0), torch.randn(0, 4)]),
}


@pytest.mark.parametrize("name", CALLS)
def test_scatters_do_what_eager_does(name: str) -> None:
    same_as_eager(*CALLS[name])


@pytest.mark.parametrize("fn,inputs", [
    (lambda x, i: torch.zeros(3, 9).scatter(1, i, x * 2), [torch.randn(3, 1), torch.tensor([[1], [9], [4]])]),
    (lambda x, i: torch.zeros(2, 9).scatter(1, i, x * 2), [torch.randn(2, 2), torch.tensor([[1, 2], [9, 4]])]),
    (lambda x, i: x.index_add(0, i, x.sin()), [torch.randn(3, 4), torch.tensor([0, 3, 1])]),
    (lambda x, i: aten.index_put(x, [i], x.sin()), [torch.randn(3, 4), torch.tensor([0, -4, 1])]),
], ids=["selection", "selections", "rows", "put"])
def test_a_place_outside_raises(fn: Callable[..., Any], inputs: list[Tensor]) -> None:
    torch._dynamo.reset()
    with pytest.raises(IndexError):
        torch.compile(fn, backend="rooffuse", options={"strict": True})(*inputs)


def _kernels(fn: Callable[..., Any], *inputs: Tensor, device: str = "h100") -> list[list[str]]:
    return groups_of(planned(fn, *inputs, device=device).grouping)


def test_what_makes_the_value_and_the_place_is_computed_in_the_store() -> None:
    inputs = [torch.randn(60, 16), torch.rand(60, 1), integers(20, 60)]
    groups = _kernels(_expert_outputs, *inputs)
    assert len(groups) == 2 and groups[1] == ["mul", "relu", "index_add__default"]


def test_a_picked_gradient_is_never_stored_as_zeros() -> None:
    fn = CALLS["one hot"][0]
    assert len(_kernels(fn, integers(9, 6))) == 1


def test_a_base_that_nothing_else_reads_is_written_in_place() -> None:
    def fn(x: Tensor, i: Tensor, v: Tensor) -> Tensor:
        return (x * 2).index_add(0, i, v)

    names = [n.name for n in planned(fn, torch.randn(9, 4), integers(9, 30), torch.randn(30, 4)).graph.graph.nodes]
    assert "index_add__default" in names and not any("clone" in n for n in names)
    names = [n.name for n in planned(_both_kept, torch.randn(9, 4), integers(9, 30),
                                     torch.randn(30, 4)).graph.graph.nodes]
    assert "index_add__default" in names and any("clone" in n for n in names)


def test_deterministic_sums_on_a_gpu_are_library_calls() -> None:
    inputs = [torch.randn(9, 64), integers(9, 30), torch.randn(30, 64)]
    kinds = []
    for deterministic in (False, True):
        target = Target("triton", get_device("h100"), torch.device("cpu"), deterministic=deterministic)
        plan = plan_graph(trace(lambda x, i, v: x.index_add(0, i, v.sin()), *inputs), target, Options(verify=True))
        kinds.append([g.fused for g in plan.grouping.groups if any("index_add" in n.name for n in g.nodes)])
    assert kinds == [[True], [False]]


def test_a_value_that_is_written_into_later_keeps_its_memory() -> None:
    """The buffer of a scatter's base may not be that of an input which dies where the scatter runs."""
    def fn(x: Tensor, w: Tensor, i: Tensor, v: Tensor) -> Tensor:
        base, rows = x @ w, v @ w
        return base.index_add(0, i, rows.sin()) @ w

    same_as_eager(fn, lambda: [torch.randn(30, 8), torch.randn(8, 8), integers(30, 30), torch.randn(30, 8)])
