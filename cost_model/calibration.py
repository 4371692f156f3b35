"""Rates measured on this machine, kept as JSON."""

from __future__ import annotations

import json
import logging
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .detect import detect
from .device import Device, device_from_dict
from .user_folder import user_cache_folder

_log = logging.getLogger(__name__)

# Bumped when the meaning of a stored figure changes; older files are then ignored.
_FORMAT = 1
_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What is measured beside the peaks, as `Device` names it.
_RATES = ("bandwidth", "l2_bandwidth", "launch_s", "dispatch_s")
# Below the resolution of the clock; a fixed cost of zero would make every merge look free.
_LEAST_LAUNCH_S = 1e-7

Progress = Callable[[str], None]


def default_folder() -> Path:
    """``calibration`` in the user's cache folder for rooffuse."""
    return user_cache_folder() / "calibration"


def stored_in(device: Device, folder: Path) -> Path:
    """The file of ``device``'s calibration."""
    # Cores are part of the identity of a CPU: rates depend on how many torch may use.
    name = f"{device.name}-{device.sms}" if device.kind == "cpu" else device.name
    return folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")


def load(device: Device, folder: Path) -> Device | None:
    """The stored calibration of ``device``, or None. An unreadable file is ignored with a warning."""
    path = stored_in(device, folder)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("ignoring the calibration in %s: %s; calibrate again to replace it", path, error)
        return None
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
        _log.warning("ignoring the calibration in %s: another format; calibrate again to replace it", path)
        return None
    try:
        return device_from_dict(stored["device"])
    except (KeyError, TypeError, ValueError) as error:
        _log.warning("ignoring the calibration in %s: %s; calibrate again to replace it", path, error)
        return None


def save(device: Device, folder: Path) -> Path:
    """Store a calibrated device; other processes see the old file or the new one, never half of it."""
    path = stored_in(device, folder)
    folder.mkdir(parents=True, exist_ok=True)
    incomplete = path.with_suffix(f".{os.getpid()}.tmp")
    incomplete.write_text(
        json.dumps({"format": _FORMAT, "device": device.to_dict()}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    incomplete.replace(path)
    return path


def _seconds(
    work: Callable[[], Any],
    torch_device: str,
    budget_s: float,
    summarise: Callable[[list[float]], float] = statistics.median,
) -> float:
    """Seconds of ``work``, by default the median of repeats within ``budget_s``, at least three, after a warm-up."""
    cuda = torch.device(torch_device).type == "cuda"
    work()
    if cuda:
        torch.cuda.synchronize()
    samples: list[float] = []
    deadline = time.perf_counter() + budget_s
    while len(samples) < 3 or (time.perf_counter() < deadline and len(samples) < 200):
        if cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) * 1e-3)
        else:
            start = time.perf_counter()
            work()
            samples.append(time.perf_counter() - start)
    return summarise(samples)


def _least_disturbed(torch_device: str) -> Callable[[list[float]], float]:
    """How samples become one: the median on a GPU, which is ours alone, and the best on a CPU, which rarely is."""
    return statistics.median if torch.device(torch_device).type == "cuda" else min


def _bandwidth(torch_device: str, budget_s: float, array_bytes: int) -> float:
    """B/s of the better of copy and triad (``a = b + s·c``, STREAM by McCalpin) on fp32 arrays of that size."""
    best = _least_disturbed(torch_device)
    count = array_bytes // 4
    a, b, c = (torch.ones(count, dtype=torch.float32, device=torch_device) for _ in range(3))
    copy = 2 * a.nbytes / _seconds(lambda: a.copy_(b), torch_device, budget_s / 2, best)
    triad = 3 * a.nbytes / _seconds(lambda: torch.add(b, c, alpha=2.0, out=a), torch_device, budget_s / 2, best)
    return max(copy, triad)


def _matmul_peaks(torch_device: str, budget_s: float, progress: Progress) -> dict[str, float]:
    """FLOP/s of square matmuls by dtype; a dtype that the device cannot multiply is left out."""
    cuda = torch.device(torch_device).type == "cuda"
    cases: list[tuple[str, torch.dtype, bool]] = [(key, dtype, False) for key, dtype in _DTYPES.items()]
    if cuda:
        cases.append(("tf32", torch.float32, True))
    peaks: dict[str, float] = {}
    previous = torch.backends.cuda.matmul.allow_tf32
    for key, dtype, tf32 in cases:
        progress(f"matmul {key}")
        budget = budget_s / len(cases)
        # Large enough for the matrix units of a CPU to be busy: AMX does a third more at 2048 than at 1024. A type that
        # it multiplies one element at a time is told from a small product.
        sizes = ((4096 if key in ("fp64", "fp32") else 8192),) if cuda else (256, 2048)
        try:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            for size in sizes:
                x = torch.randn(size, size, device=torch_device).to(dtype)
                y, out = x.clone(), torch.empty_like(x)
                took = _seconds(partial(torch.mm, x, y, out=out), torch_device, budget if size == sizes[-1] else 0,
                                _least_disturbed(torch_device))
                if took * (sizes[-1] / size)**3 > budget:
                    break
        except (RuntimeError, NotImplementedError) as error:
            _log.info("no %s matmul on %s: %s", key, torch_device, error)
            continue
        finally:
            torch.backends.cuda.matmul.allow_tf32 = previous
        peaks[key] = 2 * size**3 / took
    return peaks


def _launch(torch_device: str) -> dict[str, float]:
    """Fixed cost of a tiny kernel: ``dispatch_s`` launched alone, and on CUDA ``launch_s`` inside a graph."""
    repeats = 200
    x = torch.zeros(32, device=torch_device)

    def work() -> None:
        for _ in range(repeats):
            x.add_(1.0)

    if torch.device(torch_device).type != "cuda":
        # One grain (32768 elements in ATen) runs on the calling thread; a grain for every thread opens an OpenMP region
        # that does the same work per thread. Best times: a fixed cost is what remains without interference.
        grain, threads = 32768, torch.get_num_threads()
        one, every = torch.zeros(grain), torch.zeros(grain * threads)
        serial = _seconds(lambda: [one.add_(1.0) for _ in range(20)], "cpu", 0.3, min) / 20
        parallel = _seconds(lambda: [every.add_(1.0) for _ in range(20)], "cpu", 0.3, min) / 20
        return {
            "dispatch_s": _seconds(work, "cpu", 0.2, min) / repeats,
            "launch_s": max(parallel - serial, _LEAST_LAUNCH_S),
        }
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    dispatch = (time.perf_counter() - start) / repeats
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return {"dispatch_s": dispatch, "launch_s": _seconds(graph.replay, torch_device, 0.5) / repeats}


def measure(torch_device: str, progress: Progress, cache_bytes: int) -> Mapping[str, Any]:
    """Measured ``bandwidth`` (B/s), ``peaks`` (FLOP/s by key), ``launch_s`` and ``dispatch_s``; of CPUs with caches of
    ``cache_bytes`` also ``l2_bandwidth`` (B/s), on arrays that fill half of it. Takes under a minute."""
    cpu = torch.device(torch_device).type == "cpu"
    progress("streaming bandwidth")
    measured = {"bandwidth": _bandwidth(torch_device, 4.0, (256 if cpu else 512) * 1024**2)}
    if cpu:
        progress("cache bandwidth")
        measured["l2_bandwidth"] = max(_bandwidth(torch_device, 1.0, cache_bytes // 6), measured["bandwidth"])
    peaks = _matmul_peaks(torch_device, 12.0, progress)
    progress("launch cost")
    return {**measured, "peaks": peaks, **_launch(torch_device)}


def calibrate(
    torch_device: str = "cpu",
    progress: Progress | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Device:
    """Measure this machine's ``"cpu"`` or ``"cuda"`` device, store the result and return it.

    Figures that are not measured keep their estimate or datasheet value, and `Device.sources` tells which is which.
    ``progress`` is called with the name of each step. ``folder`` defaults to the user's cache.
    """
    base = detect(torch_device)
    measured = measure(torch_device, progress or (lambda step: None), base.l2_bytes)
    rates = dict(measured["peaks"])
    if "fp64_tc" in base.peaks and "fp64" in rates:
        # The measurement is a matmul, which runs on the matrix units where they take fp64.
        rates["fp64_tc"] = rates.pop("fp64")
    peaks = {**base.peaks, **rates}
    stamp = f"measured with torch {torch.__version__}, {torch.get_num_threads()} threads"
    sources = {
        **base.sources,
        **dict.fromkeys((key for key in _RATES if key in measured), stamp),
        "peaks": f"{', '.join(sorted(rates))}: {stamp}; others: {base.sources.get('peaks', 'unknown')}",
    }
    device = replace(
        base,
        peaks=peaks,
        **{"l2_bandwidth": max(base.l2_bandwidth, measured["bandwidth"]),
           **{key: measured[key] for key in _RATES if key in measured}},
        sources=sources,
        calibrated=True,
    )
    path = save(device, Path(folder) if folder is not None else default_folder())
    _log.info("stored the calibration of %s in %s", device.name, path)
    return device
