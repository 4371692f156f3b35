"""CUDA graphs: decisions by price for any device, and the bookkeeping of replays with a recorder that needs no GPU."""
from __future__ import annotations

import pytest
import torch
from rooffuse.cuda_graphs import MAX_RECORDINGS, CapturedFunction, CudaRecorder, decide
from rooffuse.options import Options
from rooffuse.runtime import on_device

from tests.fuser.graphs import planned


def decode(x, w):
    for _ in range(4):
        x = torch.nn.functional.silu(x @ w)
    return x


def big(x, w):
    return torch.nn.functional.silu(x @ w)


def test_small_kernels_are_captured_and_the_reason_gives_the_price():
    plan = planned(decode, torch.empty(1, 1024), torch.empty(1024, 1024))
    decision = decide(plan, Options())
    assert decision.captured
    assert "us on average" in decision.reason


def test_long_kernels_hide_their_launches():
    plan = planned(big, torch.empty(8192, 8192), torch.empty(8192, 8192))
    decision = decide(plan, Options())
    assert not decision.captured
    assert "hide" in decision.reason
    assert decide(plan, Options(cuda_graphs=True)).captured


def test_off_means_off():
    plan = planned(decode, torch.empty(1, 64), torch.empty(64, 64))
    assert decide(plan, Options(cuda_graphs=False)) .reason == "the option cuda_graphs is False"


def test_a_cpu_graph_is_not_captured_even_when_asked():
    plan = planned(decode, torch.empty(1, 64), torch.empty(64, 64), device="cpu")
    decision = decide(plan, Options(cuda_graphs=True))
    assert not decision.captured
    assert "CPU" in decision.reason


def test_a_backward_is_captured_only_on_request():
    plan = planned(decode, torch.empty(1, 1024), torch.empty(1024, 1024))
    assert not decide(plan, Options(), backward=True).captured
    assert decide(plan, Options(cuda_graphs=True), backward=True).captured


class Tape:
    """Records by keeping the run; a replay runs it again into the same results.

    Recording must change nothing, as on a device, where recorded work doesn't run: ``untouched`` is put back.
    """

    def __init__(self, untouched=()):
        self.recorded = self.followed = 0
        self.untouched = untouched
        self.refuses = False

    def follow(self):
        self.followed += 1

    def record(self, run):
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.recorded += 1
        before = [t.clone() for t in self.untouched]
        results = run()
        for t, value in zip(self.untouched, before):
            t.copy_(value)

        def replay():
            for old, new in zip(results, run()):
                old.copy_(new)

        return replay, results


def captured(function, static=(), mutated=(), untouched=()):
    def boxed(args):
        values = list(args)
        args.clear()
        return function(*values)

    tape = Tape(untouched)
    return CapturedFunction(boxed, boxed, tape, static, mutated), tape


def test_replays_see_new_inputs_and_give_fresh_outputs():
    run, tape = captured(lambda x, w: (x * w,), static=(1,))
    w = torch.full((4,), 3.0)
    results = [run([torch.full((4,), float(k)), w])[0] for k in range(5)]
    for k, result in enumerate(results):
        assert torch.equal(result, torch.full((4,), 3.0 * k))
    assert tape.recorded == 1
    assert run.replays == 4


def test_every_replay_waits_for_those_before():
    run, tape = captured(lambda x: (x + 1,))
    for _ in range(4):
        run([torch.ones(2)])
    assert tape.followed == run.replays == 3


@pytest.mark.parametrize("devices", [1, 2])
def test_with_several_devices_a_run_is_on_its_own(monkeypatch, devices):
    current = []

    class Current:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "device", Current)
    device = torch.device("cuda", devices - 1)
    run = on_device(lambda args: tuple(args + current), device)
    assert run([1]) == ((1,) if devices == 1 else (1, device)) and not current
    assert on_device(run, torch.device("cpu")) is run


def test_streams_wait_for_each_other_when_they_change(monkeypatch):
    class Stream:
        def __init__(self):
            self.waited = []

        def wait_stream(self, other):
            self.waited.append(other)

    one, two = Stream(), Stream()
    recorder = CudaRecorder()
    for stream in (one, one, two, one):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda s=stream: s)
        recorder.follow()
    assert one.waited == [two] and two.waited == [one]


def test_what_cannot_be_recorded_runs_plainly_and_says_so_once(caplog):
    run, tape = captured(lambda cache, x: (cache.add_(x) * 2,), mutated=(0,))
    tape.refuses = True
    cache = torch.zeros(3)
    for k in range(1, 5):
        (out,) = run([cache, torch.ones(3)])
        assert torch.equal(out, torch.full((3,), 2.0 * k))
    assert run.replays == run.recordings == 0
    told = [r.getMessage() for r in caplog.records]
    assert told == ["the graph can't be recorded (operation not permitted when stream is capturing): it runs without a "
                    "CUDA graph"]


def test_inputs_are_emptied_and_not_kept():
    run, _ = captured(lambda x: (x + 1,))
    for _ in range(3):
        args = [torch.ones(2)]
        run(args)
        assert args == []


def test_mutated_inputs_change_where_they_lie_and_exactly_once_a_call():
    def step(cache, x):
        cache.add_(x)
        return (cache * 2,)

    cache = torch.zeros(3)
    run, _ = captured(step, mutated=(0,), untouched=(cache,))
    for k in range(1, 6):
        (out,) = run([cache, torch.ones(3)])
        assert torch.equal(cache, torch.full((3,), float(k)))
        assert torch.equal(out, torch.full((3,), 2.0 * k))


def test_parameters_are_static_wherever_they_stand():
    run, tape = captured(lambda x, w: (x @ w,))
    w = torch.nn.Parameter(torch.eye(3))
    with torch.no_grad():
        for k in range(4):
            x = torch.full((2, 3), float(k))
            assert torch.equal(run([x, w])[0], x)
        w.mul_(2)
        assert torch.equal(run([torch.ones(2, 3), w])[0], torch.full((2, 3), 2.0))
    assert tape.recorded == 1


def test_moving_static_inputs_are_recorded_a_bounded_number_of_times(caplog):
    run, tape = captured(lambda x, w: (x * w,), static=(1,))
    kept = [torch.full((4,), float(k)) for k in range(MAX_RECORDINGS + 4)]
    with caplog.at_level("WARNING", logger="rooffuse.cuda_graphs"):
        for w in kept:
            assert torch.equal(run([torch.ones(4), w])[0], w)
    assert tape.recorded == run.recordings == MAX_RECORDINGS
    assert len([r for r in caplog.records if "without a CUDA graph" in r.message]) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_capture_and_replay_on_a_device():
    linear = torch.nn.Linear(256, 256, device="cuda", dtype=torch.bfloat16)
    run = torch.compile(lambda x: torch.nn.functional.silu(linear(x)) + x, backend="rooffuse",
                        options={"cuda_graphs": True, "strict": True})
    with torch.no_grad():
        results = []
        for _ in range(6):
            x = torch.randn(1, 256, device="cuda", dtype=torch.bfloat16)
            results.append((run(x), torch.nn.functional.silu(linear(x)) + x))
        for ours, reference in results:
            torch.testing.assert_close(ours, reference, atol=2e-2, rtol=2e-2)
