"""Losses that look a few elements up: those are computed where they are wanted, and no matrix is stored for them."""
from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rooffuse.compile import kernel_steps
from rooffuse.cost_model import Device, get_device
from rooffuse.pricing import GroupPricer
from rooffuse.program import nbytes
from rooffuse.units import Units

from .graphs import planned, trace

SIZE = 2048


def contrastive(logits: torch.Tensor) -> torch.Tensor:
    """Each row's and each column's own element against the others', as CLIP is trained."""
    label, wide = torch.arange(SIZE), logits.float()
    return (F.cross_entropy(wide, label) + F.cross_entropy(wide.t(), label)) / 2


@pytest.mark.parametrize("device", ["cpu", "h100"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_contrastive_loss_stores_no_matrix(device: str, dtype: torch.dtype) -> None:
    plan = planned(contrastive, torch.empty(SIZE, SIZE, dtype=dtype), device=device)
    steps = kernel_steps(plan.program)
    assert len(steps) <= 3 and all(g.fused for g in plan.grouping.groups)
    assert max(nbytes(r) for s in steps for r in s.results) <= 4 * SIZE * SIZE // 16


def test_rows_and_columns_share_one_read_on_a_gpu() -> None:
    plan = planned(contrastive, torch.empty(SIZE, SIZE, dtype=torch.bfloat16))
    reading = [s for s in kernel_steps(plan.program) if any(
        n.op == "placeholder" and prod(n.meta["val"].shape) == SIZE * SIZE for n in s.arguments)]
    matrices = [nest for nest in reading[0].group.lowered.kernel.nests  # type: ignore[union-attr]
                if prod(a.size for a in nest.axes) >= SIZE * SIZE]
    assert len(matrices) == 1 and matrices[0].strip


def cost_of(fn: Callable[..., Any], *names: str, device: Device) -> tuple[int, int]:
    gm = trace(fn, torch.empty(SIZE, SIZE), torch.empty(SIZE, 1, dtype=torch.int64))
    members = [n for n in gm.graph.nodes if n.name in names]
    users = {u for n in members for u in n.users}
    outputs = [n for n in members if not n.users or n.users.keys() - set(members)] if users - set(members) else []
    cost = GroupPricer(Units(gm.graph), device).cost(members, outputs)
    return int(cost.bytes_read), int(cost.flops)


def test_what_is_only_looked_up_is_priced_by_the_elements() -> None:
    device = get_device("h100")

    def loss(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return (x * 2 + 1).gather(1, at)

    def kept(x: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x * 2 + 1
        return y.gather(1, at), y

    read, flops = cost_of(loss, "mul", "add", "gather", device=device)
    assert read == 4 * SIZE + 8 * SIZE and flops <= 4 * SIZE
    read, flops = cost_of(kept, "mul", "add", "gather", device=device)
    assert read >= 4 * SIZE * SIZE and flops >= 2 * SIZE * SIZE
