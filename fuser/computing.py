"""How long the operations of a kernel take by themselves, whatever bytes it moves."""
from __future__ import annotations

from math import prod

import torch
from rooffuse.codegen.conditions import decided
from rooffuse.codegen.contraction import contraction_of
from rooffuse.codegen.ir import Kernel, Load, Nest
from rooffuse.codegen.operations import contraction_flops, kernel_operations
from rooffuse.codegen.sweeps import plan_phases
from rooffuse.codegen.triton_tiles import RUNNING_PROGRAMS, choose_tile
from rooffuse.cost_model import Device

from .matrix_prices import KERNEL_RATE

#: A vector peak counts fused multiplications and additions, all of them independent: elementwise code has few.
ISSUE_FACTOR = 4
#: What a GPU's multiprocessor has read shortly before and reads again without its second-level cache.
CLOSE_BYTES = 1 << 17
#: What a load under a condition costs a CPU, in plain operations: vector lanes are tested one by one.
CPU_CONDITIONAL_LOAD = 16
#: Longest loop body that C++ compilers were seen to vectorise when it has conditions.
VECTORISED_STATEMENTS = 128


def computing_seconds(kernel: Kernel, device: Device) -> float:
    """Seconds of the kernel's operations on ``device``, each at its cost in plain ones, of its matrix products, and of
    reading the same rows in several programs of a GPU from its second-level cache."""
    rate = device.peak(torch.float32, "vector") / ISSUE_FACTOR
    if device.kind != "cpu":
        multiplying = contraction_flops(kernel) / (KERNEL_RATE * device.peak(torch.bfloat16))
        return max(kernel_operations(kernel, special_units=True) / rate, multiplying, rereading_seconds(kernel, device))
    scalar = any(map(_is_scalar, kernel.nests))
    return kernel_operations(kernel, CPU_CONDITIONAL_LOAD) / (rate / 8 if scalar else rate)


def rereading_seconds(kernel: Kernel, device: Device) -> float:
    """Seconds in which the programs of a GPU read rows that several of them share from its second-level cache."""
    if device.kind == "cpu":
        return 0.0
    return sum(_repeated_bytes(kernel, nest, device) for nest in kernel.nests) / device.l2_bandwidth


def _repeated_bytes(kernel: Kernel, nest: Nest, device: Device) -> int:
    """Bytes of the rows that several programs read, once for each and in each sweep. What all positions read is a
    vector and, as all that is small, stays closer to the multiprocessors."""
    row = {a.symbol for a in nest.reduction}
    parallel = [a for a in nest.parallel if a.size > 1]
    if not row or len(parallel) < 2 or contraction_of(nest) is not None:
        return 0
    tile = choose_tile(kernel, nest, RUNNING_PROGRAMS * device.sms)
    bodies = [nest.body] if tile.persistent else [p.body for p in plan_phases(nest)]
    found = 0
    for stmt in (s for body in bodies for s in body if isinstance(s, Load)):
        axes, width = stmt.index.free_symbols, kernel.buffer(stmt.buffer).dtype.itemsize
        shared = [a for a in parallel if a.symbol not in axes]
        different = prod(a.size for a in nest.axes if a.symbol in axes)
        if axes & row and 0 < len(shared) < len(parallel) and different * width > CLOSE_BYTES:
            # Neighbours that share a row and are in one program read it once.
            inside = min(tile.xblock, parallel[-1].size) if shared[-1] is parallel[-1] else 1
            found += different * prod(a.size for a in shared) * width // inside
    return found


def _is_scalar(nest: Nest) -> bool:
    free = decided(nest)
    conditions = any(isinstance(s, Load) and s.mask not in (None, *free) for s in nest.body)
    return conditions and len(nest.body) > VECTORISED_STATEMENTS
