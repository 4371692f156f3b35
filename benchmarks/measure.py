"""Interleaved timing: A B A B in one process, warm, outputs freed alike, medians with their spread."""
from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

#: Fewest and most rounds of a timing; quartiles of fewer than five mean little.
ROUNDS = (5, 15)


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median over rounds, and the quartiles."""

    median_us: float
    low_us: float
    high_us: float


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _once(call: Callable[[], Any], repeat: int, device: str) -> float:
    """Seconds of one call, averaged over ``repeat`` in a row; results are dropped before the next one."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeat


def time_calls(calls: Mapping[str, Callable[[], Any]], device: str, budget_s: float = 2.0) -> dict[str, Timing]:
    """Time all ``calls`` in turn, round by round, within about ``budget_s`` seconds for each; a call that is long for
    the budget still gets the fewest rounds."""
    if not calls:
        return {}
    rough: dict[str, float] = {}
    for name, call in calls.items():
        call()
        rough[name] = max(min(_once(call, 1, device) for _ in range(2)), 1e-6)
    least, most = ROUNDS
    rounds = max(least, min(most, int(budget_s / max(rough.values()))))
    repeats = {name: max(1, min(1000, int(budget_s / rounds / took))) for name, took in rough.items()}
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


def worst_error(ours: Any, reference: Any, least_scale: float = 0.0) -> float:
    """Largest difference of any tensor, relative to the reference's largest finite value; infinite where shapes,
    types, integers, infinities or NaNs differ.

    ``least_scale`` is a part of the largest value of all tensors: gradients that are zero but for rounding are held
    to that scale and not to their own.
    """
    pairs = list(zip(tensors_in(ours), tensors_in(reference), strict=True))
    scales = [_largest(b) for _, b in pairs]
    least = least_scale * max(scales, default=0.0)
    worst = 0.0
    for (a, b), scale in zip(pairs, scales):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if not b.is_floating_point():
            worst = worst if torch.equal(a, b) else float("inf")
        elif b.numel():
            same = (a == b) | (a.isnan() & b.isnan())
            difference = torch.where(same, 0.0, a.double() - b.double()).abs().max().item()
            worst = max(worst, difference / (max(scale, least) or 1.0) if difference == difference else float("inf"))
    return worst


def _largest(tensor: torch.Tensor) -> float:
    if not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    return torch.nan_to_num(tensor.detach().float() if tensor.dtype.itemsize == 1 else tensor.detach(), 0.0, 0.0,
                            0.0).abs().max().double().item()


def _sizes(value: Any) -> dict[int, int]:
    """Bytes of each different tensor, by address; expanded dimensions count once."""
    seen: dict[int, int] = {}
    for tensor in tensors_in(value):
        count = 1
        for size, stride in zip(tensor.shape, tensor.stride()):
            count *= size if stride else min(size, 1)
        seen[tensor.data_ptr()] = max(seen.get(tensor.data_ptr(), 0), count * tensor.element_size())
    return seen


def floor_bytes(fn: Any, args: Any, results: Any, written: Sequence[torch.Tensor] = ()) -> int:
    """Bytes that any schedule must move: each different input, parameter, buffer and output once, and inputs that are
    ``written`` once more."""
    state = [*fn.parameters(), *fn.buffers()] if isinstance(fn, torch.nn.Module) else []
    return sum(_sizes((list(args), state, results)).values()) + sum(_sizes(list(written)).values())


def _resident(field: str) -> int:
    """Bytes of ``VmRSS`` (resident now) or ``VmHWM`` (its peak) as Linux counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def resident_growth(call: Callable[[], Any]) -> int | None:
    """Bytes by which the resident set grows at most during one call, results included; None where Linux's counters
    aren't there.

    Free memory is given back to the system first, so that reused heap shows as growth too; what is smaller than a
    page, or stays in the allocator's arenas of other threads, doesn't.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: proc(5)
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def cuda_peak(call: Callable[[], Any], baseline: int) -> int:
    """Peak of the CUDA allocator during one call, over ``baseline`` bytes allocated before anything was compiled: what
    a contender keeps between calls counts."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - baseline
