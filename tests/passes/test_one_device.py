"""What the host holds beside a graph of an accelerator. Graphs are traced with fake CUDA tensors: none is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from rooffuse.compile import Plan, kernel_steps, plan_graph
from rooffuse.cost_model import get_device
from rooffuse.cuda_graphs import decide
from rooffuse.options import Options
from rooffuse.passes import aot_decompositions
from rooffuse.passes.graph import graph_device
from rooffuse.program import CallStep
from rooffuse.targets import target_for
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

CUDA = torch.device("cuda", 0)


def traced(function: Callable[..., Any], *inputs: tuple[Sequence[int], str]) -> GraphModule:
    """``function``'s graph for float32 tensors of (sizes, device)."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = [torch.empty(tuple(sizes), device=device) for sizes, device in inputs]
        return make_fx(function, decomposition_table=aot_decompositions())(*tensors)


def planned(function: Callable[..., Any], *inputs: tuple[Sequence[int], str]) -> Plan:
    return plan_graph(traced(function, *inputs), target_for(get_device("h100")), Options(verify=True))


def calls(plan: Plan) -> list[str]:
    return [str(s.node.target) for s in plan.program.steps if isinstance(s, CallStep)]


def check_kernels(plan: Plan) -> None:
    """Every buffer of every kernel is on the accelerator."""
    for step in kernel_steps(plan.program):
        for node in step.arguments:
            assert node.meta["val"].device == CUDA, node.name
    assert all(n.meta["val"].device == CUDA for n in plan.program.planned)


def test_constants_are_made_in_the_kernel() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        scaled = x * torch.tensor(2.0) + torch.full((), 1).to(x.device)
        return torch.where(torch.arange(8).to(x.device) % 3 < 2, scaled, torch.full((), float("-inf")))

    plan = planned(function, ((4, 8), "cuda"))
    check_kernels(plan)
    (step,) = kernel_steps(plan.program)
    assert not calls(plan) and len(step.arguments) == 2


def test_a_number_of_the_host_is_copied_once() -> None:
    def function(x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * scale, (x + scale).softmax(-1)

    plan = planned(function, ((4, 8), "cuda"), ((), "cpu"))
    check_kernels(plan)
    assert calls(plan) == ["aten._to_copy.default"] and len(kernel_steps(plan.program)) == 1


def test_a_number_that_is_written_in_between_is_copied_twice() -> None:
    def function(x: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = x / count
        count.add_(1)
        return before, x / count

    gm = traced(function, ((4, 8), "cuda"), ((), "cpu"))
    plan = plan_graph(gm, target_for(get_device("h100")), Options(verify=True))
    check_kernels(plan)
    assert calls(plan).count("aten._to_copy.default") == 2


@pytest.mark.parametrize("function", [
    lambda x, host: x + host.to(x.device),
    lambda x, host: (x + 1).to("cpu") * host,
    lambda x, host: (x * 2, (host * 2).softmax(-1), host @ host),
    lambda x, host: torch.ops.aten.copy.default(x, host) * 2,
    lambda x, host: torch.ops.aten.index.Tensor(x, [host.long()]) + 1,
    lambda x, host: torch.cat([x, (host + 1).to(x.device)]).relu(),
], ids=["copied over", "copied back", "computed there", "written over", "positions", "pieces"])
def test_no_kernel_has_memory_of_the_host(function: Callable[..., Any]) -> None:
    plan = planned(function, ((8, 8), "cuda"), ((8, 8), "cpu"))
    check_kernels(plan)
    assert calls(plan)


def test_a_second_accelerator_is_left_to_calls() -> None:
    plan = planned(lambda x, y: (x + 1, (y * 2).exp(), x + y.to(x.device)), ((8, 8), "cuda:0"), ((8, 8), "cuda:1"))
    check_kernels(plan)
    assert calls(plan).count("aten.exp.default") == 1


def test_a_stored_constant_stays_where_it_is_without_the_device() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x - torch.tensor([0.5, 0.25, 0.125]).to(x.device)).relu()

    plan = planned(function, ((4, 3), "cuda"))
    check_kernels(plan)
    assert calls(plan) in ([], ["aten._to_copy.default"])


@pytest.mark.parametrize("function", [lambda x, host: (x + 1).to("cpu"), lambda x, host: x + host.to(x.device)],
                         ids=["copied back", "copied over"])
def test_what_waits_for_the_host_is_not_captured(function: Callable[..., Any]) -> None:
    decision = decide(planned(function, ((8, 8), "cuda"), ((8, 8), "cpu")), Options(cuda_graphs=True))
    assert not decision.captured and "cpu" in decision.reason


def test_a_graph_without_inputs_computes_where_it_makes_its_tensors() -> None:
    assert graph_device(traced(lambda: torch.arange(8, device="cuda").float().cos()).graph) == CUDA


def test_graphs_of_the_host_alone_are_left_as_they_are() -> None:
    gm = traced(lambda x, s: x * s, ((4, 8), "cpu"), ((), "cpu"))
    plan = plan_graph(gm, target_for(get_device("h100")), Options(verify=True))
    assert not calls(plan) and len(kernel_steps(plan.program)[0].arguments) == 3
