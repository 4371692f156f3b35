"""Tables of a Markdown file, regenerated from the rows.

A table stands between ``<!-- benchmarks:NAME -->`` and ``<!-- /benchmarks -->``. NAME is ``summary``,
``schedule-bf16``, or a suite and a device type such as ``kernels/cuda``; a suite alone is the CPU's. Of several devices
of a type, the one measured last is shown.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from .cases import SUITES
from .rows import Row, read_rows
from .schedule import read_schedule, schedule_table
from .summary import OURS, by_case, geometric_mean, speedups

_MARKED = re.compile(r"(<!-- benchmarks:(\S+) -->\n)(.*?)(<!-- /benchmarks -->)", re.DOTALL)
DEVICE_TYPES = ("cpu", "cuda")


def rows_of(results: Path, device_type: str) -> list[Row]:
    """Rows of the device of this type that was measured last; none if there isn't any."""
    found = [read_rows(folder) for folder in sorted(results.iterdir()) if folder.is_dir()] if results.is_dir() else []
    found = [[r for r in rows if r.device_type == device_type] for rows in found]
    return max((rows for rows in found if rows), key=lambda rows: max(r.date for r in rows), default=[])


def regenerate(text: str, results: Path) -> str:
    """``text`` with fresh tables. Raises ValueError for a name of a table that isn't known."""
    return _MARKED.sub(lambda m: f"{m[1]}\n{table(m[2], results)}\n\n{m[4]}", text)


def table(name: str, results: Path) -> str:
    """One table as Markdown; "not measured" where there are no rows."""
    if name == "summary":
        return _summary(results)
    if name.startswith("schedule-"):
        rows_there = read_schedule(results / f"{name}.csv")
        return schedule_table(rows_there) if rows_there else "Not measured."
    suite, _, device_type = name.partition("/")
    device_type = device_type or DEVICE_TYPES[0]
    if suite not in SUITES or device_type not in DEVICE_TYPES:
        raise ValueError(f"there is no table {name!r}; there are summary, and SUITE, SUITE/cpu and SUITE/cuda for the "
                         f"suites {', '.join(SUITES)}")
    rows = [r for r in rows_of(results, device_type) if r.suite == suite]
    if not rows:
        return "Not measured."
    return f"{_times(rows) if suite != 'compile' else _compile_times(rows)}\n\n{_caption(rows)}"


def _caption(rows: Sequence[Row]) -> str:
    r = max(rows, key=lambda r: r.date)
    commits = ", ".join(sorted({x.commit for x in rows if x.commit}))
    return (f"{r.device}, {r.threads} threads, torch {r.torch}, Triton {r.triton or 'none'}, {r.date}"
            + (f", commit {commits}." if commits else "."))


def _time(row: Row | None) -> str:
    if row is None:
        return ""
    if row.median_us is None:
        return row.note.partition(":")[0] or "not measured"
    return f"{row.median_us:.3g} us" if row.median_us < 1000 else f"{row.median_us / 1000:.3g} ms"


def _contenders(rows: Sequence[Row]) -> list[str]:
    return [n for n in dict.fromkeys(r.contender for r in rows) if n != OURS]


def _times(rows: Sequence[Row]) -> str:
    others = _contenders(rows)
    lines = []
    for (_, case, dtype), found in by_case(rows).items():
        ours = found.get(OURS)
        factors = [f"{found[n].median_us / ours.median_us:.2f}" if n in found and found[n].median_us and ours
                   and ours.median_us else "" for n in others]  # type: ignore[operator]
        lines.append([case, dtype, *(_time(found.get(n)) for n in others), _time(ours), *factors,
                      f"{ours.share_of_roof:.0%}" if ours and ours.share_of_roof is not None else "",
                      *("" if r is None or r.launches is None else str(r.launches)
                        for r in (found.get("inductor"), ours))])
    heads = ["case", "type", *others, OURS, *(f"× {n}" for n in others), "of the roof", "launches: Inductor", "ours"]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def _compile_times(rows: Sequence[Row]) -> str:
    seconds = lambda value: "" if value is None else f"{value:.2f} s"  # noqa: E731
    lines = [[r.case, r.dtype, r.contender, seconds(r.cold_s), seconds(r.primed_s), seconds(r.warm_s),
              seconds(r.plan_s), r.note.partition(":")[0]] for r in rows]
    return tabulate(lines, ["case", "type", "compiler", "cold", "primed", "warm", "planning", ""], tablefmt="github",
                    disable_numparse=True)


def _summary(results: Path) -> str:
    """Speed of rooffuse against eager and Inductor, by device type and suite."""
    lines = []
    captions = []
    for device_type in DEVICE_TYPES:
        rows = rows_of(results, device_type)
        if not rows:
            lines.append([{"cpu": "CPU", "cuda": "GPU"}[device_type], "not measured"])
            continue
        captions.append(_caption(rows))
        for suite in SUITES:
            lines += _summary_line(suite, [r for r in rows if r.suite == suite], device_type)
    text = tabulate(lines, ["device", "suite", "rows", "× eager", "× Inductor", "least × Inductor",
                            "cold compile × Inductor"], tablefmt="github", disable_numparse=True)
    return "\n\n".join([text, *captions])


def _summary_line(suite: str, rows: Sequence[Row], device_type: str) -> list[list[str]]:
    count = len([r for r in rows if r.contender == OURS])
    if not count:
        return []
    eager, inductor = speedups(rows, "eager"), speedups(rows, "inductor")
    cold = speedups(rows, "inductor", "cold_s")
    mean = lambda values: f"{geometric_mean(values):.2f}" if values else ""  # noqa: E731
    return [[{"cpu": "CPU", "cuda": "GPU"}[device_type], suite, str(count), mean(eager), mean(inductor),
             f"{min(inductor):.2f}" if inductor else "", mean(cold)]]
