"""Cumulative sums through the whole compiler, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import rooffuse.backend
import torch
import torch.nn.functional as F
from rooffuse.cost_model import get_device
from rooffuse.targets import Target
from torch import Tensor

from tests.fuser.graphs import groups_of, planned

from .eager import randn, same_as_eager


def _gradient(x: Tensor) -> Any:
    y = (x.sigmoid().cumsum(-1) * x).sum()
    return y.detach(), *torch.autograd.grad(y, x)


def _top_p(x: Tensor) -> Tensor:
    p = F.softmax(x, -1)
    total = p.cumsum(-1)
    return torch.where(total - p > 0.9, 0.0, p)


def _slots(x: Tensor) -> Tensor:
    chosen = F.one_hot(x.argmax(-1), x.shape[-1])
    return (chosen.cumsum(0) * chosen).sum(-1) - 1


def _rays(density: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the samples along rays (Mildenhall et al., 2020): what is left of the light before each."""
    opaque = 1 - torch.exp(-density.relu())
    left = torch.cat([torch.ones_like(opaque[:, :1]), 1 - opaque + 1e-10], -1).cumprod(-1)[:, :-1]
    return opaque * left, (opaque * left).sum(-1)


FUNCTIONS = {
    "rays": _rays, "places": lambda x: x.cummax(1), "smallest": lambda x: x.round().cummin(0),
    "logarithms": lambda x: x.logcumsumexp(1), "offsets": lambda x: F.pad((x > 0).cumsum(1)[:, :-1], (1, 0)),
    "first ones": lambda x: x.cumsum(1)[:, :20] * x[:, :20].mean(1, True), "scalar": lambda x: x.sum().cummax(0),
    "top_p": _top_p, "slots": _slots, "products": lambda x: (x * 0.1 + 1).cumprod(0) * x,
    "both dimensions": lambda x: x.cumsum(0).cumsum(1) + 1, "last": lambda x: x.cumsum(1)[:, -1:] - x.sum(1, True),
    "empty": lambda x: x[:, :0].cumsum(1), "flat": lambda x: x.view(-1).cumsum(0).view_as(x) * 2,
    "largest": lambda x: x.cummax(1).values + 1, "integers": lambda x: (x > 0).cumsum(1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_scans_do_what_eager_does(name: str) -> None:
    same_as_eager(FUNCTIONS[name], randn((9, 33)))


def test_gradient_of_a_scan() -> None:
    same_as_eager(_gradient, lambda: [torch.randn(5, 33, requires_grad=True)])


def test_a_scan_shares_its_kernel_with_what_surrounds_it() -> None:
    assert len(groups_of(planned(_top_p, torch.empty(256, 4096)).grouping)) == 1


def test_scans_of_a_prefix_share_its_kernel() -> None:
    assert len(groups_of(planned(_rays, torch.empty(4096, 128)).grouping)) == 1


def _positions(expert: Tensor) -> Tensor:
    """What the capacity of experts is checked by (Fedus et al., 2021)."""
    chosen = F.one_hot(expert, 64)
    return (chosen.cumsum(0) * chosen).amax(-1) - 1


def test_positions_in_experts_need_no_matrix_of_tokens_and_experts() -> None:
    groups = [g for g in planned(_positions, torch.zeros(16384, dtype=torch.int64)).grouping.groups if g.lowered]
    assert len(groups) == 3 and max(o.meta["val"].numel() for g in groups for o in g.outputs) == 16384


def test_scans_in_parts_through_the_triton_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("triton", get_device("h100"), torch.device("cpu"), interpreted=True)
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: target)
    same_as_eager(_positions, lambda: [torch.randint(0, 64, (4096,))])
    same_as_eager(lambda x: (x * 2).cumsum(1) + 1, lambda: [torch.randint(-9, 9, (2, 40960))])


@pytest.mark.parametrize("interpreted", [False, True])
@pytest.mark.parametrize("scan", [torch.cumsum, torch.logcumsumexp, torch.cumprod])
@pytest.mark.parametrize("shape", [(3, 33), (2, 1500), (2, 70, 9)])
def test_a_scans_end_has_its_bits(scan: Any, shape: tuple[int, ...], interpreted: bool, monkeypatch: Any) -> None:
    def fn(x: Tensor) -> Any:
        whole = scan(x, 1)
        last = whole.narrow(1, shape[1] - 1, 1)
        return whole / last, last * 2, (whole, last + 0)

    if interpreted:
        target = Target("triton", get_device("h100"), torch.device("cpu"), interpreted=True)
        monkeypatch.setattr(rooffuse.backend, "local_target", lambda inputs: target)
    torch._dynamo.reset()
    quotient, doubled, (whole, last) = torch.compile(fn, backend="rooffuse")(torch.rand(shape) * 0.1 + 0.95)
    end = whole.narrow(1, shape[1] - 1, 1)
    assert torch.equal(last, end)
    assert torch.equal(doubled, 2 * end)
    assert bool((quotient.narrow(1, shape[1] - 1, 1) == 1).all())  # whoever divides by the end counts on one
