"""Predicted beside measured time for every launch of the kernel workloads on this machine, each by itself."""
from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass

import torch
from rooffuse.profiling import MeasuredKernel, profile_call
from tabulate import tabulate

from .cases import DTYPES, cases_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """One launch of a case."""

    case: str
    dtype: str
    kernel: MeasuredKernel


def predictions(pattern: str = "", budget_s: float = 1.0) -> list[Prediction]:
    """Every launch of the suite ``kernels`` whose workload's name contains ``pattern``, in float32 and bfloat16, from
    memory: caches hold none of its data when a run begins. ``budget_s`` is for each workload and type."""
    found: list[Prediction] = []
    for case in cases_of("kernels", pattern):
        for dtype in (d for d in case.dtypes if d in ("fp32", "bf16")):
            log.info("%s %s", case.name, dtype)
            fn, args = case.make("cpu", DTYPES[dtype])
            with torch.no_grad():
                profile = profile_call(fn, args, {}, budget_s=budget_s)
            found += [Prediction(case.name, dtype, k) for k in profile.kernels]
    return found


def predictions_table(found: list[Prediction]) -> str:
    """The table as Markdown, with the median of the errors below it."""
    lines = [[p.case, p.dtype, p.kernel.kind, f"{p.kernel.predicted_us:.0f}", f"{p.kernel.measured_us:.0f}",
              f"{p.kernel.ratio:.2f}"] for p in found]
    text = tabulate(lines, ["workload", "type", "kind", "predicted us", "measured us", "measured / predicted"],
                    tablefmt="github", disable_numparse=True)
    if not found:
        return text
    return f"{text}\n\nmedian error of {len(found)} predictions: {statistics.median(p.kernel.error for p in found):.0%}"
