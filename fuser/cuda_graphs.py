"""CUDA graphs: whether a program is captured, and how its inputs and outputs are kept honest when it is replayed.

A replay runs the recorded launches on the recorded addresses. Parameters, buffers and mutated inputs keep their
addresses between calls and are used where they lie; other inputs are copied into memory of the graph's own before each
replay; outputs are cloned out, so that a result never changes under its owner.
"""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .options import Options
from .program import CallStep, KernelStep
from .step_prices import step_estimate

if TYPE_CHECKING:
    from .compile import Plan

log = logging.getLogger(__name__)

#: With kernels at least this many times longer than a launch, launches hide behind them and capture gains little.
HIDDEN_LAUNCH_RATIO = 4.0
#: Recordings kept for one program, one for each set of static addresses.
MAX_RECORDINGS = 4
#: Plain runs before the first recording: they load kernels and let libraries choose theirs.
WARM_RUNS = 1

#: Library calls that wait for the device or whose result sizes depend on data.
_UNCAPTURABLE = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::item",
                           "aten::unique_dim", "aten::_unique2", "aten::unique_consecutive", "aten::bincount",
                           "aten::repeat_interleave"})

BoxedFunction = Callable[[list[Any]], tuple[Any, ...]]


@dataclass(frozen=True)
class Decision:
    """Whether a graph is captured, and the reason either way."""

    captured: bool
    reason: str


def decide(plan: Plan, options: Options, backward: bool = False) -> Decision:
    """Capture by price: worth it when the device finishes a kernel in about the time that launching one takes."""
    if options.cuda_graphs is False:
        return Decision(False, "the option cuda_graphs is False")
    if plan.target.device.kind == "cpu":
        return Decision(False, "the graph runs on the CPU")
    steps = [s for s in plan.program.steps if isinstance(s, KernelStep | CallStep)]
    if not steps:
        return Decision(False, "the graph launches nothing")
    obstacle = _obstacle(steps)
    if obstacle is not None:
        return Decision(False, obstacle)
    device = plan.target.device
    estimates = [step_estimate(s, plan.target) for s in steps]
    body = sum(max(e.compute_s, e.memory_s) for e in estimates) / len(steps)
    compared = (f"a kernel takes {body * 1e6:.1f} us on average and launching one {device.dispatch_s * 1e6:.1f} us "
                f"({len(steps)} launches)")
    if options.cuda_graphs is True:
        return Decision(True, f"the option cuda_graphs is True; {compared}")
    if backward:
        return Decision(False, "a backward graph gets its saved tensors at new addresses in every step; "
                               "cuda_graphs=True captures it all the same, at the price of copying them")
    if body > HIDDEN_LAUNCH_RATIO * device.dispatch_s:
        return Decision(False, f"{compared}: launches hide behind the kernels")
    return Decision(True, compared)


def _obstacle(steps: Sequence[KernelStep | CallStep]) -> str | None:
    """What makes a program impossible to capture."""
    for step in steps:
        if isinstance(step, KernelStep):
            continue
        target = step.node.target
        if isinstance(target, torch._ops.OpOverload) and target._schema.name in _UNCAPTURABLE:
            return f"{step.node.name} ({target}) makes the host wait for the device"
        values = step.node.meta.get("val")
        for value in values if isinstance(values, list | tuple) else [values]:
            if isinstance(value, torch.SymInt | torch.SymFloat):
                return f"{step.node.name} has a result that is only known when it runs"
    devices = {v.device.type for s in steps for n in (s.node, *s.node.all_input_nodes)
               if isinstance(v := n.meta.get("val"), Tensor)}
    if "cuda" in devices and len(devices) > 1:
        return f"the graph also has tensors on {', '.join(sorted(devices - {'cuda'}))}"
    return None


class Recorder(Protocol):
    """What records a run and returns something that replays it."""

    def record(self, run: Callable[[], tuple[Any, ...]]) -> tuple[Callable[[], None], tuple[Any, ...]]:
        """Run once, recorded; returns the replay and the results, whose memory every replay fills again."""

    def follow(self) -> None:
        """What the caller asks for from now on begins after all that it asked for before the last call of this."""


class CudaRecorder:
    """Records with ``torch.cuda.graph``, on a stream of the device that is current then."""

    def __init__(self) -> None:
        self._recording: torch.cuda.Stream | None = None
        self._last: torch.cuda.Stream | None = None

    def record(self, run: Callable[[], tuple[Any, ...]]) -> tuple[Callable[[], None], tuple[Any, ...]]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        if self._recording is None:  # by default it would be one for all devices, of that which recorded first
            self._recording = torch.cuda.Stream()
        with torch.cuda.graph(graph, stream=self._recording):
            results = run()
        return graph.replay, results

    def follow(self) -> None:
        stream = torch.cuda.current_stream()
        if self._last is not None and stream != self._last:
            stream.wait_stream(self._last)
        self._last = stream


@dataclass(frozen=True)
class _Recording:
    replay: Callable[[], None]
    copied: dict[int, Tensor]
    results: tuple[Any, ...]
    kept: tuple[Any, ...]  # keeps the tensors at the static addresses alive


class CapturedFunction:
    """A boxed function that runs plainly at first, is recorded, and is then replayed.

    Inputs at ``static`` positions, parameters, and inputs at ``mutated`` positions are used where they lie: a call
    with other addresses gets a recording of its own, up to ``MAX_RECORDINGS``; after that calls run plainly, and so do
    all where one couldn't be recorded; one warning says so. ``replays`` and ``recordings`` count.
    """

    def __init__(self, function: BoxedFunction, recorded: BoxedFunction, recorder: Recorder,
                 static: Collection[int], mutated: Collection[int]) -> None:
        self._boxed_call = True  # of the instance: wrappers copy those attributes
        self.function, self.recorded, self.recorder = function, recorded, recorder
        self.static, self.mutated = frozenset(static), frozenset(mutated)
        self.replays = 0
        self._runs = 0
        self._recordings: dict[tuple[int, ...], _Recording] = {}
        self._lock = threading.Lock()
        self._told = self._refused = False

    @property
    def recordings(self) -> int:
        return len(self._recordings)

    def _fixed(self, k: int, value: Any) -> bool:
        return k in self.static or k in self.mutated or isinstance(value, torch.nn.Parameter)

    def __call__(self, args: list[Any]) -> tuple[Any, ...]:
        if self._runs < WARM_RUNS or self._refused:
            self._runs += 1
            return self.function(args)
        if not self._lock.acquire(blocking=False):  # another thread is between its copies and its clones
            return self.function(args)
        try:
            return self._replay_or_record(args)
        finally:
            self._lock.release()

    def _replay_or_record(self, args: list[Any]) -> tuple[Any, ...]:
        fixed = [k for k, a in enumerate(args) if isinstance(a, Tensor) and self._fixed(k, a)]
        key = tuple(args[k].data_ptr() for k in fixed)
        recording = self._recordings.get(key)
        if recording is None:
            if len(self._recordings) >= MAX_RECORDINGS:
                self._tell(f"static inputs came at more than {MAX_RECORDINGS} sets of addresses: further ones run")
                return self.function(args)
            try:
                recording = self._record(args, frozenset(fixed))
            except RuntimeError as error:  # a library call that waits for the device, or memory run out
                self._refused = True
                self._tell(f"the graph can't be recorded ({str(error).partition(chr(10))[0]}): it runs")
                return self.function(args)
            self._recordings[key] = recording
        self.recorder.follow()  # all replays use the same memory, from whichever stream they are asked for
        for k, own in recording.copied.items():
            own.copy_(args[k])
        args.clear()
        recording.replay()
        self.replays += 1
        return tuple(r.clone() if isinstance(r, Tensor) else r for r in recording.results)

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            log.warning("%s without a CUDA graph", what)

    def _record(self, args: Sequence[Any], fixed: frozenset[int]) -> _Recording:
        copied = {k: torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=a.device).copy_(a)
                  for k, a in enumerate(args) if isinstance(a, Tensor) and k not in fixed}
        inputs = [copied.get(k, a) for k, a in enumerate(args)]
        before = {k: inputs[k].clone() for k in self.mutated if isinstance(inputs[k], Tensor)}
        self.recorded(list(inputs))  # loads what loads lazily; a recording must not
        for k, value in before.items():
            inputs[k].copy_(value)
        replay, results = self.recorder.record(lambda: self.recorded(list(inputs)))
        return _Recording(replay, copied, results, tuple(inputs[k] for k in sorted(fixed)))
