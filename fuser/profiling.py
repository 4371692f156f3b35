"""Measured beside predicted: runs the kernels of a plan one by one and times each."""
from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rooffuse.cost_model import Device, local_device
from torch import Tensor

from .autotune import chosen_candidates
from .compile import Plan, build, tune
from .explanation import chosen_device, planned_call
from .options import Options, make_options
from .program import KernelStep, ViewStep
from .step_prices import step_estimate, step_price
from .step_trace import step_activity, traced_events
from .stepper import Stepper

#: Fewest and most times that a program is run.
ROUNDS = (5, 50)
#: Part of the machine's memory that inputs and intermediates may take together.
_MEMORY_SHARE = 0.7


class ProfileError(ValueError):
    """A target that can't be timed here; the message says why."""


@dataclass(frozen=True)
class MeasuredKernel:
    """One kernel, predicted and measured, in microseconds.

    ``kind`` is "cpp", "triton", "extern" or "fallback". ``roof_us`` is the time that its bytes and FLOPs take at the
    device's rates, without the cost of launching; ``measured_us`` is the best of all rounds on a CPU, where others
    disturb, and the median on a GPU; ``launched`` are the names of what ran there.
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
    launched: tuple[str, ...] = ()

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
                "flops_per_s": self.flops_per_s, "roof_share": self.roof_share, "lost_us": self.lost_us,
                "launched": list(self.launched)}


@dataclass(frozen=True)
class Profile:
    """What `profile_call` found, kernels in the order of running."""

    device: Device
    kernels: tuple[MeasuredKernel, ...]
    rounds: int

    @property
    def of_rounds(self) -> str:
        """Which of its rounds a time is: "best" or "median"."""
        return "best" if self.device.kind == "cpu" else "median"

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


def _available_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _check_size(plan: Plan, device: torch.device) -> None:
    values = [n.meta.get("val") for n in plan.program.fused.module.graph.nodes if n.op == "placeholder"]
    needed = sum(v.numel() * v.dtype.itemsize for v in values if isinstance(v, Tensor))
    needed += plan.program.plan.arena_bytes + plan.program.unplanned_bytes
    there = _available_bytes(device)
    if needed > _MEMORY_SHARE * there:
        where = "this GPU has free" if device.type == "cuda" else "this machine has"
        raise ProfileError(f"running it takes {needed / 1e9:.1f} GB and {where} {there / 1e9:.1f} GB; profile a "
                           "smaller model, or fewer layers of it")


@dataclass(frozen=True)
class _Timed:
    """Seconds of each step, what it launched, and how many runs that comes from."""

    seconds: tuple[float, ...]
    launched: tuple[tuple[str, ...], ...]
    rounds: int


def _rounds(took_s: float, budget_s: float) -> int:
    return max(ROUNDS[0], min(ROUNDS[1], int(budget_s / max(took_s, 1e-6))))


def _by_clock(stepper: Stepper, budget_s: float) -> _Timed:
    """The best of all runs: what others on the machine add is no part of a kernel's time."""
    stepper.run()
    start = time.perf_counter()
    first = stepper.run()
    rounds = _rounds(time.perf_counter() - start, budget_s)
    samples = [first, *(stepper.run() for _ in range(rounds - 1))]
    return _Timed(tuple(map(min, zip(*samples))), ((),) * len(first), rounds)


def _by_profiler(stepper: Stepper, budget_s: float) -> _Timed:
    """The median of all runs, by the durations that torch.profiler gives for what each step launched."""
    stepper.run_in_ranges()  # compiles, and warms libraries up
    torch.cuda.synchronize()
    start = time.perf_counter()
    stepper.run_in_ranges()
    torch.cuda.synchronize()
    rounds = _rounds(time.perf_counter() - start, budget_s)

    def work() -> None:
        for _ in range(rounds):
            stepper.run_in_ranges()
        torch.cuda.synchronize()

    found = step_activity(traced_events(work))
    if not any(a.launched for several in found.values() for a in several):
        raise ProfileError("torch.profiler saw no kernel on the GPU; its counters may be for administrators only "
                           "(see NVIDIA's ERR_NVGPUCTRPERM), or another profiler is running")
    steps = [found.get(k, []) for k in range(len(stepper.program.steps))]
    return _Timed(tuple(1e-6 * statistics.median([a.device_us for a in several] or [0.0]) for several in steps),
                  tuple(several[-1].launched if several else () for several in steps), rounds)


def _measured(plan: Plan, number: int, budget_s: float, options: Options) -> tuple[list[MeasuredKernel], int]:
    device = plan.target.torch_device
    _check_size(plan, device)
    built, _ = build(plan, options, chosen_candidates(tune(plan, options)))
    stepper = Stepper(plan, built, device)
    timed = _by_profiler(stepper, budget_s) if device.type == "cuda" else _by_clock(stepper, budget_s)
    found = []
    for k, step in enumerate(plan.program.steps):
        if isinstance(step, ViewStep):
            continue
        kind, name, nodes = "extern", step.node.name, (step.node,)
        if isinstance(step, KernelStep):
            there = step.name in built.segment_numbers or step.name in built.launches
            kind = plan.target.language if there else "fallback"
            name, nodes = step.name, step.group.nodes
        priced, estimated = step_price(step, plan.target), step_estimate(step, plan.target)
        found.append(MeasuredKernel(
            number, name, kind, tuple(str(n.target).removeprefix("aten.").removesuffix(".default") for n in nodes),
            int(priced.cost.bytes), int(priced.cost.flops), 1e6 * max(estimated.memory_s, estimated.compute_s),
            1e6 * estimated.seconds, 1e6 * timed.seconds[k], timed.launched[k]))
    return found, timed.rounds


def profile_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
                 budget_s: float = 10.0, device: str | None = None) -> Profile:
    """Compile ``fn(*args, **kwargs)`` for this machine's CPU or GPU, run every kernel of its graphs and time it.

    The function is traced as `explain` traces it and its graphs run on made-up inputs (see `stepper.made_up`), so meta
    tensors do. Each round runs all kernels in order and starts with caches that hold none of their data, so that a
    kernel finds there what the ones before it left. Kernels are called one at a time. On a CPU each is under a clock,
    and a call through ctypes adds under a microsecond to each generated one; on a GPU torch.profiler gives the
    durations of what each step launched. ``budget_s`` is about how long all graphs together are run.

    ``device`` is "cpu" or "cuda"; by default the GPU if a tensor is there, else the CPU.

    Raises ProfileError for a device that isn't there, for tensors on another one, and for what doesn't fit in memory.
    """
    here = _torch_device(device, (fn, args, kwargs))
    local = local_device(here.type)
    planned = planned_call(fn, args, kwargs, local, here)
    plans = {id(plan): (k, plan) for k, (plan, _) in reversed(list(enumerate(planned.calls)))}
    if here.type == "cpu" and any(v.device.type == "cuda" for _, plan in plans.values()
                                  for n in plan.graph.graph.nodes if isinstance(v := n.meta.get("val"), Tensor)):
        raise ProfileError("it has tensors on a GPU; profile it there with --device cuda")
    options = make_options()
    kernels: list[MeasuredKernel] = []
    fewest = ROUNDS[1]
    for number, plan in sorted(plans.values(), key=lambda pair: pair[0]):
        found, rounds = _measured(plan, number, budget_s / len(plans), options)
        kernels += found
        fewest = min(fewest, rounds)
    return Profile(local, tuple(kernels), fewest)


def _torch_device(name: str | None, values: Any) -> torch.device:
    """Where to run: as named, or where the tensors are. Raises ProfileError for a GPU that isn't there."""
    if name is None:
        name = "cpu" if chosen_device(None, values).kind == "cpu" else "cuda"
    if name == "cuda" and not torch.cuda.is_available():
        raise ProfileError("there is no CUDA device on this machine; `rooffuse report --device` predicts for one")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")
