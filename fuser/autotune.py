"""The measured choice among the candidates of each kernel: bounded, and made once for all processes of a machine."""
from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rooffuse.codegen.build_cpp import CompilationFailed, CompilerMissing
from rooffuse.codegen.cache import DiskCache
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .candidates import Candidate, candidates_key, candidates_of, load_candidates
from .measuring import Buffers, Run, Timer, buffer_bytes, evicting_bytes, free_bytes, timer_for
from .program import KernelStep
from .step_prices import step_estimate
from .targets import Target

log = logging.getLogger(__name__)

#: Part of the rounds in which a candidate has to be faster than the default.
CLEAR_ROUNDS = 0.7
#: Part of the free memory that the buffers of one kernel may take.
_MEMORY_SHARE = 0.8
_SUFFIX = ".tuned.json"
_NO_ROOM = "its buffers don't fit in free memory"


@dataclass(frozen=True)
class Search:
    """How a search goes.

    ``limit_s`` is the time after which no other kernel of a graph is begun, builds of candidates included; the kernel
    under way ends first, whose timing takes about ``kernel_s`` seconds. Another candidate than the default is chosen if
    the default takes more than ``margin`` longer by the median and by the best of the rounds, and longer at all in
    `CLEAR_ROUNDS` of them: less is noise, or others' work. ``timer`` is the device's (`measuring.timer_for`) if None.
    """

    limit_s: float = 20.0
    kernel_s: float = 0.5
    margin: float = 0.03
    timer: Timer | None = None
    clock: Callable[[], float] = time.perf_counter
    free_bytes: Callable[[torch.device], float] = free_bytes


DEFAULT_SEARCH = Search()


@dataclass(frozen=True)
class Outcome:
    """What was chosen for the kernel of some steps. ``seconds`` has the median time of each of ``names``, infinite
    for a candidate that couldn't be had, and is empty where nothing was measured; ``reason`` says why not. ``kept`` is
    True for what an earlier search left on disk."""

    steps: tuple[str, ...]
    candidate: Candidate
    names: tuple[str, ...]
    seconds: tuple[float, ...] = ()
    kept: bool = False
    reason: str = ""

    @property
    def speedup(self) -> float:
        """How many times longer the default took than what was chosen."""
        return self.seconds[0] / self.seconds[self.names.index(self.candidate.name)] if self.seconds else 1.0

    def __str__(self) -> str:
        if not self.seconds:
            return f"default, not measured: {self.reason}"
        others = f"{len(self.names) - 1} other{'s' if len(self.names) > 2 else ''}"
        when = "measured earlier" if self.kept else "measured now"
        if self.candidate.name == "default":
            return f"default, which {others} didn't beat ({when})"
        return f"{self.candidate.name}, {self.speedup:.2f}× faster than the default ({when}, of {others})"


@dataclass
class _Counts:
    """What a search has done."""

    measured: int = 0
    kept: int = 0
    damaged: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Work:
    """Steps with one kernel, its candidates, their key on disk, and the predicted seconds of all launches."""

    steps: tuple[KernelStep, ...]
    candidates: tuple[Candidate, ...]
    key: str
    seconds: float

    def outcome(self, chosen: int, **facts: Any) -> Outcome:
        return Outcome(tuple(s.name for s in self.steps), self.candidates[chosen],
                       tuple(c.name for c in self.candidates), **facts)


def autotune(steps: Sequence[KernelStep], target: Target, cache: DiskCache, eager_rounding: bool,
             search: Search = DEFAULT_SEARCH) -> tuple[Outcome, ...]:
    """A choice for each different kernel of ``steps`` that has several candidates, the longest by price first.

    What is known on disk is taken from there. The others run on memory of their own, in turns; what isn't reached in
    ``search.limit_s`` seconds, doesn't fit in memory or can't run here keeps its default, and the log says so. Nothing
    is measured while a CUDA graph is being captured. ``eager_rounding`` is as the kernels were lowered.
    """
    start = search.clock()
    counts = _Counts()
    found: list[Outcome] = []
    with unset_fake_temporarily(), torch.no_grad():
        for work in _works(steps, target, eager_rounding):
            outcome = _read(work, cache, counts)
            if outcome is None:
                obstacle = _obstacle(target) or _time_up(search.clock() - start, search) or _no_room(
                    work, target, search)
                outcome = work.outcome(0, reason=obstacle) if obstacle else _measure(work, target, cache, search)
                counts.measured += not outcome.reason
            counts.kept += outcome.kept
            if outcome.reason:
                counts.skipped[outcome.reason] = counts.skipped.get(outcome.reason, 0) + 1
            log.debug("autotune: %s: %s", ", ".join(outcome.steps), outcome)
            found.append(outcome)
        if counts.measured and target.torch_device.type == "cuda":
            torch.cuda.empty_cache()
    if found:
        log.info("autotune: %.1f s; kernels measured %d, known from disk %d, their entries damaged %d",
                 search.clock() - start, counts.measured, counts.kept, counts.damaged)
    for reason, count in counts.skipped.items():
        log.warning("autotune: %d kernel%s with the default: %s", count, " stays" if count == 1 else "s stay", reason)
    return tuple(found)


def known_outcomes(steps: Sequence[KernelStep], target: Target, cache: DiskCache, eager_rounding: bool
                   ) -> tuple[Outcome, ...]:
    """What `autotune` would take from disk; for other kernels the default, with the reason that nothing is known."""
    return tuple(_read(work, cache, _Counts()) or work.outcome(0, reason="no search on this device has met it")
                 for work in _works(steps, target, eager_rounding))


def chosen_candidates(outcomes: Sequence[Outcome]) -> dict[str, Candidate]:
    """By the name of the step."""
    return {name: o.candidate for o in outcomes for name in o.steps}


def _works(steps: Sequence[KernelStep], target: Target, eager_rounding: bool) -> list[_Work]:
    """The kernels that have several candidates, the most seconds first."""
    same: dict[Any, list[KernelStep]] = {}
    for step in steps:
        assert step.group.extracted is not None
        same.setdefault((step.group.extracted.key, step.streamed), []).append(step)
    works = []
    for group in same.values():
        candidates = candidates_of(group[0], target, eager_rounding)
        if len(candidates) > 1:
            try:
                key = candidates_key(candidates, target)
            except CompilerMissing:
                return []  # nothing can be built, which the build will say
            works.append(_Work(tuple(group), candidates, key, sum(step_estimate(s, target).seconds for s in group)))
    return sorted(works, key=lambda w: -w.seconds)


# -- what keeps a kernel from being measured --------------------------------------------------------------------------

def _obstacle(target: Target) -> str:
    if target.language != "triton" or target.interpreted:
        return ""
    if not torch.cuda.is_available():
        return "this machine has no GPU to measure on"
    return "a CUDA graph is being captured" if torch.cuda.is_current_stream_capturing() else ""


def _time_up(passed_s: float, search: Search) -> str:
    return f"the search's limit of {search.limit_s:g} s was reached" if passed_s >= search.limit_s else ""


def _no_room(work: _Work, target: Target, search: Search) -> str:
    device = target.torch_device
    needed = buffer_bytes(work.candidates[0].kernel) + evicting_bytes(device, target.device.l2_bytes)
    if needed <= _MEMORY_SHARE * search.free_bytes(device):
        return ""
    return _NO_ROOM


# -- measuring --------------------------------------------------------------------------------------------------------

def _measure(work: _Work, target: Target, cache: DiskCache, search: Search) -> Outcome:
    """Build and time the candidates and keep the result on disk."""
    device = target.torch_device
    timer = search.timer or timer_for(device, target.device.l2_bytes)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            buffers = Buffers(work.candidates[0].kernel, device)
            loaded = load_candidates(work.candidates, target, cache, buffers.tensors)
            runs = {k: run for k, run in enumerate(loaded) if run is not None and _runs(run, buffers, device)}
            if 0 not in runs:
                return work.outcome(0, reason="its default can't be run alone")
            samples = dict(zip(runs, timer(list(runs.values()), buffers.restore, search.kernel_s)))
    except CompilationFailed:
        return work.outcome(0, reason="the compiler refused its candidates")
    except (torch.OutOfMemoryError, MemoryError):
        return work.outcome(0, reason=_NO_ROOM)
    seconds = tuple(statistics.median(samples[k]) if k in samples else math.inf for k in range(len(work.candidates)))
    outcome = work.outcome(_best(samples, seconds, search.margin), seconds=seconds)
    _write(work.key, outcome, cache)
    # Another process may have measured at the same time: what is on disk counts, so that all choose the same.
    stored = _read(work, cache, _Counts())
    return outcome if stored is None else replace(stored, kept=False)


def _best(samples: Mapping[int, Sequence[float]], seconds: Sequence[float], margin: float) -> int:
    """The fastest candidate that beats the default clearly; else the default, which is 0."""
    for k in sorted(samples, key=seconds.__getitem__):
        won = sum(a < b for a, b in zip(samples[k], samples[0]))
        faster = seconds[0] > (1 + margin) * seconds[k] and min(samples[0]) > (1 + margin) * min(samples[k])
        if faster and won >= CLEAR_ROUNDS * len(samples[k]):
            return k
    return 0


def _runs(run: Run, buffers: Buffers, device: torch.device) -> bool:
    """Whether a candidate runs at all: it may ask for more shared memory than there is."""
    try:
        buffers.restore()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:  # each kind of which means that this candidate can't be had
        log.debug("a candidate can't be run: %s", error)
        return False
    return True


# -- on disk ----------------------------------------------------------------------------------------------------------

def _write(key: str, outcome: Outcome, cache: DiskCache) -> None:
    entry = {"chosen": outcome.candidate.name, "names": list(outcome.names),
             "seconds": [s if math.isfinite(s) else None for s in outcome.seconds]}

    def build(path: Path) -> None:
        path.write_text(json.dumps(entry))

    cache.get(key, _SUFFIX, build)


def _read(work: _Work, cache: DiskCache, counts: _Counts) -> Outcome | None:
    """The choice kept for these candidates; None if there is none, or one that makes no sense, which is dropped."""
    try:
        data = cache.read(work.key, _SUFFIX)
        return None if data is None else _parsed(work, data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        counts.damaged += 1
        log.warning("autotune: what is kept for %s can't be used (%s): it is measured again", work.steps[0].name, error)
        cache.drop(work.key, _SUFFIX)
        return None


def _parsed(work: _Work, data: bytes) -> Outcome:
    """Raises ValueError, KeyError or TypeError for what `_write` doesn't write."""
    entry = json.loads(data)
    names = [c.name for c in work.candidates]
    seconds = tuple(math.inf if s is None else float(s) for s in entry["seconds"])
    chosen = names.index(entry["chosen"])
    if entry["names"] != names or len(seconds) != len(names) or not all(s > 0 for s in seconds):
        raise ValueError("it is about other candidates")
    return work.outcome(chosen, seconds=seconds, kept=True)
