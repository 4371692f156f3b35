"""In which order merges are tried, and how often a large group is lowered on the way to all of them."""
from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from rooffuse.compile import kernel_steps
from rooffuse.extract import GroupGraph
from rooffuse.grouping import Grouper
from torch import Tensor

from tests.fuser.graphs import planned


def turned(x: Tensor) -> Tensor:
    """Unrolled geometry: rotations from their axes, and quaternions from these by four formulas of nine entries."""
    length = (x * x).sum(-1).sqrt()
    a, b, c = (x / length[:, None]).unbind(-1)
    cos, sin = length.cos(), length.sin()
    k = 1 - cos
    entries = (cos + a * a * k, a * b * k - c * sin, b * sin + a * c * k, c * sin + a * b * k, cos + b * b * k,
               -a * sin + b * c * k, -b * sin + a * c * k, a * sin + b * c * k, cos + c * c * k)
    m = torch.stack(entries, -1).chunk(9, -1)
    found = torch.zeros_like(m[0])
    for first, second, third in permutations((0, 4, 8)):
        root = torch.sqrt((1 + m[first] - m[second] - m[third]).clamp(min=1e-6))
        parts = torch.cat([root / 2, (m[1] + m[3]) / root, (m[2] + m[6]) / root, (m[5] - m[7]) / root], -1)
        found = torch.where(m[first] > m[second], parts, found)
    return found


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many operators each group had that was lowered."""
    sizes: list[int] = []
    made = Grouper.__init__

    def counting(self: Grouper, gm: Any, pricer: Any, lower: Callable[[GroupGraph], Any]) -> None:
        def counted(group: GroupGraph) -> Any:
            sizes.append(len(group.body))
            return lower(group)

        made(self, gm, pricer, counted)

    monkeypatch.setattr(Grouper, "__init__", counting)
    return sizes


@pytest.mark.parametrize("device", ["cpu", "h100"])
def test_a_large_group_is_not_lowered_anew_with_each_of_its_neighbours(device: str, lowered: list[int]) -> None:
    plan = planned(turned, torch.empty(4096, 3), device=device)
    operators = sum(n.op == "call_function" for n in plan.graph.graph.nodes)
    assert len(kernel_steps(plan.program)) <= 3
    assert operators > 80 and sum(n > operators // 4 for n in lowered) < operators // 2


def test_of_merges_that_save_the_same_time_the_one_that_moves_fewer_bytes_comes_first() -> None:
    """Exponentials take a CPU longer than their bytes, so that to read a matrix once for both seems to save nothing."""
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.logsumexp(0), x.logsumexp(1)

    plan = planned(both, torch.empty(1024, 1024), device="cpu")
    reading = [s for s in kernel_steps(plan.program) if any(n.op == "placeholder" for n in s.arguments)]
    assert len(reading) == 1


def test_many_small_slices_are_not_lowered_together_again_and_again(lowered: list[int]) -> None:
    """Rank correlation: each number against all before it, one sum for each; what is read again grows with each sum."""
    def agreeing(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([((x[i] - x[:i]).sign() * (y[i] - y[:i]).sign() == 1).sum() for i in range(1, 40)]).sum()

    plan = planned(agreeing, torch.empty(40), torch.empty(40), device="cpu")
    groups = len(kernel_steps(plan.program))
    assert groups <= 2 and sum(n > 64 for n in lowered) < 100
