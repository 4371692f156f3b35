"""Small ATen graphs for tests: traced on fake tensors, as a compiler sees them."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rooffuse.codegen.lower_group import lower_group
from rooffuse.compile import Plan, plan_graph
from rooffuse.cost_model import Device, get_device
from rooffuse.cost_model.detect import describe_cpu
from rooffuse.grouping import Grouping, group_graph, memoised_lowering
from rooffuse.options import Options
from rooffuse.pricing import GroupPricer
from rooffuse.program import CallStep, KernelStep
from rooffuse.step_prices import step_price
from rooffuse.targets import target_for
from rooffuse.units import Units
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["floor_and_steps", "grouped", "groups_of", "lower_group", "planned", "trace"]

#: What is planned for a CPU is the same whatever the machine's clock and caches are.
CPU = describe_cpu({"flags": "avx512f avx512_bf16", "cpu MHz": "3000", "model name": "two cores"}, 2, 1 << 24, 24 << 30)


def _device(name: str) -> Device:
    return CPU if name == "cpu" else get_device(name)


def trace(fn: Callable[..., Any], *args: torch.Tensor) -> GraphModule:
    """The functional ATen graph of ``fn``, input mutations as trailing copies."""
    functional = torch.func.functionalize(fn, remove="mutations")
    return make_fx(functional, tracing_mode="fake")(*args)


def grouped(fn: Callable[..., Any], *args: torch.Tensor, device: str = "h100") -> Grouping:
    gm = trace(fn, *args)
    return group_graph(gm, GroupPricer(Units(gm.graph), _device(device)), memoised_lowering(False))


def groups_of(grouping: Grouping) -> list[list[str]]:
    """Node names of each launch."""
    return [[n.name for n in g.nodes] for g in grouping.groups]


def planned(fn: Callable[..., Any], *args: torch.Tensor, device: str = "h100", **options: Any) -> Plan:
    return plan_graph(trace(fn, *args), target_for(_device(device)), Options(verify=True, **options))


def floor_and_steps(fn: Callable[..., Any], *args: torch.Tensor, written: int) -> tuple[float, int]:
    """Bytes of all launches on a GPU over those of the arguments and the ``written`` ones, and how many launches."""
    target = target_for(get_device("h100"))
    steps = [s for s in planned(fn, *args).program.steps if isinstance(s, KernelStep | CallStep)]
    moved = sum(int(step_price(s, target).cost.bytes) for s in steps)
    return moved / (sum(a.nbytes for a in args) + written), len(steps)
