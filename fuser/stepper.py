"""Runs the steps of a built plan one at a time on made-up inputs: under a clock, or in ranges that a profiler sees."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.profiler import record_function

from .compile import Plan
from .program import OUT_CALLS, CallStep, KernelStep, ViewStep
from .runtime import Arena, Built
from .step_trace import range_name
from .strided_calls import moved_arguments

#: Bytes that are written before each run, more than caches hold: predictions are of traffic from memory.
_EVICTING_BYTES = 1 << 28


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


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """``value`` on ``device`` with its strides."""
    if device.type == "cpu":
        return value
    moved = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return moved.copy_(value)


class Stepper:
    """Runs the steps of one built plan on ``device``."""

    def __init__(self, plan: Plan, built: Built, device: torch.device) -> None:
        self.program, self.built = plan.program, built
        module = plan.program.fused.module
        generator = torch.Generator().manual_seed(0)
        for name, buffer in list(module.named_buffers()):
            if isinstance(buffer, FakeTensor):
                owner, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(owner), leaf, _moved(made_up(buffer, generator), device))
        self.inputs = {n: _moved(made_up(v, generator), device) if isinstance(v := n.meta.get("val"), Tensor) else v
                       for n in module.graph.nodes if n.op == "placeholder"}
        self.arena = Arena(plan.program, built.slots, device)
        self.evicting = torch.zeros(_EVICTING_BYTES // 4, dtype=torch.int32, device=device)
        # Results go to the same memory in each round: the pages of new memory would be charged to the kernel.
        self.results = {n: torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=device)
                        for n in plan.program.fresh if (v := n.meta["val"]) is not None}
        self.kept = {**self.arena.tensors, **self.inputs, **self.results}
        self.dying: dict[int, list[Node]] = {}
        for node, last in plan.program.last_use.items():
            if node not in self.kept:
                self.dying.setdefault(last, []).append(node)

    def _steps(self) -> Iterator[Callable[[], Any]]:
        """The work of each step, in order, after caches have been emptied."""
        self.evicting.add_(1)
        values: dict[Node, Any] = dict(self.kept)
        for k, step in enumerate(self.program.steps):
            yield self._work(step, values)
            for node in self.dying.get(k, ()):
                values.pop(node, None)

    def run(self) -> list[float]:
        """Seconds of each step on the CPU; 0.0 for views."""
        times = []
        for step, work in zip(self.program.steps, self._steps()):
            start = time.perf_counter()
            work()
            took = time.perf_counter() - start
            times.append(0.0 if isinstance(step, ViewStep) else took)
        return times

    def run_in_ranges(self) -> None:
        """Run each step in a range of torch.profiler's that is named after its number."""
        for k, work in enumerate(self._steps()):
            with record_function(range_name(k)):
                work()

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
            values[node] = node.target(*moved_arguments(node, args), **kwargs)

        return call

    def _kernel(self, step: KernelStep, values: dict[Node, Any]) -> Callable[[], Any]:
        launch = self.built.launches.get(step.name)
        if launch is not None:
            tensors = [values[n] for n in step.arguments]
            return lambda: launch(*tensors)
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
