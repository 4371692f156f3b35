"""Which kernels of a profiler's trace belong to which step."""
from __future__ import annotations

from typing import Any

import pytest
import rooffuse
import torch
from rooffuse.cli import main
from rooffuse.compile import build
from rooffuse.explanation import planned_call
from rooffuse.options import make_options
from rooffuse.profiling import profile_call
from rooffuse.step_trace import Activity, range_name, step_activity, step_ranges, traced_events
from rooffuse.stepper import Stepper

Event = dict[str, Any]


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1, correlation: int | None = None) -> Event:
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": args}


def launched(correlation: int, at: float, name: str, start: float, dur: float, *, by: str = "cuda_runtime",
             tid: int = 1, cat: str = "kernel") -> list[Event]:
    """A launch on the host and what it started, as torch.profiler writes them for CUDA."""
    return [event(by, "cudaLaunchKernel" if by == "cuda_runtime" else "cuLaunchKernelEx", at, 3, tid, correlation),
            {**event(cat, name, start, dur, 7, correlation), "pid": 0}]


def test_kernels_belong_to_the_range_that_launched_them():
    events = [
        event("user_annotation", range_name(0), 100, 20), event("user_annotation", range_name(1), 130, 20),
        # The device lags behind: step 0's kernels run while the host is in step 1's range, or past both.
        *launched(11, 105, "rf_fused_0", 140, 5, by="cuda_driver"),
        *launched(13, 137, "splitKreduce", 161, 2), *launched(12, 131, "sm90_xmma_gemm", 146, 15),
        *launched(14, 140, "Memset (Device)", 163, 1, cat="gpu_memset"),
        *launched(15, 125, "between", 170, 50), *launched(16, 10, "before", 20, 50)]
    assert step_activity(events) == {0: [Activity(("rf_fused_0",), 5)],
                                     1: [Activity(("sm90_xmma_gemm", "splitKreduce", "Memset (Device)"), 18)]}
    assert step_activity(reversed(events)) == step_activity(events)


def test_each_run_of_a_step_is_one_activity():
    events = []
    for k in range(3):
        events += [event("user_annotation", range_name(4), 100 * k, 20),
                   *launched(k, 100 * k + 1, "one", 900 + k, 2 + k)]
    events.append(event("user_annotation", range_name(4), 300, 20))  # a run that launched nothing
    assert [a.device_us for a in step_activity(events)[4]] == [2, 3, 4, 0]


def test_other_threads_and_strangers_are_left_out():
    events = [event("user_annotation", range_name(0), 0, 50), event("user_annotation", "Optimizer", 0, 50),
              event("gpu_user_annotation", range_name(0), 60, 50, tid=7), event("cpu_op", "aten::mm", 1, 9),
              *launched(1, 10, "theirs", 60, 9, tid=2), event("kernel", "no launch was seen", 60, 9, 7, 99),
              *launched(2, 10, "ours", 70, 4)]
    assert step_activity(events) == {0: [Activity(("ours",), 4)]}
    assert step_activity([]) == {}


@pytest.fixture(scope="module")
def stepper() -> Stepper:
    def run(x, w):
        return torch.cumsum(torch.softmax(x @ w, -1), 0) @ w.t()

    planned = planned_call(run, (torch.empty(64, 32), torch.empty(32, 48)), {}, rooffuse.cost_model.local_device("cpu"))
    (plan, _), = planned.calls
    return Stepper(plan, build(plan, make_options())[0], torch.device("cpu"))


def test_the_profiler_sees_every_step_in_order(stepper):
    """With torch's own trace, in which launches are put where a GPU's would be."""
    events = traced_events(lambda: [stepper.run_in_ranges() for _ in range(2)])
    (ranges,) = step_ranges(events).values()
    steps = len(stepper.program.steps)
    assert [r.step for r in ranges] == 2 * list(range(steps)) and steps >= 3
    annotation = next(e for e in events if e.get("name") == range_name(0))
    extra = []
    for k, r in enumerate(ranges):
        launch, kernel = launched(k, (r.start + r.end) / 2, f"kernel {r.step}", r.end + 1e6, 10 + r.step)
        extra += [{**launch, "pid": annotation["pid"], "tid": annotation["tid"]}, kernel]
    assert step_activity([*events, *extra]) == {
        k: 2 * [Activity((f"kernel {k}",), 10 + k)] for k in range(steps)}


def test_library_calls_are_inside_of_their_ranges(stepper):
    events = traced_events(stepper.run_in_ranges)
    (ranges,) = step_ranges(events).values()
    inside = {r.step: {e["name"] for e in events if e.get("cat") == "cpu_op" and r.start <= e["ts"] <= r.end}
              for r in ranges}
    assert any("aten::mm" in names for names in inside.values())
    assert not any("aten::add_" in names for names in inside.values())  # emptying caches belongs to no step


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has a GPU to profile on")
def test_a_gpu_that_is_not_there(capsys):
    assert main(["profile", "gpt2", "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert "no CUDA device on this machine" in err and err.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_profile_on_a_device():
    def run(x, w):
        return torch.softmax(x @ w, -1)

    x, w = (torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product, softmax = profile_call(run, (x, w), {}, budget_s=1.0).kernels
    assert product.kind == "extern" and softmax.kind == "triton" and product.launched and len(softmax.launched) == 1
    assert 0.1 < product.roof_share < 1.2 and 0.1 < softmax.roof_share < 1.5
    assert [k.name for k in profile_call(run, (x.to("meta"), w.to("meta")), {}, 1.0, "cuda").kernels] == [
        product.name, softmax.name]
