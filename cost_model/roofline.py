"""From bytes and FLOPs to seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .cost import Cost, Unit
from .device import Device


@dataclass(frozen=True)
class Estimate:
    """Predicted seconds of one kernel and what they are made of.

    ``bound`` names the largest of ``memory_s``, ``compute_s`` and ``launch_s``.
    """

    seconds: float
    bound: Literal["memory", "compute", "launch"]
    compute_s: float
    memory_s: float
    launch_s: float

    @classmethod
    def of(cls, compute_s: float, memory_s: float, launch_s: float) -> Estimate:
        """The larger of computing and moving, and the launch."""
        body = max(compute_s, memory_s)
        bound: Literal["memory", "compute", "launch"]
        if launch_s > body:
            bound = "launch"
        else:
            bound = "compute" if compute_s > memory_s else "memory"
        return cls(body + launch_s, bound, compute_s, memory_s, launch_s)


def occupancy(device: Device, programs: int | None) -> float:
    """The fraction of the device's rates that ``programs`` concurrent programs (thread blocks) can reach.

    A program stays on one multiprocessor, so fewer programs than multiprocessors leave the rest idle, and bandwidth
    falls with them: the loads in flight are what saturates memory (Little's law).
    """
    if programs is None:
        return 1.0
    if programs < 1:
        raise ValueError(f"programs is {programs}; a kernel launches at least one program")
    return min(1.0, programs / device.sms)


def estimate(
    cost: Cost,
    device: Device,
    dtype: torch.dtype,
    unit: Unit = "vector",
    programs: int | None = None,
    working_set: int | None = None,
    captured: bool = True,
    tf32: bool = False,
) -> Estimate:
    """Roofline time of one kernel: ``max(FLOPs / peak, bytes / bandwidth) + launch`` (Williams et al., CACM 2009).

    ``programs`` scales both rates by `occupancy`. ``working_set`` (bytes that stay hot between kernels) replaces the
    memory bandwidth by that of the last-level cache when it fits there. ``captured`` says that the kernel runs inside a
    CUDA graph; otherwise the host's dispatch of one launch is the fixed cost. A cost that neither moves nor computes
    anything needs no kernel and takes no time.

    Raises ValueError for a symbolic cost.
    """
    if cost.is_symbolic:
        raise ValueError(f"cannot time a symbolic cost {cost}; put numbers in with cost.subs({{symbol: size}}) first")
    if cost.flops == 0 and cost.bytes == 0:
        return Estimate(0.0, "memory", 0.0, 0.0, 0.0)
    fraction = occupancy(device, programs)
    fits = working_set is not None and working_set <= device.l2_bytes
    bandwidth = max(device.l2_bandwidth, device.bandwidth) if fits else device.bandwidth
    compute_s = float(cost.flops) / (device.peak(dtype, unit, tf32) * fraction)
    memory_s = float(cost.bytes) / (bandwidth * fraction)
    return Estimate.of(compute_s, memory_s, device.launch_s if captured else device.dispatch_s)
