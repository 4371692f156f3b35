"""Our schedule beside Inductor's at GPU shapes: bytes over floor, launches, sweeps. No GPU is needed."""
from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rooffuse.codegen.traffic import sweeps
from rooffuse.compile import plan_graph
from rooffuse.cost_model import get_device
from rooffuse.options import Options
from rooffuse.passes import aot_decompositions
from rooffuse.program import KernelStep
from rooffuse.step_prices import step_price
from rooffuse.targets import target_for
from tabulate import tabulate

from .cases import cases_of
from .facts import launching
from .gpu_shapes import floor_of, gpu_case, trace
from .rows import context
from .summary import geometric_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """Bytes moved over the floor, launches, and the most sweeps over a row that isn't held on chip (1 if all are);
    ``sweeps`` is None where it isn't known."""

    bytes_over_floor: float
    launches: int
    sweeps: int | None = None


def our_schedule(name: str, dtype: str = "bf16", device: str = "h100") -> tuple[Schedule, int]:
    """Ours for one workload of the suite ``kernels``, and the floor in bytes. Fused kernels are counted on their loop
    IR, library calls by the cost model's registry."""
    case = gpu_case(name, dtype)
    gm = trace(case, aot_decompositions())
    floor = floor_of(gm, case)
    target = target_for(get_device(device))
    plan = plan_graph(gm, target, Options())
    steps = launching(plan)
    moved = sum(int(step_price(s, target).cost.bytes) for s in steps)
    most = 1
    for step in steps:
        if isinstance(step, KernelStep) and step.group.lowered is not None:
            kernel = step.group.lowered.kernel
            most = max([most, *(sweeps(nest) for nest in kernel.nests
                                if not target.holds(kernel, nest))])
    return Schedule(moved / floor, len(steps), most), floor


def inductor_schedule(name: str, dtype: str, floor: int) -> Schedule | str:
    """Inductor's, from a fresh process; the last line of what went wrong if it fails there."""
    command = [sys.executable, "-m", "benchmarks.inductor_gpu", name, dtype]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "no answer in 300 s"
    if result.returncode:
        return (result.stderr.strip().splitlines() or ["no message"])[-1][:100]
    found = json.loads(result.stdout.splitlines()[-1])
    return Schedule(found["bytes"] / floor, found["launches"])


Line = tuple[str, Schedule | str, Schedule | str | None]


def schedule_rows(pattern: str = "", dtype: str = "bf16", ours_only: bool = False) -> list[Line]:
    """``(workload, ours, Inductor's)``; a message in place of a schedule that failed. A workload that has not the type
    is scheduled in its own first one."""
    rows: list[Line] = []
    for case in cases_of("kernels", pattern):
        log.info("%s", case.name)
        chosen = dtype if dtype in case.dtypes else case.dtypes[0]
        ours: Schedule | str
        theirs: Schedule | str | None = None
        try:
            ours, floor = our_schedule(case.name, chosen)
        except Exception as error:  # one workload that can't be planned leaves the others' rows
            rows.append((case.name, f"{type(error).__name__}: {str(error).splitlines()[0][:80]}", None))
            continue
        if not ours_only:
            theirs = inductor_schedule(case.name, chosen, floor)
        rows.append((case.name, ours, theirs))
    return rows


def _cells(found: Schedule | str | None) -> list[str]:
    if found is None:
        return ["", ""]
    if isinstance(found, str):
        return [found, ""]
    return [f"{found.bytes_over_floor:.2f}", str(found.launches)]


def write_schedule(path: Path, rows: Sequence[Line], dtype: str) -> None:
    """The rows as CSV; a schedule that failed leaves empty cells."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "dtype", "bytes_over_floor", "launches", "sweeps", "inductor_bytes_over_floor",
                         "inductor_launches", "commit", "date"])
        facts = context("cpu")
        for name, ours, theirs in rows:
            cells = [*_cells(ours), str(ours.sweeps) if isinstance(ours, Schedule) else "",
                     *(_cells(theirs) if isinstance(theirs, Schedule) else ["", ""])]
            writer.writerow([name, dtype, *cells, facts["commit"], facts["date"]])


def read_schedule(path: Path) -> list[Line]:
    """What `write_schedule` wrote; no rows if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(r["case"], Schedule(float(r["bytes_over_floor"]), int(r["launches"]), int(r["sweeps"])),
                 Schedule(float(r["inductor_bytes_over_floor"]), int(r["inductor_launches"]))
                 if r["inductor_launches"] else None) for r in csv.DictReader(file) if r["launches"]]


def schedule_table(rows: Sequence[Line]) -> str:
    """The table as Markdown, with geometric means of bytes over floor below it."""
    table = [[name, *_cells(ours), str(ours.sweeps) if isinstance(ours, Schedule) else "", *_cells(theirs)]
             for name, ours, theirs in rows]
    text = tabulate(table, ["workload", "ours: bytes/floor", "launches", "sweeps", "Inductor: bytes/floor",
                            "launches"], tablefmt="github", disable_numparse=True)
    means = [("ours", [o.bytes_over_floor for _, o, _ in rows if isinstance(o, Schedule)]),
             ("Inductor", [t.bytes_over_floor for _, _, t in rows if isinstance(t, Schedule)])]
    return text + "\n" + "".join(f"\n{who}: {geometric_mean(values):.3f} bytes over floor by geometric mean"
                                 for who, values in means if values)
