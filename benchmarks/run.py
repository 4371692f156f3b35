"""Runs a suite: every case and type, all contenders interleaved, checked against eager before they are timed."""
from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch._dynamo

from .cases import DTYPES, Case, cases_of
from .cold import measure as measure_cold
from .contenders import CONTENDERS
from .measure import floor_bytes, time_calls, worst_error
from .rows import Row, context

#: Largest difference from eager, relative to the largest value, that counts as right; bf16 has 8 bits.
TOLERANCE = {"fp32": 1e-4, "bf16": 4e-2, "fp16": 1e-2}


def run_suite(suite: str, against: Sequence[str], device: str, pattern: str = "", dtypes: Sequence[str] = (),
              budget_s: float = 1.0, cold: bool = False) -> Iterator[list[Row]]:
    """Rows of one case and type at a time, in the order of the suite."""
    for found in cases_of(suite, pattern):
        for dtype in found.dtypes:
            if not dtypes or dtype in dtypes:
                yield run_case(found, dtype, [*against, "rooffuse"], device, budget_s, cold)


def run_case(found: Case, dtype: str, names: Sequence[str], device: str, budget_s: float, cold: bool) -> list[Row]:
    """One row a contender."""
    where = context(device)
    torch._dynamo.reset()
    fn, args = found.make(device, DTYPES[dtype])
    notes: dict[str, str] = {}
    errors: dict[str, float] = {}
    calls: dict[str, Any] = {}
    with torch.set_grad_enabled(found.training):
        reference_args = copy.deepcopy(args)
        reference = fn(*reference_args)
        moved = floor_bytes(args, reference)
        for name in names:
            run, own = CONTENDERS[name](fn), copy.deepcopy(args)
            try:
                result = run(*own)
            except Exception as error:
                notes[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
                continue
            errors[name] = max(worst_error(result, reference), worst_error(own, reference_args))
            if errors[name] > (found.tolerance or TOLERANCE[dtype]):
                notes[name] = f"wrong: differs from eager by {errors[name]:.2g}"
                continue
            calls[name] = lambda run=run, own=own: run(*own)
        timings = time_calls(calls, device, budget_s)
    rows = []
    for name in names:
        timing = timings.get(name)
        compile_s: tuple[float | None, float | None] = (None, None)
        if cold and name != "eager" and name in calls:
            compile_s = measure_cold(found.suite, found.name, dtype, device, name)
        times = (timing.median_us, timing.low_us, timing.high_us) if timing else ()
        rows.append(Row(
            found.suite, found.name, dtype, name, *times,
            error=errors.get(name), floor_bytes=moved,
            achieved_gbs=moved / timing.median_us / 1e3 if timing else None, cold_s=compile_s[0], warm_s=compile_s[1],
            note=notes.get(name, ""), **where))  # type: ignore[arg-type]
    return rows
