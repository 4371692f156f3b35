"""What ran on a GPU in each step, from the events of torch.profiler's trace."""
from __future__ import annotations

import bisect
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PREFIX = "rooffuse step "
_RANGE, _LAUNCHES = "user_annotation", frozenset({"cuda_runtime", "cuda_driver"})
_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


@dataclass(frozen=True)
class Activity:
    """One run of a step: what it put on the device, by name in the order of launching, and how long that ran."""

    launched: tuple[str, ...]
    device_us: float


@dataclass(frozen=True)
class _Range:
    step: int
    start: float
    end: float


def range_name(step: int) -> str:
    """The name of the range around a step."""
    return f"{_PREFIX}{step}"


def step_ranges(events: Iterable[Mapping[str, Any]]) -> dict[Any, list[_Range]]:
    """Ranges of steps on the host, by thread and in order of time."""
    found: dict[Any, list[_Range]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == _RANGE and event.get("ph") == "X" and name.startswith(_PREFIX):
            start = float(event["ts"])
            found.setdefault((event.get("pid"), event.get("tid")), []).append(
                _Range(int(name.removeprefix(_PREFIX)), start, start + float(event["dur"])))
    return {thread: sorted(ranges, key=lambda r: r.start) for thread, ranges in found.items()}


def step_activity(events: Iterable[Mapping[str, Any]]) -> dict[int, list[Activity]]:
    """For each step, its runs in order of time.

    ``events`` are the "traceEvents" of torch.profiler's Chrome trace. A kernel belongs to the launch on the host that
    has its correlation id, and a launch to the range of its thread that it happens in: what a step launches runs later
    than the step's range, and ranges on the device's own timeline are cut short where kernels overlap. Launches by the
    CUDA runtime (libraries) and the driver (Triton) count alike, and a kernel with a launch outside of all ranges
    belongs to no step.
    """
    listed = list(events)
    ranges = step_ranges(listed)
    launches: dict[Any, Mapping[str, Any]] = {}
    for event in listed:
        if event.get("cat") in _LAUNCHES and (correlation := event.get("args", {}).get("correlation")) is not None:
            launches[correlation] = event
    starts = {thread: [r.start for r in several] for thread, several in ranges.items()}
    parts: dict[tuple[Any, int], list[tuple[float, str, float]]] = {}
    for event in listed:
        if event.get("cat") not in _ON_DEVICE:
            continue
        launch = launches.get(event.get("args", {}).get("correlation"))
        if launch is None:
            continue
        thread = launch.get("pid"), launch.get("tid")
        k = bisect.bisect_right(starts.get(thread, []), float(launch["ts"])) - 1
        if k >= 0 and float(launch["ts"]) <= ranges[thread][k].end:
            parts.setdefault((thread, k), []).append((float(launch["ts"]), str(event["name"]), float(event["dur"])))
    runs = sorted((r.start, r.step, thread, k) for thread, several in ranges.items() for k, r in enumerate(several))
    found: dict[int, list[Activity]] = {}
    for _, step, thread, k in runs:
        inside = sorted(parts.get((thread, k), []))
        found.setdefault(step, []).append(Activity(tuple(name for _, name, _ in inside), sum(d for _, _, d in inside)))
    return found


def traced_events(work: Callable[[], None]) -> list[dict[str, Any]]:
    """Run ``work`` under torch.profiler, with the GPU's activities where there is one. Returns the trace's events."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        work()
    with tempfile.TemporaryDirectory(prefix="rooffuse-trace-") as folder:
        path = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
