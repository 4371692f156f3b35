"""Lists of tensors come apart, and small kernels of independent chains share launches."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rooffuse.passes.foreach import expand_foreach
from rooffuse.passes.verify import verify
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.fuser.graphs import planned
from tests.models.eager import STRICT

SHAPES = [(16,), (32, 16), (7, 5), (), (3, 1, 4)]


def lists(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(s, generator=generator) + 0.5 for s in SHAPES]


CALLS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b, c: torch._foreach_add(a, b, alpha=2), "add scalar": lambda a, b, c: torch._foreach_add(a, 3),
    "add scalars": lambda a, b, c: torch._foreach_add(a, [1.0, 2.0, 3.0, 4.0, 5.0]),
    "add tensor": lambda a, b, c: torch._foreach_add(a, a[3], alpha=0.5),
    "sub": lambda a, b, c: torch._foreach_sub(a, b), "mul tensor": lambda a, b, c: torch._foreach_mul(a, a[3]),
    "div": lambda a, b, c: torch._foreach_div(a, b), "div scalars": lambda a, b, c: torch._foreach_div(a, [2.0] * 5),
    "pow": lambda a, b, c: torch._foreach_pow(a, 3), "pow of number": lambda a, b, c: torch._foreach_pow(0.9, a),
    "pow of lists": lambda a, b, c: torch._foreach_pow(a, b),
    "addcmul": lambda a, b, c: torch._foreach_addcmul(a, b, c),
    "addcmul by": lambda a, b, c: torch._foreach_addcmul(a, b, c, value=0.3),
    "addcdiv by each": lambda a, b, c: torch._foreach_addcdiv(a, b, c, [0.1, 0.2, 0.3, 0.4, 0.5]),
    "lerp": lambda a, b, c: torch._foreach_lerp(a, b, 0.3), "lerp lists": lambda a, b, c: torch._foreach_lerp(a, b, c),
    "maximum": lambda a, b, c: torch._foreach_maximum(a, b), "at most": lambda a, b, c: torch._foreach_minimum(a, 0.9),
    "at least": lambda a, b, c: torch._foreach_clamp_min(a, b), "norm": lambda a, b, c: torch._foreach_norm(a),
    "norm of one": lambda a, b, c: torch._foreach_norm(a, 1), "sqrt": lambda a, b, c: torch._foreach_sqrt(a),
    "neg": lambda a, b, c: torch._foreach_neg(a), "reciprocal": lambda a, b, c: torch._foreach_reciprocal(a),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_tensor_gets_a_call_of_its_own(name: str) -> None:
    inputs = lists(1), lists(2), lists(3)
    gm = make_fx(CALLS[name], tracing_mode="fake")(*inputs)
    before = sum("_foreach" in str(n.target) for n in gm.graph.nodes)
    gm = expand_foreach(gm)
    gm.recompile()
    verify(gm)
    left = sum("_foreach" in str(n.target) for n in gm.graph.nodes)
    assert (before, left) == (1, 0)
    for ours, reference in zip(gm(*inputs), CALLS[name](*inputs), strict=True):
        assert ours.dtype == reference.dtype and ours.stride() == reference.stride()
        torch.testing.assert_close(ours, reference)


def test_a_list_that_is_used_whole_stays() -> None:
    gm = make_fx(lambda a: torch._foreach_neg(a), tracing_mode="fake")(lists(1))
    call = next(n for n in gm.graph.nodes if "_foreach" in str(n.target))
    part = next(u for u in call.users if u.target is operator.getitem)
    part.replace_all_uses_with(call, delete_user_cb=lambda user: user.op == "output")
    gm.graph.erase_node(part)
    expand_foreach(gm)
    assert call in gm.graph.nodes


def adamw(count: int, **options: Any) -> tuple[torch.optim.AdamW, list[Tensor]]:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(SHAPES[k % 5])) for k in range(count)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    return torch.optim.AdamW(parameters, lr=1e-2, **options), parameters


def test_steps_of_many_small_parameters_are_few_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    import rooffuse.compile as compiler

    plans = []
    plan_graph = compiler.plan_graph
    monkeypatch.setattr(compiler, "plan_graph", lambda *a, **k: plans.append(plan_graph(*a, **k)) or plans[-1])
    (ours, mine), (eager, theirs) = adamw(30, foreach=True), adamw(30, foreach=True)
    torch._dynamo.reset()
    step = torch.compile(lambda: ours.step(), backend="rooffuse", options=STRICT)
    for _ in range(3):
        step()
        eager.step()
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b)
    assert plans and all(g.fused for p in plans for g in p.grouping.groups)
    assert all(len(p.grouping.groups) <= 4 for p in plans)


def test_kernels_that_take_time_stay_apart_and_dependent_ones_in_order() -> None:
    def chains(*xs: Tensor) -> list[Tensor]:
        sums = [x.sin().sum() for x in xs]
        return [x * s for x, s in zip(xs, sums)]

    small = [torch.randn(k + 40) for k in range(12)]
    plan = planned(chains, *small)
    assert len(plan.grouping.groups) <= 2
    for ours, reference in zip(plan.fused.module(*small), chains(*small)):
        torch.testing.assert_close(ours, reference)
    large = [torch.empty(4096, 4096) for _ in range(3)]
    groups = planned(lambda *xs: [x.sin() @ x for x in xs], *large).grouping.groups
    assert len([g for g in groups if g.lowered is not None]) == 3
