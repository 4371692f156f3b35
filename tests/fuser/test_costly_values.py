"""Values that cost more than bytes at GPU sizes: computed in the kernel that needs them where it has them once for many
elements, and once for all in a launch of their own where it would compute them again and again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rooffuse.cost_model import get_device
from rooffuse.program import CallStep, KernelStep
from rooffuse.step_prices import step_price
from rooffuse.targets import target_for
from torch import Tensor

from .graphs import planned

HALF = torch.bfloat16


def angles(length: int, size: int) -> Tensor:
    return torch.arange(length).float()[:, None] / 10000 ** (torch.arange(0, size, 2).float() / size)


def with_positions(x: Tensor) -> Tensor:
    angle = angles(x.shape[1], x.shape[2])
    return x + torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)


def turned(x: Tensor) -> Tensor:
    """Heads that are rotated by angles computed from their positions."""
    angle = angles(x.shape[1], x.shape[-1])
    angle, (a, b) = torch.cat([angle, angle], -1)[:, None], x.chunk(2, -1)
    return x * angle.cos().to(x.dtype) + torch.cat([-b, a], -1) * angle.sin().to(x.dtype)


def normalised_channels(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.mish(F.batch_norm(x, mean, variance))


def decays(step: Tensor, rates: Tensor) -> Tensor:
    return (F.softplus(step.float())[..., None] * -rates.exp()).exp().to(step.dtype)


def counts(x: Tensor) -> Tensor:
    return F.one_hot(x, 256).sum(0)


def biased(scores: Tensor) -> Tensor:
    place = torch.arange(scores.shape[-1])
    distance = (place - place[:, None]).abs().float() + 1
    return F.softmax(scores - distance.log() * distance.sqrt().tanh().erf(), -1)


def positions_normed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(with_positions(x), (x.shape[2],), w, b)


def gates_summed(x: Tensor, gates: Tensor) -> Tensor:
    return (x * gates.sigmoid() + gates.erf()).float().sum(-1)


@pytest.mark.parametrize("fn, inputs, launches", [
    (with_positions, [torch.empty(32, 1024, 1024, dtype=HALF)], 1),
    (turned, [torch.empty(4, 4096, 32, 128, dtype=HALF)], 1),
    (normalised_channels, [torch.empty(64, 64, 112, 112, dtype=HALF), torch.empty(64), torch.empty(64)], 1),
    (decays, [torch.empty(2, 2048, 1024, dtype=HALF), torch.empty(1024, 16)], 1),
    (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), [torch.empty(8, 64, 128, 128, dtype=HALF)], 1),
    (counts, [torch.empty(1 << 22, dtype=torch.int64)], 2),
    (biased, [torch.empty(64, 1024, 1024, dtype=HALF)], 1),
    (positions_normed, [torch.empty(32, 1024, 1024, dtype=HALF), torch.empty(1024), torch.empty(1024)], 1),
    (gates_summed, [torch.empty(64, 512, 1024, dtype=HALF), torch.empty(512, 1024, dtype=HALF)], 1),
])  # fmt: skip
def test_everything_moves_once(fn: Callable[..., Tensor], inputs: list[Tensor], launches: int) -> None:
    plan = planned(fn, *inputs)
    steps = [s for s in plan.program.steps if isinstance(s, KernelStep | CallStep)]
    assert len(steps) == launches
    floor = sum(x.nbytes for x in [*inputs, *[n.meta["val"] for n in plan.graph.graph.output_node().all_input_nodes]])
    moved = sum(step_price(s, target_for(get_device("h100"))).cost.bytes for s in steps)
    assert floor <= moved <= 1.02 * floor


def test_what_each_row_would_compute_anew_is_stored() -> None:
    """A bias of logarithms of distances is computed once for several heads whose rows a program has side by side, but
    not for as many as nothing divides: there it is computed once for all of them, in a kernel of its own."""
    for heads, launches in ((64, 1), (61, 2)):
        steps = planned(biased, torch.empty(heads, 1024, 1024, dtype=HALF)).program.steps
        assert len([s for s in steps if isinstance(s, KernelStep | CallStep)]) == launches
