"""What each launch of a program costs, and how long it should take."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from rooffuse.codegen.lower_contractions import is_matrix_product
from rooffuse.codegen.traffic import kernel_traffic
from rooffuse.cost_model import Cost, Estimate, estimate
from rooffuse.cost_model.cost import Unit

from .computing import computing_seconds
from .node_facts import node_price
from .program import CallStep, KernelStep, Program
from .targets import Target


@dataclass(frozen=True)
class StepPrice:
    """What one launch moves and computes; ``dtype`` and ``unit`` choose the peak that bounds it."""

    cost: Cost
    dtype: torch.dtype
    unit: Unit


def step_price(step: KernelStep | CallStep, target: Target) -> StepPrice:
    """A fused kernel by the traffic of its loop IR, a library call by the registry."""
    if isinstance(step, CallStep):
        priced = node_price(step.node)
        return StepPrice(priced.cost, priced.dtype, priced.unit)
    assert step.group.lowered is not None
    read, written = kernel_traffic(step.group.lowered.kernel, target.holds)
    flops = sum(int(node_price(n).cost.flops) for n in step.group.nodes)
    products = [n for n in step.group.nodes if is_matrix_product(n)]
    if products:
        return StepPrice(Cost(flops, read, written), products[0].meta["val"].dtype, "tensor")
    return StepPrice(Cost(flops, read, written), torch.float32, "vector")


def step_estimate(step: KernelStep | CallStep, target: Target) -> Estimate:
    """Predicted time of one launch on the target's device: a fused kernel's by its bytes or its operations, whichever
    take longer. FLOPs alone would count an exponential as one."""
    priced = step_price(step, target)
    found = estimate(priced.cost, target.device, priced.dtype, priced.unit)
    if isinstance(step, CallStep):
        return found
    assert step.group.lowered is not None
    computing = computing_seconds(step.group.lowered.kernel, target.device)
    return Estimate.of(max(found.compute_s, computing), found.memory_s, found.launch_s)


def program_seconds(program: Program, target: Target) -> float:
    """Predicted time of one run: of all launches, one after the other."""
    return sum(step_estimate(s, target).seconds for s in program.steps if isinstance(s, KernelStep | CallStep))
