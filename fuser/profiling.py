"""Measured beside predicted: runs the kernels of a plan one by one and times each."""
from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rooffuse.cost_model import Device
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from .compile import Plan, build
from .explanation import planned_call
from .options import Options, make_options
from .program import OUT_CALLS, CallStep, KernelStep, ViewStep
from .runtime import Arena, Built
from .step_prices import step_estimate, step_price
from .targets import local_target

#: Fewest and most times that a program is run.
ROUNDS = (5, 50)
#: Bytes that are written before each run, more than caches hold: predictions are of traffic from memory.
_EVICTING_BYTES = 1 << 28
#: Part of the machine's memory that inputs and intermediates may take together.
_MEMORY_SHARE = 0.7


class ProfileError(ValueError):
    """A target that can't be timed here; the message says why."""


@dataclass(frozen=True)
class MeasuredKernel:
    """One kernel, predicted and measured, in microseconds.

    ``kind`` is "cpp", "extern" or "fallback". ``roof_us`` is the time that its bytes and FLOPs take at the device's
    rates, without the cost of launching; ``measured_us`` is the best of all rounds: what others on the machine add
    is no part of a kernel's time.
    """

    graph: int
    name: str
    kind: str
    ops: tuple[str, ...]
    bytes: int
    flops: int
    roof_us: float
    predicted_us: float
    measured_us: float

    @property
    def ratio(self) -> float:
        """Measured over predicted; 1.0 where both are nothing."""
        return self.measured_us / self.predicted_us if self.predicted_us else 1.0

    @property
    def error(self) -> float:
        """How far the prediction is off, as a fraction of the measured time."""
        return abs(self.predicted_us - self.measured_us) / self.measured_us if self.measured_us else 0.0

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / (1e-6 * self.measured_us) if self.measured_us else 0.0

    @property
    def flops_per_s(self) -> float:
        return self.flops / (1e-6 * self.measured_us) if self.measured_us else 0.0

    @property
    def roof_share(self) -> float:
        """The part of the measured time that the roof allows: 1.0 is a kernel that runs at it. More than 1.0 means
        that its data came from a cache."""
        return self.roof_us / self.measured_us if self.measured_us else 0.0

    @property
    def lost_us(self) -> float:
        """Microseconds above the roof."""
        return self.measured_us - self.roof_us

    def to_dict(self) -> dict[str, Any]:
        return {"graph": self.graph, "name": self.name, "kind": self.kind, "ops": list(self.ops), "bytes": self.bytes,
                "flops": self.flops, "roof_us": self.roof_us, "predicted_us": self.predicted_us,
                "measured_us": self.measured_us, "ratio": self.ratio, "bytes_per_s": self.bytes_per_s,
                "flops_per_s": self.flops_per_s, "roof_share": self.roof_share, "lost_us": self.lost_us}


@dataclass(frozen=True)
class Profile:
    """What `profile_call` found, kernels in the order of running."""

    device: Device
    kernels: tuple[MeasuredKernel, ...]
    rounds: int

    @property
    def median_error(self) -> float:
        """Median of `MeasuredKernel.error` over kernels; NaN without any."""
        return statistics.median(k.error for k in self.kernels) if self.kernels else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain data, valid JSON."""
        return {"device": self.device.name, "calibrated": self.device.calibrated, "rounds": self.rounds,
                "median_error": self.median_error if self.kernels else None,
                "kernels": [k.to_dict() for k in self.kernels]}

    def text(self, sort: str | None = None, top: int | None = None) -> str:
        """As a table, equal kernels once; see `profile_text.profile_text`."""
        from .profile_text import profile_text

        return profile_text(self, sort, top)

    def __str__(self) -> str:
        return self.text()


def made_up(value: Tensor, generator: torch.Generator) -> Tensor:
    """A tensor with the shape, strides and type of a traced one. Matrices are small random numbers, vectors (norms'
    weights, variances) lie around one, integers are 0 and so valid as any index."""
    size = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride())) if value.numel() else 0
    flat = torch.zeros(size, dtype=value.dtype)
    if value.dtype.is_floating_point and value.dtype.itemsize > 1:
        if value.ndim > 1:
            flat.normal_(0.0, 0.02, generator=generator)
        else:
            flat.uniform_(0.5, 1.5, generator=generator)
    elif value.dtype == torch.bool:
        flat.fill_(True)
    return torch.as_strided(flat, tuple(value.shape), tuple(value.stride()))


class Stepper:
    """Runs the steps of one built plan on the CPU, each under its own clock."""

    def __init__(self, plan: Plan, built: Built) -> None:
        self.program, self.built = plan.program, built
        module = plan.program.fused.module
        generator = torch.Generator().manual_seed(0)
        for name, buffer in list(module.named_buffers()):
            if isinstance(buffer, FakeTensor):
                owner, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(owner), leaf, made_up(buffer, generator))
        self.inputs = {n: made_up(n.meta["val"], generator) if isinstance(n.meta.get("val"), Tensor)
                       else n.meta.get("val") for n in module.graph.nodes if n.op == "placeholder"}
        self.arena = Arena(plan.program, built.slots, torch.device("cpu"))
        self.evicting = torch.zeros(_EVICTING_BYTES // 4, dtype=torch.int32)
        # Results go to the same memory in each round: the pages of new memory would be charged to the kernel.
        self.results = {n: torch.empty_strided(v.shape, v.stride(), dtype=v.dtype)
                        for n in plan.program.fresh if (v := n.meta["val"]) is not None}
        self.kept = {**self.arena.tensors, **self.inputs, **self.results}
        self.dying: dict[int, list[Node]] = {}
        for node, last in plan.program.last_use.items():
            if node not in self.kept:
                self.dying.setdefault(last, []).append(node)

    def run(self) -> list[float]:
        """Seconds of each step; 0.0 for views."""
        self.evicting.add_(1)
        values: dict[Node, Any] = dict(self.kept)
        times = []
        for k, step in enumerate(self.program.steps):
            work = self._work(step, values)
            start = time.perf_counter()
            work()
            took = time.perf_counter() - start
            times.append(0.0 if isinstance(step, ViewStep) else took)
            del work
            for node in self.dying.get(k, ()):
                values.pop(node, None)
        return times

    def _work(self, step: Any, values: dict[Node, Any]) -> Callable[[], Any]:
        if isinstance(step, KernelStep):
            return self._kernel(step, values)
        node = step.node
        if isinstance(step, ViewStep) and node in values:
            return lambda: None
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        if isinstance(step, CallStep) and step.out:
            return lambda: OUT_CALLS[node.target](*args, **kwargs, out=values[node])

        def call() -> None:
            values[node] = node.target(*args, **kwargs)

        return call

    def _kernel(self, step: KernelStep, values: dict[Node, Any]) -> Callable[[], Any]:
        number = self.built.segment_numbers.get(step.name)
        if number is None:
            module = getattr(self.program.fused.module, step.name)
            inputs = [values[n] for n in step.node.args]

            def fallback() -> None:
                made = module(*inputs)
                for result, value in zip(step.results, made):
                    values[result] = value

            return fallback
        for node in step.arguments:
            self.arena.table[self.built.slots[node]] = values[node].data_ptr()
        segment, address = self.built.segment, self.arena.address
        assert segment is not None
        return lambda: segment(number, number + 1, address)


def _available_bytes() -> float:
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _check_size(plan: Plan) -> None:
    values = [n.meta.get("val") for n in plan.program.fused.module.graph.nodes if n.op == "placeholder"]
    needed = sum(v.numel() * v.dtype.itemsize for v in values if isinstance(v, Tensor))
    needed += plan.program.plan.arena_bytes + plan.program.unplanned_bytes
    if needed > _MEMORY_SHARE * _available_bytes():
        raise ProfileError(f"running it takes {needed / 1e9:.1f} GB and this machine has "
                           f"{_available_bytes() / 1e9:.1f} GB; profile a smaller model, or fewer layers of it")


def _measured(plan: Plan, number: int, budget_s: float, options: Options) -> tuple[list[MeasuredKernel], int]:
    _check_size(plan)
    built, _ = build(plan, options)
    stepper = Stepper(plan, built)
    stepper.run()
    start = time.perf_counter()
    first = stepper.run()
    took = time.perf_counter() - start
    rounds = max(ROUNDS[0], min(ROUNDS[1], int(budget_s / max(took, 1e-6))))
    samples = [first, *(stepper.run() for _ in range(rounds - 1))]
    found = []
    for k, step in enumerate(plan.program.steps):
        if isinstance(step, ViewStep):
            continue
        kind, name, nodes = "extern", step.node.name, (step.node,)
        if isinstance(step, KernelStep):
            kind = "cpp" if step.name in built.segment_numbers else "fallback"
            name, nodes = step.name, step.group.nodes
        priced, estimated = step_price(step, plan.target), step_estimate(step, plan.target)
        found.append(MeasuredKernel(
            number, name, kind, tuple(str(n.target).removeprefix("aten.").removesuffix(".default") for n in nodes),
            int(priced.cost.bytes), int(priced.cost.flops), 1e6 * max(estimated.memory_s, estimated.compute_s),
            1e6 * estimated.seconds, 1e6 * min(s[k] for s in samples)))
    return found, rounds


def profile_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
                 budget_s: float = 10.0) -> Profile:
    """Compile ``fn(*args, **kwargs)`` for this machine's CPU, run every kernel of its graphs and time it.

    The function is traced as `explain` traces it and its graphs run on made-up inputs (see `made_up`), so meta tensors
    do. Each round runs all kernels in order and starts with caches that hold none of their data, so that a kernel finds
    there what the ones before it left. Kernels are called one at a time, which adds a call through ctypes, under a
    microsecond, to each generated one. ``budget_s`` is about how long all graphs together are run.

    Raises ProfileError for tensors on a GPU, whose kernels can't be timed yet, and for what doesn't fit in memory.
    """
    target = local_target(())
    planned = planned_call(fn, args, kwargs, target.device)
    plans = {id(plan): (k, plan) for k, (plan, _) in reversed(list(enumerate(planned.calls)))}
    if any(v.device.type == "cuda" for _, plan in plans.values()
           for n in plan.graph.graph.nodes if isinstance(v := n.meta.get("val"), Tensor)):
        raise ProfileError("it has tensors on a GPU, and only the kernels of the CPU are timed so far")
    options = make_options()
    kernels: list[MeasuredKernel] = []
    fewest = ROUNDS[1]
    for number, plan in sorted(plans.values(), key=lambda pair: pair[0]):
        found, rounds = _measured(plan, number, budget_s / len(plans), options)
        kernels += found
        fewest = min(fewest, rounds)
    return Profile(target.device, tuple(kernels), fewest)
