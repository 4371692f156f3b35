"""Which results a CPU writes past its caches: large ones, mostly gone from those when somebody reads them.

A store through the caches moves its line twice, in before and out after it; past them once. A result that is read next
and would have been found in a cache loses that again. On two cores with 2 MiB of second-level cache each, as times
through the caches over times past them, by itself and with a sum of the result coming next: a rectifier of 32 MB in
fp32 2.1 and 1.4, a softmax of them 1.3 and 1.2, in bf16 1.2 and 1.2; of 16 MB 1.0 to 1.9 and 0.8 to 1.6 for nine
kernels, of 4 MB 1.0 to 1.3 and 0.8, but 1.4 and 0.95 for the rectifier, which does nothing but wait for memory.

That last gain is one of slow caches. On two cores whose caches move four times what memory does, the rectifier of 4 MB
came to 0.65 and 0.55, of 8 MB to 0.9 and 0.7, of 16 MB to 1.2 to 1.7 and 1.0 to 1.2.
"""
from __future__ import annotations

import platform
from dataclasses import replace

from rooffuse.codegen.ir import Buffer, Kernel
from rooffuse.codegen.operations import kernel_operations
from rooffuse.codegen.traffic import kernel_traffic
from rooffuse.cost_model import Device

from .program import KernelStep, Program, nbytes

#: Parts of the last-level cache from which on a result goes past it: any, one that leaves the program from a kernel
#: that reduces or from an elementwise one that computes little, and the latter where caches are slow.
ANY_PART, BOUND_PART, SLOW_CACHE_PART = 2, 1, 1 / 4
#: How many times more than memory a cache moves that isn't slow.
QUICK_CACHE = 2
#: Operations a byte below which an elementwise kernel computes little.
LIGHT = 0.75


def stream_results(program: Program, device: Device) -> Program:
    """``program`` with the results named in its steps (``streamed``) that suit ``device``; as it is for a GPU, and for
    processors of which such stores aren't known to pay."""
    if device.kind != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return program
    steps = [replace(step, streamed=_streamed(program, k, step, device))
             if isinstance(step, KernelStep) else step for k, step in enumerate(program.steps)]
    return replace(program, steps=tuple(steps))


def _streamed(program: Program, number: int, step: KernelStep, device: Device) -> tuple[str, ...]:
    assert step.group.lowered is not None
    kernel = step.group.lowered.kernel
    found = []
    for buffer, node in zip(kernel.buffers, step.arguments):
        size = nbytes(node)
        if node not in step.results or buffer.name in kernel.read or size < SLOW_CACHE_PART * device.l2_bytes:
            continue
        leaves = node in program.fresh and program.last_use[node] == number
        if size >= (_leaving_part(kernel, buffer, device) if leaves else ANY_PART) * device.l2_bytes:
            found.append(buffer.name)
    return tuple(found)


def _leaving_part(kernel: Kernel, buffer: Buffer, device: Device) -> float:
    """The part for a result that leaves the program. Elements of less than four bytes take time to convert."""
    if any(nest.reduction for nest in kernel.nests):
        return BOUND_PART
    moved = sum(kernel_traffic(kernel, lambda kernel, nest: True))
    light = buffer.dtype.itemsize >= 4 and kernel_operations(kernel) <= LIGHT * moved
    if not light:
        return ANY_PART
    return SLOW_CACHE_PART if device.l2_bandwidth < QUICK_CACHE * device.bandwidth else BOUND_PART
