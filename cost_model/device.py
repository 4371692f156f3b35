"""What a processor can do: peak rates, bandwidths and fixed costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import torch

from .cost import Unit

PEAK_KEYS = ("fp64", "fp64_tc", "fp32", "tf32", "bf16", "fp16", "fp8", "int8")

# Where a rate is absent the data is widened: fp8 computes as fp16, integers and 16-bit floats as fp32.
_TENSOR_FALLBACKS: dict[str, tuple[str, ...]] = {
    "fp64": ("fp64_tc", "fp64"),
    "fp32": ("fp32",),
    "tf32": ("tf32", "fp32"),
    "bf16": ("bf16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp8": ("fp8", "fp16", "bf16", "fp32"),
    "int8": ("int8", "fp32"),
}


def peak_key(dtype: torch.dtype) -> str:
    """The key of `Device.peaks` that a matmul on operands of ``dtype`` runs at."""
    if dtype in (torch.float64, torch.complex128):
        return "fp64"
    if dtype == torch.bfloat16:
        return "bf16"
    if dtype in (torch.float16, torch.complex32):
        return "fp16"
    if dtype in (torch.int8, torch.uint8):
        return "int8"
    if dtype.is_floating_point and dtype.itemsize == 1:
        return "fp8"
    return "fp32"


@dataclass(frozen=True)
class Device:
    """A processor. Rates are dense (no structured sparsity).

    Units: ``peaks`` FLOP/s by key (`PEAK_KEYS`), ``bandwidth``, ``l2_bandwidth`` and ``link_bandwidth`` B/s, sizes in
    bytes, times in seconds. ``sms`` counts streaming multiprocessors, compute units or CPU cores; ``smem_bytes`` is the
    shared memory of one of them. ``launch_s`` is a kernel's fixed cost inside a CUDA graph (on a CPU, of an OpenMP
    region), ``dispatch_s`` the host's cost of launching one on its own. ``sources`` says where figures come from, keyed
    by field. ``calibrated`` is True when rates were measured on this machine.
    """

    name: str
    vendor: str
    kind: str
    peaks: Mapping[str, float]
    bandwidth: float
    l2_bytes: int
    l2_bandwidth: float
    sms: int
    smem_bytes: int
    memory_bytes: int
    launch_s: float
    dispatch_s: float
    capability: tuple[int, int] | None = None
    arch: str | None = None
    link_bandwidth: float | None = None
    pj_per_hbm_byte: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    calibrated: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("cpu", "gpu"):
            raise ValueError(f"device {self.name!r}: kind is {self.kind!r}; it must be 'cpu' or 'gpu'")
        unknown = sorted(set(self.peaks) - set(PEAK_KEYS))
        if unknown:
            raise ValueError(f"device {self.name!r}: unknown peaks {unknown}; the keys are {', '.join(PEAK_KEYS)}")
        if "fp32" not in self.peaks:
            raise ValueError(f"device {self.name!r}: peaks needs at least 'fp32' in FLOP/s")
        positive = {f"peaks.{key}": rate for key, rate in self.peaks.items()}
        positive |= {"bandwidth": self.bandwidth, "l2_bandwidth": self.l2_bandwidth, "sms": self.sms}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"device {self.name!r}: {name} is {value}; it must be positive")
        object.__setattr__(self, "peaks", MappingProxyType(dict(self.peaks)))
        object.__setattr__(self, "sources", MappingProxyType(dict(self.sources)))

    def __hash__(self) -> int:
        return hash((self.name, self.bandwidth, tuple(sorted(self.peaks.items())), self.calibrated))

    def __reduce__(self) -> tuple[Any, ...]:
        return device_from_dict, (self.to_dict(),)

    def peak(self, dtype: torch.dtype, unit: Unit = "tensor", tf32: bool = False) -> float:
        """Peak FLOP/s for ``dtype`` on matrix units (``"tensor"``) or on plain arithmetic units (``"vector"``).

        fp32 matmuls run at the plain fp32 rate unless ``tf32`` is asked for, as in torch's defaults. Element-wise code
        computes 16-bit floats in fp32, so the vector rate has two values: fp64 and fp32 (integers take the latter).
        """
        key = peak_key(dtype)
        if unit == "vector":
            return self.peaks.get("fp64", self.peaks["fp32"]) if key == "fp64" else self.peaks["fp32"]
        if key == "fp32" and tf32:
            key = "tf32"
        return next((self.peaks[name] for name in _TENSOR_FALLBACKS[key] if name in self.peaks), self.peaks["fp32"])

    def ridge_point(self, dtype: torch.dtype, unit: Unit = "tensor", tf32: bool = False) -> float:
        """FLOP/byte from which on work of ``dtype`` is compute-bound: peak / bandwidth (Williams et al., CACM 2009)."""
        return self.peak(dtype, unit, tf32) / self.bandwidth

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `device_from_dict` takes it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["peaks"], values["sources"] = dict(self.peaks), dict(self.sources)
        return values


def device_from_dict(values: Mapping[str, Any]) -> Device:
    """Build a `Device` from plain data (TOML, JSON). Raises ValueError that names missing and unknown fields."""
    known = {f.name for f in fields(Device)}
    required = ("name", "peaks", "bandwidth")
    unknown = sorted(set(values) - known)
    missing = [name for name in required if name not in values]
    if unknown or missing:
        parts = [f"unknown fields: {', '.join(unknown)}"] if unknown else []
        parts += [f"missing fields: {', '.join(missing)}"] if missing else []
        raise ValueError(
            f"device description {values.get('name', '(unnamed)')!r}: {'; '.join(parts)}; "
            f"required are {', '.join(required)}, optional are {', '.join(sorted(known - set(required)))}"
        )
    defaults: dict[str, Any] = {
        "vendor": "unknown",
        "kind": "gpu",
        "l2_bytes": 0,
        "l2_bandwidth": float(values["bandwidth"]),
        "sms": 1,
        "smem_bytes": 48 * 1024,
        "memory_bytes": 0,
        "launch_s": 1.3e-6,
        "dispatch_s": 5e-6,
    }
    merged = {**defaults, **values}
    if merged.get("capability") is not None:
        merged["capability"] = tuple(merged["capability"])
    return Device(**merged)
