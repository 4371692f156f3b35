"""What was chosen from computed values is found in them again, wherever they are read."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def _probabilities(x: Tensor) -> Tensor:
    return (x * 3).softmax(-1)


def _experts(x: Tensor) -> Any:
    p = _probabilities(x)
    values, places = p.topk(3, -1)
    return p.gather(-1, places) == values, p[1:].mean()


def _sorted(x: Tensor) -> Any:
    p = _probabilities(x)
    values, places = p.sort(-1)
    return p.gather(-1, places) == values, (p[1:] > p[1:2]).sum()


def _most_likely(x: Tensor) -> Any:
    p = _probabilities(x)
    return (p >= p.topk(26, -1).values[..., -1:]).sum(-1) == 26, (p[1:] > p[1:2]).sum()


def _middle(x: Tensor) -> Any:
    p = _probabilities(x)
    return (p == p.median(-1, keepdim=True).values).any(-1), p.sum(0), (p * p).sum(0)


def _logarithms(x: Tensor) -> Any:
    """Functions of the vector library, of many numbers and of few of them."""
    values = torch.log10(x.abs() + 0.1).sort(-1).values
    return (values == torch.log10(x[:, -1:].abs() + 0.1)).any(-1), values.sum()


@pytest.mark.parametrize("choose", [_experts, _sorted, _most_likely, _middle, _logarithms])
def test_chosen_values_are_found(choose: Callable[[Tensor], Any]) -> None:
    for seed in range(4):
        x = torch.randn(33, 130, generator=torch.Generator().manual_seed(seed))
        torch._dynamo.reset()
        found = torch.compile(choose, backend="rooffuse", fullgraph=True)(x)
        assert found[0].all()
        torch.testing.assert_close(found[1:], choose(x)[1:])


def test_a_row_reaches_the_largest_sum_of_few() -> None:
    """The few rows' sums are written out for their maximum, and not in the order in which each row adds up."""
    def reached(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        x = (a * b).exp() * c.sigmoid()
        sums = x.sum(-1)
        return (sums == sums.amax()).any() & (sums >= sums.amax()).any(), x.amax(-1)

    compiled = torch.compile(reached, backend="rooffuse", fullgraph=True)
    for seed in range(20):
        new = torch.Generator().manual_seed(seed)
        assert compiled(*(torch.randn(7, 13, generator=new) for _ in range(3)))[0]


@pytest.mark.parametrize("width", [11, 13, 64])
def test_places_of_maxima_beside_truth_values(width: int) -> None:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x > 1.5).any(1), x.argmax(1)

    x = torch.randn(30, 7, width)
    ours = torch.compile(both, backend="rooffuse", fullgraph=True, options={"strict": True})(x)
    for mine, theirs in zip(ours, both(x)):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("reduce", ["amax", "amin"])
@pytest.mark.parametrize("kind", ["scatter", "index"])
def test_gradients_find_what_was_chosen_among_scattered_values(kind: str, reduce: str) -> None:
    """Both what was there and what was scattered are computed from sums, which a gradient might add up otherwise."""
    places = torch.arange(8).remainder(2)

    def chosen(x: Tensor, weight: Tensor) -> Tensor:
        y = x - x.mean((1, 2, 3), keepdim=True)
        z = (y.sum((1, 0), keepdim=True) * y).tanh()
        if kind == "index":
            return z.index_reduce(2, places, (z * -0.5).repeat(1, 1, 4, 1), reduce) @ weight
        at = torch.arange(16).remainder(2).view(2, 2, 1, 4)
        return z.scatter_reduce(2, at, z * -0.5, reduce) @ weight

    torch._dynamo.reset()
    compiled = torch.compile(chosen, backend="rooffuse", fullgraph=True)
    for seed in range(6):
        torch.manual_seed(seed)
        inputs = torch.randn(2, 2, 2, 4, requires_grad=True), torch.randn(4, 3, requires_grad=True)
        ours, theirs = (torch.autograd.grad(fn(*inputs).sum(), inputs) for fn in (compiled, chosen))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
