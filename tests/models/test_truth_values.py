"""Truth values as places, conditions over what is filled in, and numbers that are compared in a narrow type."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import rooffuse.backend
import torch
import torch.nn.functional as F
from rooffuse.cost_model import get_device
from rooffuse.targets import Target
from torch import Tensor

from .eager import same_as_eager

HOST = Target("cpp", get_device("cpu"), torch.device("cpu"))
INTERPRETED = Target("triton", get_device("h100"), torch.device("cpu"), interpreted=True)

PLACES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "compared": lambda x, y: (x > 0).long(),
    "32 bits": lambda x, y: (x > 0).int(),
    "both": lambda x, y: ((x > 0) & (y > 0)).long(),
    "not": lambda x, y: (~(x > 0)).long(),
    "by way of a number": lambda x, y: (x > 0).float().long(),
    "chosen": lambda x, y: torch.where(x > 0, 1, 0),
    "chosen from the end": lambda x, y: torch.where(x > 0, -1, 0),
    "filled": lambda x, y: torch.zeros(64, 256, dtype=torch.long).masked_fill(x > 0, 1),
    "searched": lambda x, y: torch.bucketize(x, torch.tensor([0.0])),
    "reduced": lambda x, y: (torch.stack([x, y]) > 0).any(0).long(),
    "scanned": lambda x, y: ((x > 0).cumsum(1) > 3).long(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float64])
@pytest.mark.parametrize("place", PLACES)
def test_places_that_are_truth_values(place: str, dtype: torch.dtype) -> None:
    """A vectoriser that takes a comparison's mask for the place would look up what is before the table."""
    def looked_up(table: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        at = PLACES[place](x, y)
        return table[at], torch.take(table, at.long())

    same_as_eager(looked_up, lambda: [torch.randint(0, 90, (4,)).to(dtype), torch.randn(64, 256), torch.randn(64, 256)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.bool])
def test_stored_truth_values_as_places(dtype: torch.dtype) -> None:
    same_as_eager(lambda w, z: w.gather(1, z.long()),
                  lambda: [torch.randint(0, 90, (2, 40)).to(dtype), torch.rand(2, 40) > 0.5])


CHOICES: list[Callable[[Tensor], Any]] = [
    lambda x: torch.where(torch.arange(12) < 10, F.pad(x, (0, 2), value=5.0), 0.0),
    lambda x: torch.where(torch.arange(12) < 10, torch.cat((x, torch.full((7, 2), -1.0)), 1), 0.0),
    lambda x: torch.where(torch.arange(12) < 10, F.pad(x, (0, 2), value=float("-inf")), 0.0).sum(-1),
    lambda x: (F.pad(x, (0, 2), value=float("-inf")).softmax(1)
               * torch.where(torch.arange(12) < 10, F.pad(x, (0, 2), value=float("-inf")), 0.0)).sum(1),
    lambda x: torch.where(torch.arange(12) < 10, torch.where(torch.arange(12) < 10, F.pad(x, (0, 2)), 5.0), 0.0),
]


@pytest.mark.parametrize("target", [HOST, INTERPRETED], ids=lambda t: t.language)
@pytest.mark.parametrize("choice", range(len(CHOICES)))
def test_what_is_filled_in_is_chosen_by_the_condition(choice: int, target: Target,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """The condition is that of the load, whose value elsewhere isn't that of the choice."""
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: target)
    same_as_eager(CHOICES[choice], lambda: [torch.randn(7, 10)])


def _comparisons(x: Tensor) -> Any:
    return x == 0.3, x != 0.1, x > 99.99, x <= -0.7, x.eq(257), x.ge(0.30001), torch.where(x >= 0.1001, x, 0)


def _with_others(x: Tensor, whole: Tensor, scalar: Tensor, wide: Tensor) -> Any:
    return x == whole, x >= whole, x >= scalar, x == wide


def _gradients(x: Tensor) -> Any:
    x = x.detach().requires_grad_()
    loss = (x.clamp(max=0.3) + F.threshold(x, 0.3, 0.0) + F.hardtanh(x, -0.7, 0.1)).float().sum()
    return torch.autograd.grad(loss, x)


@pytest.mark.parametrize("target", [HOST, INTERPRETED], ids=lambda t: t.language)
@pytest.mark.parametrize("eager_casts", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fn", [_comparisons, _with_others, _gradients], ids=lambda f: f.__name__)
def test_numbers_are_compared_in_the_type_of_the_tensor(fn: Callable[..., Any], dtype: torch.dtype, eager_casts: bool,
                                                        target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: target)
    # Triton's interpreter cuts a number off where it should round it: these are rounded towards zero.
    others = [torch.tensor([257, 0, 100, -1, 5]), torch.tensor(100.2), torch.tensor(-0.7, dtype=torch.float64)]
    x = torch.tensor([256.0, 0.3, 100.0, -0.7, 0.1], dtype=dtype)
    same_as_eager(fn, lambda: [x.clone(), *(others if fn is _with_others else ())], eager_casts=eager_casts)
