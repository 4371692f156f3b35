"""The measured choice among candidates: what it measures, what it keeps, and where it stops."""
from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from rooffuse.autotune import Search
from rooffuse.codegen.build_cpp import CompilationFailed
from rooffuse.compile import chosen_candidates, compile_graph, kernel_steps, step_source
from rooffuse.cost_model import get_device, local_device
from rooffuse.options import Options
from rooffuse.targets import Target, target_for
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .graphs import trace
from .searches import CPU, INPUTS, INTERPRETED, FakeTimer, compiled, entries, never, row_sums, two_kernels


@pytest.mark.parametrize("target", [CPU, INTERPRETED], ids=["cpp", "triton"])
def test_the_fastest_candidate_is_what_runs(target: Target, tmp_path: Path) -> None:
    timer = FakeTimer(1.0, *[0.9] * (2 if target is CPU else 4), 0.5)
    found = compiled(row_sums, INPUTS, tmp_path, timer, target)
    (outcome,) = found.tuned
    assert timer.calls == [len(outcome.names)] and outcome.candidate.name == outcome.names[-1]
    assert outcome.speedup == 2.0 and not outcome.kept
    torch.testing.assert_close(found(list(INPUTS))[0], row_sums(*INPUTS), rtol=1e-4, atol=1e-3)
    (step,) = kernel_steps(found.plan.program)
    assert step_source(step, target, chosen_candidates(found.tuned)) != step_source(step, target)


def test_noise_does_not_choose(tmp_path: Path) -> None:
    (outcome,) = compiled(row_sums, INPUTS, tmp_path / "a", FakeTimer(1.0, 0.98)).tuned
    assert outcome.candidate.name == "default" and "didn't beat" in str(outcome)
    (outcome,) = compiled(row_sums, INPUTS, tmp_path / "b", FakeTimer(1.0, 0.96)).tuned
    assert outcome.candidate.name == outcome.names[1]


def test_a_gain_that_others_on_the_machine_made_does_not_choose(tmp_path: Path) -> None:
    def disturbed(runs: Sequence[Callable[[], None]], restore: Any, budget_s: float) -> list[list[float]]:
        return [[1.0] + [2.0] * 4, *[[1.0] * 5] * (len(runs) - 1)]

    (outcome,) = compiled(row_sums, INPUTS, tmp_path, disturbed).tuned
    assert outcome.candidate.name == "default" and outcome.seconds[:2] == (2.0, 1.0)


def test_a_gain_in_some_rounds_only_does_not_choose(tmp_path: Path) -> None:
    def unsteady(runs: Sequence[Callable[[], None]], restore: Any, budget_s: float) -> list[list[float]]:
        default, often, mostly = [1.0] * 10, [0.5] * 6 + [2.0] * 4, [0.8] * 8 + [2.0] * 2
        return [default, often, mostly, *[default] * (len(runs) - 3)]

    (outcome,) = compiled(row_sums, INPUTS, tmp_path, unsteady).tuned
    assert outcome.candidate.name == outcome.names[2] and outcome.seconds[1:3] == (0.5, 0.8)


def test_without_the_option_nothing_is_measured_or_changed(tmp_path: Path) -> None:
    options = Options(cache_dir=str(tmp_path))
    found = compile_graph(trace(row_sums, *INPUTS), CPU, options, search=Search(timer=never))
    assert found.tuned == () and not entries(tmp_path)


def test_equal_kernels_are_measured_once(tmp_path: Path) -> None:
    def layers(x: Tensor, w: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(x) @ w
        return x

    timer = FakeTimer(1.0, 0.5)
    found = compiled(layers, (torch.randn(64, 512), torch.randn(512, 512)), tmp_path, timer)
    assert len(timer.calls) == 1
    (outcome,) = found.tuned
    assert len(outcome.steps) == 3


# -- on disk ----------------------------------------------------------------------------------------------------------

def test_a_second_compilation_measures_nothing_and_chooses_the_same(tmp_path: Path) -> None:
    (first,) = compiled(row_sums, INPUTS, tmp_path, FakeTimer(1.0, 0.5)).tuned
    (second,) = compiled(row_sums, INPUTS, tmp_path, never).tuned
    assert second.kept and replace(second, kept=False) == first


def test_another_kernel_another_device_or_other_threads_are_other_entries(tmp_path: Path) -> None:
    compiled(row_sums, INPUTS, tmp_path, FakeTimer())
    compiled(row_sums, (torch.randn(41, 3000), INPUTS[1]), tmp_path, FakeTimer())
    compiled(row_sums, INPUTS, tmp_path, FakeTimer(), replace(CPU, device=replace(CPU.device, name="another")))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        compiled(row_sums, INPUTS, tmp_path, FakeTimer())
    finally:
        torch.set_num_threads(threads)
    assert len(entries(tmp_path)) == 4


SECOND = """
import sys, torch
from pathlib import Path
from tests.fuser.test_autotune import CPU, FakeTimer, INPUTS, compiled, never, row_sums
timer = never if sys.argv[2] == "never" else FakeTimer(1.0, 0.9, 0.5)
(outcome,) = compiled(row_sums, (torch.empty(40, 3000), torch.empty(3000)), Path(sys.argv[1]), timer).tuned
print(outcome.candidate.name, outcome.kept)
"""


def test_a_second_process_measures_nothing_whatever_its_hash_seed(tmp_path: Path) -> None:
    found = []
    for seed, timer in (("1", "fake"), ("2", "never")):
        run = subprocess.run([sys.executable, "-c", SECOND, str(tmp_path), timer], capture_output=True, text=True,
                             env={**os.environ, "PYTHONHASHSEED": seed})
        assert run.returncode == 0, run.stderr
        found.append(run.stdout.split())
    assert found[0][-1] == "False" and found[1][-1] == "True" and found[0][:-1] == found[1][:-1]


def with_checksum(path: Path, text: str) -> None:
    path.write_text(text)
    Path(f"{path}.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())


@pytest.mark.parametrize("damage", [
    lambda p: p.write_text("{"),
    lambda p: Path(f"{p}.sha256").unlink(),
    lambda p: with_checksum(p, "no JSON"),
    lambda p: with_checksum(p, "[1, 2]"),
    lambda p: with_checksum(p, "{}"),
    lambda p: with_checksum(p, json.dumps({**json.loads(p.read_text()), "chosen": "nonsense"})),
    lambda p: with_checksum(p, json.dumps({**json.loads(p.read_text()), "seconds": [1.0]})),
    lambda p: with_checksum(p, json.dumps({**json.loads(p.read_text()), "seconds": "soon"})),
], ids=["cut", "without checksum", "no JSON", "a list", "empty", "unknown choice", "too few", "no numbers"])
def test_a_damaged_entry_is_measured_anew_and_told(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiled(row_sums, INPUTS, tmp_path, FakeTimer(1.0, 0.5))
    (entry,) = entries(tmp_path)
    damage(entry)
    timer = FakeTimer(1.0, 0.9, 0.4)
    with caplog.at_level(logging.INFO, logger="rooffuse"):
        (outcome,) = compiled(row_sums, INPUTS, tmp_path, timer).tuned
    assert len(timer.calls) == 1 and outcome.candidate.name == outcome.names[2]
    assert "measured again" in caplog.text and "damaged 1" in caplog.text
    (again,) = compiled(row_sums, INPUTS, tmp_path, never).tuned
    assert again.kept and again.candidate == outcome.candidate


# -- bounds -----------------------------------------------------------------------------------------------------------

def test_the_longest_kernel_comes_first_and_the_limit_ends_the_search(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    time = iter(range(0, 1000, 15))
    with caplog.at_level(logging.INFO, logger="rooffuse"):
        first, second = compiled(two_kernels, (torch.randn(4000, 300), torch.randn(300)), tmp_path,
                                 FakeTimer(1.0, 0.5), limit_s=20.0, clock=lambda: float(next(time))).tuned
    assert first.candidate.name == first.names[1] and first.steps == ("fused_0",)
    assert second.candidate.name == "default" and "limit of 20 s" in second.reason
    assert "1 kernel stays with the default: the search's limit of 20 s was reached" in caplog.text
    assert len(entries(tmp_path)) == 1  # what wasn't measured isn't kept


def test_what_does_not_fit_in_memory_keeps_its_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (outcome,) = compiled(row_sums, INPUTS, tmp_path, never, free_bytes=lambda device: 4 * 40 * 3000).tuned
    assert outcome.candidate.name == "default" and "fit in free memory" in outcome.reason
    assert "fit in free memory" in caplog.text and not entries(tmp_path)


def test_memory_that_is_not_there_after_all_is_no_error(tmp_path: Path) -> None:
    def greedy(runs: Any, restore: Any, budget_s: float) -> list[list[float]]:
        raise torch.OutOfMemoryError("no more")

    (outcome,) = compiled(row_sums, INPUTS, tmp_path, greedy).tuned
    assert outcome.candidate.name == "default" and "memory" in outcome.reason


def test_candidates_that_the_compiler_refuses_leave_the_default(tmp_path: Path, monkeypatch) -> None:
    from rooffuse import candidates

    def refuse(source: str, cache: Any) -> Path:
        raise CompilationFailed("no")

    monkeypatch.setattr(candidates, "compile_library", refuse)
    found = compiled(row_sums, INPUTS, tmp_path, never)
    assert "refused" in found.tuned[0].reason and not found.fallbacks


def test_a_candidate_that_cannot_run_is_left_out(tmp_path: Path, monkeypatch) -> None:
    from rooffuse import autotune

    load = autotune.load_candidates

    def broken(*args: Any) -> list[Any]:
        def fail() -> None:
            raise RuntimeError("out of resource: shared memory")

        runs = load(*args)
        return [runs[0], fail, None, *runs[3:]]

    monkeypatch.setattr(autotune, "load_candidates", broken)
    (outcome,) = compiled(row_sums, INPUTS, tmp_path, FakeTimer(1.0, 0.5)).tuned
    assert outcome.seconds[1:3] == (float("inf"), float("inf")) and outcome.candidate.name == outcome.names[3]
    (again,) = compiled(row_sums, INPUTS, tmp_path, never).tuned
    assert again.seconds == outcome.seconds


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_the_price_chooses_and_the_log_says_so_once(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inputs = (torch.randn(4000, 300), torch.randn(300))
    found = compiled(two_kernels, inputs, tmp_path, never, target_for(get_device("h100")))
    assert len(found.tuned) == 2 and all(o.candidate.name == "default" for o in found.tuned)
    assert sum("no GPU to measure on" in r.getMessage() for r in caplog.records) == 1


def test_nothing_is_measured_while_a_cuda_graph_is_captured(tmp_path: Path, monkeypatch) -> None:
    from rooffuse import autotune
    from rooffuse.codegen.cache import DiskCache

    plan = compiled(row_sums, INPUTS, tmp_path / "plan", FakeTimer(), INTERPRETED).plan
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    (outcome,) = autotune.autotune(kernel_steps(plan.program), target_for(get_device("h100")), DiskCache(tmp_path),
                                   False, Search(timer=never))
    assert "captured" in outcome.reason


# -- buffers ----------------------------------------------------------------------------------------------------------

def test_the_users_data_is_not_touched(tmp_path: Path, monkeypatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("ROOFFUSE_CACHE_DIR", str(tmp_path))

    def step(cache: Tensor, total: Tensor, k: Tensor, position: Tensor, at: Tensor) -> Tensor:
        cache.index_copy_(0, position, k * 2)
        total.mul_(0.5)
        total.index_add_(0, at, k)
        return cache.sum(1)

    def inputs() -> list[Tensor]:
        torch.manual_seed(1)
        return [torch.randn(64, 1500), torch.randn(32, 1500), torch.randn(16, 1500), torch.arange(8, 24),
                torch.arange(16) % 5]

    ours, reference = inputs(), inputs()
    run = torch.compile(step, backend="rooffuse", mode="max-autotune", options=None, dynamic=False)
    torch.testing.assert_close(run(*ours), step(*reference), rtol=1e-4, atol=1e-3)
    for a, b in zip(ours, reference):
        torch.testing.assert_close(a, b)
    assert entries(tmp_path)  # and yet something was measured


def test_what_a_kernel_updates_in_place_is_the_same_for_every_run(tmp_path: Path) -> None:
    from rooffuse.measuring import Buffers, buffer_bytes

    found = compiled(lambda x: x.copy_(x * 2.0), (torch.randn(8, 3000),), tmp_path, FakeTimer())
    (step,) = kernel_steps(found.plan.program)
    assert step.group.lowered is not None
    kernel = step.group.lowered.kernel
    buffers = Buffers(kernel, torch.device("cpu"))
    updated = next(t for b, t in zip(kernel.buffers, buffers.tensors) if b.name in kernel.written & kernel.read)
    before = updated.clone()
    updated.fill_(float("nan"))
    buffers.restore()
    assert torch.equal(updated, before) and bool((updated > 0).all())
    assert buffer_bytes(kernel) == 3 * 4 * 8 * 3000  # the argument, a copy to restore it from, and the result


def test_buffers_are_real_inside_of_a_fake_mode(tmp_path: Path) -> None:
    found: list[bool] = []

    def timer(runs: Sequence[Callable[[], None]], restore: Callable[[], None], budget_s: float) -> list[list[float]]:
        found.append(isinstance(torch.empty(1), FakeTensor))
        for run in runs:
            run()
        return [[1.0]] * len(runs)

    gm = trace(row_sums, *INPUTS)
    options = Options(autotune=True, cache_dir=str(tmp_path))
    value = next(iter(gm.graph.nodes)).meta["val"]
    with value.fake_mode:
        compile_graph(gm, CPU, options, search=Search(timer=timer))
    assert found == [False]


# -- timers ------------------------------------------------------------------------------------------------------------

def test_the_clock_takes_turns_and_restores_before_each_sample() -> None:
    from rooffuse.measuring import ROUNDS, time_on_cpu

    order: list[str] = []

    def run(name: str, length: int) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            torch.ones(length).exp_()

        return call

    short, long = time_on_cpu([run("short", 1 << 12), run("long", 1 << 21)], lambda: order.append("restored"), 0.0)
    assert len(short) == len(long) == ROUNDS[0] and 0 < min(short) < min(long)
    samples = [name for k, name in enumerate(order) if k and order[k - 1] == "restored"][2:]
    assert len(samples) == 2 * ROUNDS[0] and samples[:4] == ["short", "long", "long", "short"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_by_events(tmp_path: Path) -> None:
    target = Target("triton", local_device("cuda"), torch.device("cuda", torch.cuda.current_device()))
    inputs = [torch.randn(4096, 4096, device="cuda") for _ in range(2)]
    found = compiled(lambda x, y: (x * y).softmax(-1), inputs, tmp_path, None, target)
    (outcome,) = found.tuned
    assert all(1e-6 < s < 1e-2 for s in outcome.seconds)
    torch.testing.assert_close(found(list(inputs))[0], (inputs[0] * inputs[1]).softmax(-1))
