"""Times for a search among equal kernels: buffers to run them on, and what takes their times on a CPU or a GPU."""
from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rooffuse.codegen.ir import Buffer, Kernel
from torch import Tensor

Run = Callable[[], None]
#: ``timer(runs, restore, budget_s)`` returns seconds of each of ``runs`` in every round, having called ``restore``
#: before each sample, within about ``budget_s`` seconds.
Timer = Callable[[Sequence[Run], Run, float], list[list[float]]]

#: Fewest and most samples of each run.
ROUNDS = (5, 25)
#: Fewest seconds of a sample on a CPU, so that reading the clock is no part of it.
_SAMPLE_S = 1e-4
#: Bytes written before each sample on a GPU whose second-level cache isn't known.
_EVICTING_BYTES = 1 << 28


class Buffers:
    """Memory of a kernel's own, flat and as long as the kernel says: its indices have the strides in them.

    Floats are random around one, so that no function overflows; truth values are true, and integers 0, which is valid
    as any index. What the kernel both reads and writes is filled anew by ``restore``, lest it grow from run to run.
    """

    def __init__(self, kernel: Kernel, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tensors = [_filled(b, generator).to(device) for b in kernel.buffers]
        self._kept = [(t, t.clone()) for b, t in zip(kernel.buffers, self.tensors)
                      if b.name in kernel.read and b.name in kernel.written]

    def restore(self) -> None:
        for tensor, kept in self._kept:
            tensor.copy_(kept)


def buffer_bytes(kernel: Kernel) -> int:
    """Bytes that `Buffers` takes."""
    twice = kernel.read & kernel.written
    return sum((1 + (b.name in twice)) * b.size * b.dtype.itemsize for b in kernel.buffers)


def _filled(buffer: Buffer, generator: torch.Generator) -> Tensor:
    if buffer.dtype == torch.bool:
        return torch.ones(buffer.size, dtype=torch.bool, device="cpu")
    flat = torch.zeros(buffer.size, dtype=buffer.dtype, device="cpu")
    if buffer.dtype.is_floating_point and buffer.dtype.itemsize > 1:
        flat.uniform_(0.5, 1.5, generator=generator)
    return flat


def free_bytes(device: torch.device) -> float:
    """Bytes that can be allocated: of a GPU those that the allocator holds unused count, of a machine its caches."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def timer_for(device: torch.device, cache_bytes: int) -> Timer:
    """The timer of a device whose last cache has ``cache_bytes`` (0 if that isn't known)."""
    if device.type != "cuda":
        return time_on_cpu

    def timer(runs: Sequence[Run], restore: Run, budget_s: float) -> list[list[float]]:
        return _time_on_gpu(runs, restore, budget_s, device, 2 * cache_bytes or _EVICTING_BYTES)

    return timer


def evicting_bytes(device: torch.device, cache_bytes: int) -> int:
    """Bytes that `timer_for`'s timer allocates."""
    return (2 * cache_bytes or _EVICTING_BYTES) if device.type == "cuda" else 0


def _rounds(took_s: float, budget_s: float) -> int:
    return max(ROUNDS[0], min(ROUNDS[1], int(budget_s / max(took_s, 1e-9))))


def _turns(count: int, rounds: int) -> list[int]:
    """Who runs when: all in every round, each round beginning with the next, so that none always follows the same."""
    return [(start + k) % count for start in range(rounds) for k in range(count)]


def time_on_cpu(runs: Sequence[Run], restore: Run, budget_s: float) -> list[list[float]]:
    """A `Timer` by the clock. What fits in caches stays there from run to run, as in a program that runs over and over;
    short runs are repeated within a sample."""
    rough = []
    for run in runs:
        restore()
        run()
        start = time.perf_counter()
        run()
        rough.append(max(time.perf_counter() - start, 1e-9))
    repeat = max(1, min(1000, int(_SAMPLE_S / min(rough))))
    samples: list[list[float]] = [[] for _ in runs]
    for k in _turns(len(runs), _rounds(repeat * sum(rough), budget_s)):
        restore()
        start = time.perf_counter()
        for _ in range(repeat):
            runs[k]()
        samples[k].append((time.perf_counter() - start) / repeat)
    return samples


def _time_on_gpu(runs: Sequence[Run], restore: Run, budget_s: float, device: torch.device, evicting: int
                 ) -> list[list[float]]:
    """A `Timer` by CUDA events around each run. Before it the second-level cache is overwritten, which also takes the
    device so long that the host has asked for the run before the first event passes."""
    flush = torch.zeros(evicting, dtype=torch.uint8, device=device)

    def sample(run: Run) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        restore()
        flush.zero_()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        return first, last

    for run in runs:
        sample(run)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for run in runs:
        sample(run)
    torch.cuda.synchronize(device)
    found: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in runs]
    for k in _turns(len(runs), _rounds(time.perf_counter() - start, budget_s)):
        found[k].append(sample(runs[k]))
    torch.cuda.synchronize(device)
    return [[1e-3 * first.elapsed_time(last) for first, last in events] for events in found]
