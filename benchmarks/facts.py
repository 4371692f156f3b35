"""What a compiler says of its own work: launches, bytes, and in rooffuse's case the predicted time."""
from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from rooffuse.compile import Plan
from rooffuse.program import CallStep, KernelStep
from rooffuse.step_prices import step_estimate, step_price

_LAUNCH = re.compile(r"\b(?:triton_\w+\.run|cpp_fused\w*|extern_kernels\.\w+|torch\.ops\.\w+\.[\w.]+)\(")


@dataclass
class Facts:
    """Filled in while something compiles: ``launches`` of kernels and library calls in one run, ``bytes`` that the
    compiler counts for them. ``flops``, ``compute_s`` (FLOPs at the device's peaks), ``predicted_s`` and
    ``kept_bytes`` (the arena, which stays between runs) are rooffuse's alone."""

    launches: int | None = None
    bytes: int | None = None
    flops: int | None = None
    compute_s: float = 0.0
    predicted_s: float | None = None
    kept_bytes: int = 0
    plans: list[Plan] = field(default_factory=list)


def launching(plan: Plan) -> list[KernelStep | CallStep]:
    """Steps of a plan that launch something."""
    return [s for s in plan.program.steps if isinstance(s, KernelStep | CallStep)]


def _sum_up(facts: Facts) -> None:
    facts.launches = facts.bytes = facts.flops = 0
    facts.predicted_s = 0.0
    for plan in facts.plans:
        device = plan.target.device
        facts.kept_bytes += plan.program.plan.arena_bytes
        for step in launching(plan):
            priced = step_price(step, plan.target)
            facts.launches += 1
            facts.bytes += int(priced.cost.bytes)
            facts.flops += int(priced.cost.flops)
            facts.compute_s += int(priced.cost.flops) / device.peak(priced.dtype, priced.unit)
            facts.predicted_s += step_estimate(step, plan.target).seconds


@contextmanager
def _rooffuse() -> Iterator[Facts]:
    from rooffuse import backend

    facts, compile_graph = Facts(), backend.compile_graph

    def recording(*args: Any, **kwargs: Any) -> Any:
        compiled = compile_graph(*args, **kwargs)
        facts.plans.append(compiled.plan)
        return compiled

    with mock.patch.object(backend, "compile_graph", recording):
        yield facts
    _sum_up(facts)


@contextmanager
def _inductor() -> Iterator[Facts]:
    from torch._functorch import config as functorch_config
    from torch._inductor import compile_fx, config, metrics
    from torch._inductor.graph import GraphLowering

    metrics.reset()
    facts, codes = Facts(), []  # type: tuple[Facts, list[str]]
    # Bytes are counted only for a listener, and nothing is counted for a graph that comes from a cache. Compiled
    # kernels still come from theirs.
    with (config.patch(fx_graph_cache=False), functorch_config.patch(enable_autograd_cache=False),
          _listening(compile_fx.inductor_metrics_log),
          mock.patch.object(GraphLowering, "save_output_code", staticmethod(codes.append))):
        yield facts
    if codes:
        facts.launches = sum(map(inductor_launches, codes))
        facts.bytes = metrics.num_bytes_accessed or None


def inductor_launches(code: str) -> int:
    """Kernels and library calls in the run function of Inductor's generated code."""
    body = code.partition("def call(")[2].partition("\ndef get_args")[0].partition("\ndef benchmark_compiled")[0]
    lines = "\n".join(line for line in body.splitlines() if not line.lstrip().startswith("#"))
    return len(_LAUNCH.findall(lines))


@contextmanager
def _listening(logger: logging.Logger) -> Iterator[None]:
    """Has ``logger`` at level INFO, with nobody to hear it."""
    before = logger.level, logger.propagate, logger.handlers
    logger.setLevel(logging.INFO)
    logger.propagate, logger.handlers = False, [logging.NullHandler()]
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]


@contextmanager
def observed(name: str) -> Iterator[Facts]:
    """Facts of what contender ``name`` compiles inside of the block; they are complete after it."""
    if name.startswith("rooffuse"):
        with _rooffuse() as facts:
            yield facts
    elif name.startswith("inductor"):
        with _inductor() as facts:
            yield facts
    else:
        yield Facts()
