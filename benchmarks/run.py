"""Runs a suite: every case and type, all contenders interleaved, checked against eager before they are timed.

What makes the comparison fair: all contenders get one function with one set of parameters, equal copies of the
inputs, the same static shapes (``dynamic=False``), types and threads; they run in one process in turn (A B A B), warm,
and each drops its results before its next call. Inference runs under ``torch.no_grad()``. A contender whose results
differ from eager's, or that raises, is not timed: its row says so. In 16-bit types eager itself rounds between
operators; there a contender may differ if it is no further than eager from what eager computes in float32. Bytes and
launches are each compiler's own count for its schedule. Peak memory on CUDA is the allocator's, over what was
allocated before the contender compiled; on the CPU it is how far the resident set grows during one warm call, and for
rooffuse the arena that it keeps between calls on top, since that is resident already.
"""
from __future__ import annotations

import copy
import logging
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
from torch.utils._pytree import tree_map_only

from .cases import DTYPES, Case, cases_of
from .cold import CompileTimes
from .cold import measure as measure_cold
from .contenders import as_call, contender
from .facts import Facts, observed
from .measure import Timing, cuda_peak, floor_bytes, resident_growth, tensors_in, time_calls, worst_error
from .rows import Row, context

log = logging.getLogger(__name__)

#: Largest difference from eager, relative to the largest value, that counts as right; bf16 has 8 bits.
TOLERANCE = {"fp32": 1e-4, "bf16": 4e-2, "fp16": 1e-2}
#: Gradients below this part of the largest are compared on this scale: many are zero but for rounding.
GRADIENT_SCALE = 1e-2


@dataclass(frozen=True)
class Settings:
    """How a suite is run. ``budget_s`` is the time for each contender's timing; an empty ``dtypes`` means all of a
    case's; ``quick`` takes the cases of a quick round, each in the first type that it has; ``cold`` measures compile
    times too, ``primed`` also those with caches that another function filled."""

    against: tuple[str, ...] = ("eager", "inductor")
    device: str = "cpu"
    pattern: str = ""
    dtypes: tuple[str, ...] = ()
    budget_s: float = 1.0
    quick: bool = False
    cold: bool = False
    primed: bool = False


@dataclass
class _Entry:
    """One contender on one case, as far as it has come."""

    name: str
    facts: Facts = field(default_factory=Facts)
    error: float | None = None
    note: str = ""
    call: Any = None
    peak_bytes: int | None = None
    times: CompileTimes | None = None
    timing: Timing | None = None


def jobs(suite: str, settings: Settings) -> list[tuple[Case, str]]:
    """Cases with a type each, in the order of the suite. Raises ValueError for an unknown suite."""
    result = []
    for case in cases_of(suite, settings.pattern, settings.device):
        if settings.quick and not case.quick:
            continue
        wanted = [d for d in settings.dtypes or case.dtypes if d in case.dtypes]
        result += [(case, d) for d in (wanted[:1] if settings.quick else wanted)]
    return result


def run_suite(suite: str, settings: Settings) -> Iterator[list[Row]]:
    """Rows of one case and type at a time. A case that can't even run eagerly gives a row that says so."""
    for case, dtype in jobs(suite, settings):
        yield run_job(case, dtype, settings)


def run_job(case: Case, dtype: str, settings: Settings) -> list[Row]:
    """One row a contender; rooffuse is always one of them."""
    names = [n for n in settings.against if n != "rooffuse"] + ["rooffuse"]
    try:
        if case.suite == "compile":
            from .compiling import compile_rows

            return compile_rows(case, dtype, names, settings)
        return _run_case(case, dtype, names, settings)
    except Exception as error:
        log.debug("%s %s", case.name, dtype, exc_info=True)
        return [Row(case.suite, case.name, dtype, "eager", note=_failure(error),
                    **context(settings.device))]  # type: ignore[arg-type]


def _failure(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"failed: {type(error).__name__}: {lines[0][:160]}"


def _run_case(case: Case, dtype: str, names: Sequence[str], settings: Settings) -> list[Row]:
    device = settings.device
    torch._dynamo.reset()
    fn, args = case.make(device, DTYPES[dtype])
    with torch.set_grad_enabled(case.training):
        eager_args = copy.deepcopy(args)
        reference = as_call(case, fn, fn)(*eager_args)
        before, after = tensors_in(args), tensors_in(eager_args)
        written = [b for a, b in zip(before, after) if not torch.equal(a, b)]
        floor = case.floor(fn, args) if case.floor else floor_bytes(fn, args, reference, written)
        entries = []
        for name in names:
            entry = _Entry(name)
            own = copy.deepcopy(args)
            baseline = torch.cuda.memory_allocated() if device == "cuda" else 0
            try:
                call = as_call(case, fn, contender(name, fn, case))
                with observed(name) as entry.facts:
                    result = call(*own)
                scale = GRADIENT_SCALE if case.training else 0.0
                entry.error = max(worst_error(result, reference, scale), worst_error(own, eager_args))
                if entry.error > (case.tolerance or TOLERANCE[dtype]) and not _closer_than_eager(
                        case, dtype, fn, args, result, reference):
                    entry.note = f"wrong: differs from eager by {entry.error:.2g}"
                else:
                    del result
                    entry.call = lambda call=call, own=own: call(*own)
                    entry.call()
                    entry.peak_bytes = _peak(entry, device, baseline)
            except Exception as error:
                log.debug("%s %s %s", case.name, dtype, name, exc_info=True)
                entry.note, entry.call = _failure(error), None
            entries.append(entry)
        del reference
        timings = time_calls({e.name: e.call for e in entries if e.call is not None}, device, settings.budget_s)
    for entry in entries:
        entry.timing = timings.get(entry.name)
        if settings.cold and entry.call is not None and entry.name != "eager":
            entry.times = compile_times(case, dtype, entry.name, settings)
    return _rows(case, dtype, entries, floor, context(device))


def _closer_than_eager(case: Case, dtype: str, fn: Any, args: Any, result: Any, reference: Any) -> bool:
    """Whether a 16-bit result is at most a little further than eager's from what eager computes in float32."""
    if dtype == "fp32" or case.training:
        return False

    def widened(value: Any) -> Any:
        return tree_map_only(torch.Tensor, lambda t: t.float() if t.dtype == DTYPES[dtype] else t, value)

    wide = copy.deepcopy(fn).float() if isinstance(fn, torch.nn.Module) else fn
    truth = tensors_in(wide(*widened(copy.deepcopy(args))))
    ours, eager = ([t.float() if t.is_floating_point() else t for t in tensors_in(r)] for r in (result, reference))
    return worst_error(ours, truth) <= 1.1 * worst_error(eager, truth)


def compile_times(case: Case, dtype: str, name: str, settings: Settings) -> CompileTimes | None:
    """Compile times in fresh processes; None, with a warning in the log, where that fails."""
    try:
        return measure_cold(case.suite, case.name, dtype, settings.device, name, settings.primed)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        log.warning("%s", error)
        return None


def _peak(entry: _Entry, device: str, baseline: int) -> int | None:
    if device == "cuda":
        return cuda_peak(entry.call, baseline)
    growth = resident_growth(entry.call)
    return None if growth is None else growth + entry.facts.kept_bytes


def _rows(case: Case, dtype: str, entries: Sequence[_Entry], floor: int, where: dict[str, Any]) -> list[Row]:
    ours = next(e.facts for e in entries if e.name == "rooffuse")
    roof_us = 1e6 * max(floor / (where["roof_gbs"] * 1e9), ours.compute_s)
    rows = []
    for e in entries:
        median = e.timing.median_us if e.timing else None
        rows.append(Row(
            case.suite, case.name, dtype, e.name, median,
            e.timing.low_us if e.timing else None, e.timing.high_us if e.timing else None,
            error=e.error, floor_bytes=floor, flops=ours.flops,
            achieved_gbs=floor / median / 1e3 if median else None,
            roof_us=roof_us, share_of_roof=roof_us / median if median else None,
            predicted_us=1e6 * e.facts.predicted_s if e.facts.predicted_s is not None else None,
            bytes_over_floor=e.facts.bytes / floor if e.facts.bytes is not None and floor else None,
            launches=e.facts.launches, peak_bytes=e.peak_bytes,
            cold_s=e.times.cold_s if e.times else None, primed_s=e.times.primed_s if e.times else None,
            warm_s=e.times.warm_s if e.times else None, note=e.note, **where))
    return rows
