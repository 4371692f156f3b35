"""Interleaved timing: A B A B in one process, warm, outputs freed alike, medians with their spread."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median over rounds, and the quartiles."""

    median_us: float
    low_us: float
    high_us: float


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _once(call: Callable[[], Any], repeat: int, device: str) -> float:
    """Seconds of one call, averaged over ``repeat`` in a row; results are dropped before the next one."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / repeat


def time_calls(calls: Mapping[str, Callable[[], Any]], device: str, budget_s: float = 2.0,
               rounds: int = 15) -> dict[str, Timing]:
    """Time all ``calls`` in turn, ``rounds`` times, within about ``budget_s`` seconds for each."""
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        call()
        rough = min(_once(call, 1, device) for _ in range(3))
        repeats[name] = max(1, min(1000, int(budget_s / rounds / max(rough, 1e-6))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(_once(call, repeats[name], device))
    return {name: _timing(values) for name, values in samples.items()}


def _timing(values: Sequence[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median * 1e6, low * 1e6, high * 1e6)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors of nested tuples, lists and dicts (and of dataclass-like outputs by their items)."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict) or hasattr(value, "items"):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors_in(v)]
    return []


def worst_error(ours: Any, reference: Any) -> float:
    """Largest difference of any tensor, relative to the reference's largest value."""
    worst = 0.0
    for a, b in zip(tensors_in(ours), tensors_in(reference), strict=True):
        if b.numel() and b.is_floating_point():
            scale = b.abs().max().double().item() or 1.0
            difference = (a.double() - b.double()).abs().max().item() / scale
            worst = max(worst, difference if difference == difference else float("inf"))
        elif not torch.equal(a, b):
            worst = float("inf")
    return worst


def floor_bytes(args: Any, results: Any) -> int:
    """Bytes of all different inputs and outputs, each once: what any schedule must move."""
    seen: dict[int, int] = {}
    for tensor in (*tensors_in(args), *tensors_in(results)):
        seen[tensor.data_ptr()] = max(seen.get(tensor.data_ptr(), 0), tensor.numel() * tensor.element_size())
    return sum(seen.values())
