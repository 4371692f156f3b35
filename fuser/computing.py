"""How long the operations of a kernel take by themselves, whatever bytes it moves."""
from __future__ import annotations

import torch
from rooffuse.codegen.ir import Kernel, Load, Nest
from rooffuse.codegen.operations import contraction_flops, kernel_operations
from rooffuse.cost_model import Device

from .matrix_prices import KERNEL_RATE

#: A vector peak counts fused multiplications and additions, all of them independent: elementwise code has few.
ISSUE_FACTOR = 4
#: What a load under a condition costs a CPU, in plain operations: vector lanes are tested one by one.
CPU_CONDITIONAL_LOAD = 16
#: Longest loop body that C++ compilers were seen to vectorise when it has conditions.
VECTORISED_STATEMENTS = 128


def computing_seconds(kernel: Kernel, device: Device) -> float:
    """Seconds of the kernel's operations on ``device``, each at its cost in plain ones, and of its matrix products."""
    rate = device.peak(torch.float32, "vector") / ISSUE_FACTOR
    if device.kind != "cpu":
        multiplying = contraction_flops(kernel) / (KERNEL_RATE * device.peak(torch.bfloat16))
        return max(kernel_operations(kernel, special_units=True) / rate, multiplying)
    scalar = any(map(_is_scalar, kernel.nests))
    return kernel_operations(kernel, CPU_CONDITIONAL_LOAD) / (rate / 8 if scalar else rate)


def _is_scalar(nest: Nest) -> bool:
    conditions = any(isinstance(s, Load) and s.mask is not None for s in nest.body)
    return conditions and len(nest.body) > VECTORISED_STATEMENTS
