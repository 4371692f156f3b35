"""Finding the processor of this machine: from the table, the driver and estimates."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .device import Device, device_from_dict
from .device_table import ALIASES, DEVICES

_BY_NAME: Mapping[str, Device] = {device.name: device for device in DEVICES}

# FLOP/cycle and core in fp32: two FMA pipes of 16 (AVX-512) or 8 (AVX2) lanes, two operations each.
_FP32_PER_CYCLE = {"avx512": 64, "avx2": 32, "other": 8}
_ASSUMED_HZ = 2.5e9
_ASSUMED_BYTES_PER_CORE = 12e9
# Flags of instructions that multiply float16. Without any torch multiplies its elements one by one: at 1/60 to 1/480 of
# the fp32 rate on two cores with AVX-512, by size.
_FP16_FLAGS = frozenset({"avx512_fp16", "amx_fp16", "fphp", "asimdhp"})
_ONE_BY_ONE = 1 / 60
# A virtual machine shows the whole cache of its host, of which a few cores cannot count on more than their share.
_MOST_CACHE_PER_CORE = 8 * 1024**2


class UnknownDevice(ValueError):
    """No device of that name; the message lists the known ones."""


def spelling_key(name: str) -> str:
    """Lower case, without spaces, hyphens, underscores and a leading "NVIDIA"."""
    key = re.sub(r"[\s_\-]+", "", name.lower())
    return key.removeprefix("nvidia")


def find_listed(name: str) -> Device | None:
    """The device of the table with that name, alias or driver name."""
    key = spelling_key(name)
    if key in ALIASES:
        return _BY_NAME[ALIASES[key]]
    return next((device for device in DEVICES if spelling_key(device.name) == key), None)


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _last_level_cache() -> int | None:
    """Bytes of the first processor's largest cache, from sysfs."""
    sizes = []
    for path in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")):
        match = re.fullmatch(r"(\d+)([KM])", path.read_text(encoding="utf-8").strip())
        if match:
            sizes.append(int(match[1]) * (1024 if match[2] == "K" else 1024**2))
    return max(sizes, default=None)


def describe_cpu(info: Mapping[str, str], cores: int, cache_bytes: int | None, memory_bytes: int) -> Device:
    """A CPU from its flags and core count, with estimated rates.

    Peaks are two FMA pipes a core at the reported clock (2.5 GHz if none is reported); bf16 counts its matrix or
    dot-product instructions where the flags show them, and fp16 is slow where they show none. Bandwidth is a constant
    per core. Calibrate for real figures.
    """
    flags = set(info.get("flags", info.get("Features", "")).split())
    width = "avx512" if "avx512f" in flags else "avx2" if "avx2" in flags else "other"
    hertz = float(info.get("cpu MHz", 0)) * 1e6 or _ASSUMED_HZ
    fp32 = _FP32_PER_CYCLE[width] * hertz * cores
    bf16 = fp32 * (16 if "amx_bf16" in flags else 2 if "avx512_bf16" in flags else 1)
    fp16 = fp32 * (1 if flags & _FP16_FLAGS else _ONE_BY_ONE)
    int8 = fp32 * (32 if "amx_int8" in flags else 4 if "avx512_vnni" in flags or "avx_vnni" in flags else 1)
    bandwidth = _ASSUMED_BYTES_PER_CORE * cores
    name = info.get("model name") or platform.processor() or platform.machine() or "CPU"
    estimate = f"estimate from the processor's flags ({width}), {hertz / 1e9:.2f} GHz and {cores} cores; not measured"
    return Device(
        name=name,
        vendor={"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(info.get("vendor_id", ""), "unknown"),
        kind="cpu",
        peaks={"fp64": fp32 / 2, "fp32": fp32, "bf16": bf16, "fp16": fp16, "int8": int8},
        bandwidth=bandwidth,
        l2_bytes=min(cache_bytes or 32 * 1024**2, _MOST_CACHE_PER_CORE * cores),
        l2_bandwidth=4 * bandwidth,
        sms=cores,
        smem_bytes=32 * 1024,
        memory_bytes=memory_bytes,
        launch_s=3e-6,
        dispatch_s=5e-6,
        arch=None,
        sources={
            "peaks": estimate,
            "bandwidth": "estimate: 12 GB/s a core; not measured",
            "l2_bytes": f"{'last-level cache from sysfs' if cache_bytes else 'estimate: 32 MiB'}, at most 8 MiB a core",
            "l2_bandwidth": "estimate: 4 times the memory bandwidth; not measured",
            "launch_s": "estimate: OpenMP fork and join, 2 to 5 us; not measured",
            "dispatch_s": "estimate; not measured",
        },
    )


def _local_cpu() -> Device:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = 0
    return describe_cpu(_cpuinfo(), torch.get_num_threads(), _last_level_cache(), memory)


def _local_gpu(index: int) -> Device:
    if not torch.cuda.is_available():
        raise UnknownDevice(
            "no CUDA device on this machine; name one of the table instead, as in get_device('h100'), or use 'cpu'"
        )
    properties = torch.cuda.get_device_properties(index)
    listed = find_listed(properties.name)
    seen: dict[str, Any] = {
        "sms": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", 0),
        "smem_bytes": getattr(properties, "shared_memory_per_multiprocessor", 48 * 1024),
        "capability": (properties.major, properties.minor),
    }
    if torch.version.hip is None:
        seen["arch"] = f"sm_{properties.major}{properties.minor}"
    else:
        seen["arch"], seen["capability"] = properties.gcnArchName.split(":")[0], None
    seen = {key: value for key, value in seen.items() if value or key == "capability"}
    driver = dict.fromkeys(seen, "driver")
    if listed is not None:
        values = listed.to_dict()
        values["sources"].update(driver)
        return device_from_dict({**values, **seen})
    # An unlisted card: clocks from the driver where torch shows them, else those of an A100.
    hertz = getattr(properties, "clock_rate", 1_410_000) * 1e3
    fp32 = 2 * 128 * properties.multi_processor_count * hertz
    width = getattr(properties, "memory_bus_width", 256)
    bandwidth = 2 * width / 8 * getattr(properties, "memory_clock_rate", 7_000_000) * 1e3
    guess = "estimate from clocks and widths that the driver reports; calibrate for real figures"
    return device_from_dict(
        {
            "name": properties.name,
            "vendor": "NVIDIA" if torch.version.hip is None else "AMD",
            "kind": "gpu",
            "peaks": {"fp64": fp32 / 32, "fp32": fp32, "bf16": 4 * fp32, "fp16": 4 * fp32},
            "bandwidth": bandwidth,
            "l2_bandwidth": 3 * bandwidth,
            "sources": {"peaks": guess, "bandwidth": guess, "l2_bandwidth": guess, **driver},
            **seen,
        }
    )


def detect(torch_device: str = "cpu") -> Device:
    """This machine's ``"cpu"``, ``"cuda"`` (its first) or ``"cuda:1"``, from the table, the driver and estimates; never
    calibrated."""
    kind = torch.device(torch_device).type
    if kind == "cpu":
        return _local_cpu()
    if kind == "cuda":
        return _local_gpu(torch.device(torch_device).index or 0)
    raise UnknownDevice(f"no detection for torch device {torch_device!r}; use 'cpu' or 'cuda'")
