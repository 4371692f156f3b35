"""Rows in few words: a line for a case, and geometric means over a suite."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .rows import Row

OURS = "rooffuse"


def geometric_mean(values: Sequence[float]) -> float:
    """NaN for no values."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def by_case(rows: Iterable[Row]) -> dict[tuple[str, str, str], dict[str, Row]]:
    """Rows of each suite, case and type, by contender."""
    result: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        result.setdefault(row.key[:3], {})[row.contender] = row
    return result


def speedups(rows: Iterable[Row], name: str, column: str = "median_us") -> list[float]:
    """How many times longer ``name`` takes than rooffuse in ``column``, for each case where both are measured."""
    result = []
    for found in by_case(rows).values():
        theirs, ours = (getattr(found.get(n), column, None) for n in (name, OURS))
        if theirs and ours:
            result.append(theirs / ours)
    return result


def case_line(rows: Sequence[Row]) -> str:
    """One line for a case: each contender's time, and how many times ours that is."""
    found = {r.contender: r for r in rows}
    ours = found.get(OURS)
    parts = []
    for name, row in found.items():
        words = [name]
        if row.median_us is not None:
            words.append(f"{row.median_us:.1f} us")
            if ours is not None and ours.median_us and name != OURS:
                words.append(f"({row.median_us / ours.median_us:.2f}x)")
        if row.cold_s is not None:
            words.append(f"cold {row.cold_s:.2f} s, warm {row.warm_s:.2f} s")
        if row.plan_s is not None:
            words.append(f"plan {row.plan_s:.2f} s")
        if row.note or len(words) == 1:
            words.append(row.note or "-")
        parts.append(" ".join(words))
    if ours is not None and ours.share_of_roof is not None:
        parts.append(f"{ours.achieved_gbs:.1f} GB/s, {ours.share_of_roof:.0%} of the roof")
    return f"{rows[0].case} {rows[0].dtype}: " + "; ".join(parts)


def summary_lines(rows: Sequence[Row]) -> list[str]:
    """Geometric means of speed-ups and compile times against each other contender."""
    lines = []
    for name in dict.fromkeys(r.contender for r in rows if r.contender != OURS):
        for column, what in (("median_us", "speed"), ("cold_s", "cold compile"), ("primed_s", "primed compile")):
            found = speedups(rows, name, column)
            if found:
                lines.append(f"{what} against {name}: {geometric_mean(found):.2f}x by geometric mean over "
                             f"{len(found)} rows, worst {min(found):.2f}x, best {max(found):.2f}x")
    predicted = [r.predicted_us / r.median_us for r in rows if r.predicted_us and r.median_us]
    if predicted:
        within = sum(1 / 1.25 <= p <= 1.25 for p in predicted)
        lines.append(f"predicted over measured time: {geometric_mean(predicted):.2f} by geometric mean, {within} of "
                     f"{len(predicted)} within 25%, {min(predicted):.2f} to {max(predicted):.2f}")
    bad = [r for r in rows if r.note.startswith(("failed", "wrong"))]
    lines += [f"{r.case} {r.dtype} {r.contender} {r.note}" for r in bad]
    return lines
