"""What moved between two sets of rows, beyond their noise."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .rows import Row
from .summary import OURS

#: Times whose quartiles don't overlap have moved, if the medians differ by at least this much.
LEAST_TIME = 0.03
#: Compile times are single measurements: less than this is noise.
LEAST_COMPILE = 0.25
#: Counts and predictions have no noise but rounding.
LEAST_COUNT = 0.01

_COMPILE = ("cold_s", "primed_s", "warm_s", "plan_s")
_COUNTS = ("launches", "bytes_over_floor")


@dataclass(frozen=True)
class Change:
    """``column`` of one row went from ``old`` to ``new``; lower is better in all columns. ``note`` tells of a row that
    has no time any more, or has one now."""

    key: tuple[str, str, str, str]
    column: str
    old: float | None
    new: float | None
    note: str = ""

    @property
    def worse(self) -> bool:
        return self.new is None or (self.old is not None and self.new > self.old)

    @property
    def regression(self) -> bool:
        """Whether rooffuse got worse; other contenders' changes are the machine's or their own."""
        return self.worse and self.key[3] == OURS


def _moved(old: Row, new: Row) -> list[Change]:
    changes = []
    if old.median_us and not new.median_us:
        changes.append(Change(new.key, "median_us", old.median_us, None, new.note))
    elif new.median_us and not old.median_us:
        changes.append(Change(new.key, "median_us", None, new.median_us, old.note))
    elif old.median_us and new.median_us and _apart(old, new) and _differs(old.median_us, new.median_us, LEAST_TIME):
        changes.append(Change(new.key, "median_us", old.median_us, new.median_us))
    for columns, least in ((_COMPILE, LEAST_COMPILE), (_COUNTS, LEAST_COUNT)):
        for column in columns:
            a, b = getattr(old, column), getattr(new, column)
            if a is not None and b is not None and _differs(a, b, least):
                changes.append(Change(new.key, column, a, b))
    return changes


def _apart(old: Row, new: Row) -> bool:
    """Whether the ranges between the quartiles don't overlap; rows without quartiles count as points."""
    low_old, high_old = old.low_us or old.median_us, old.high_us or old.median_us
    low_new, high_new = new.low_us or new.median_us, new.high_us or new.median_us
    assert low_old and high_old and low_new and high_new
    return low_new > high_old or high_new < low_old


def _differs(a: float, b: float, least: float) -> bool:
    return abs(a - b) > least * min(a, b)


def compare(old: Sequence[Row], new: Sequence[Row]) -> list[Change]:
    """Changes of rows that both sets have, worst first.

    Raises ValueError if they have none in common or come from different devices or numbers of threads.
    """
    before = {r.key: r for r in old}
    pairs = [(before[r.key], r) for r in new if r.key in before]
    if not pairs:
        raise ValueError("the two sets of rows have no case in common")
    for a, b in pairs:
        if (a.device, a.threads) != (b.device, b.threads):
            raise ValueError(f"{'/'.join(b.key)} was measured on {a.device} with {a.threads} threads, then on "
                             f"{b.device} with {b.threads}: compare rows of one machine")
    changes = [c for a, b in pairs for c in _moved(a, b)]
    return sorted(changes, key=lambda c: (not c.regression, not c.worse, -_ratio(c), c.key, c.column))


def _ratio(change: Change) -> float:
    if not change.old or not change.new:
        return float("inf")
    return max(change.new / change.old, change.old / change.new)


def report(changes: Sequence[Change]) -> str:
    """One line a change, and a count of ours."""
    lines = []
    for c in changes:
        verdict = "worse" if c.worse else "better"
        values = " -> ".join("none" if v is None else f"{v:.4g}" for v in (c.old, c.new))
        factor = f" ({c.new / c.old:.2f}x)" if c.old and c.new else ""
        lines.append(f"{verdict:6s} {'/'.join(c.key)} {c.column} {values}{factor}" + (f": {c.note}" if c.note else ""))
    regressions = sum(c.regression for c in changes)
    better = sum(c.key[3] == OURS and not c.worse for c in changes)
    return "\n".join([*lines, f"rooffuse: {regressions} worse, {better} better beyond the noise"])
