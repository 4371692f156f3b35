"""The table of ``rooffuse devices``."""
from __future__ import annotations

import torch
from rooffuse.cost_model import Device, UnknownDevice, all_devices, local_device
from tabulate import tabulate

_PEAKS = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8")
_RIDGES = ("fp32", "bf16", "fp16", "fp8", "int8")


def local_devices() -> list[Device]:
    """This machine's processors, GPU first where there is one."""
    found = []
    for kind in ("cuda", "cpu"):
        try:
            found.append(local_device(kind))
        except UnknownDevice:
            continue
    return found


def _row(device: Device, local: bool) -> list[str]:
    def rate(key: str) -> str:
        return f"{device.peaks[key] / 1e12:.4g}" if key in device.peaks else ""

    def ridge(key: str) -> str:
        return f"{device.peaks[key] / device.bandwidth:.0f}" if key in device.peaks else ""

    origin = "measured" if device.calibrated else (
        "estimate" if "estimate" in device.sources.get("bandwidth", "") else "datasheet")
    memory = f"{device.memory_bytes / 1e9:.0f}" if device.memory_bytes else ""
    return ["*" if local else "", device.name, memory, f"{device.bandwidth / 1e9:.4g}", *map(rate, _PEAKS),
            *map(ridge, _RIDGES), origin]


def device_table() -> str:
    """All devices, this machine's first: bandwidth in GB/s, dense peaks in TFLOP/s, ridge points in FLOP/byte."""
    local = local_devices()
    names = {d.name for d in local}
    rows = [_row(d, True) for d in local] + [_row(d, False) for d in all_devices() if d.name not in names]
    headers = ["", "device", "GB", "GB/s", *(f"TFLOP/s\n{k}" if k == _PEAKS[0] else k for k in _PEAKS),
               *(f"ridge\n{k}" if k == _RIDGES[0] else k for k in _RIDGES), "rates from"]
    align = ["left", "left", *["right"] * (2 + len(_PEAKS) + len(_RIDGES)), "left"]
    table = tabulate(rows, headers, tablefmt="simple", colalign=align, disable_numparse=True)
    return (f"{table}\n\n* this machine{'' if torch.cuda.is_available() else ' (no CUDA device)'}. Ridge points are "
            "FLOP per byte of memory traffic: work of fewer is memory-bound. Peaks are dense.")
