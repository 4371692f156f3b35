"""The text of a report's totals and of its summary "where the bytes go"."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from .report import Report
from .report_summary import (
    Copies,
    Share,
    copies,
    distinct,
    module_pattern,
    refusals,
    savings,
    shares,
    utilisation,
)
from .report_text import clipped, format_bytes, format_count, format_time

_SHOWN = 3
_KEY_WIDTH = 56
_WIDTH = 140


def _share_rows(found: Sequence[Share], whole_us: float) -> list[list[str]]:
    return [[clipped(s.key, _KEY_WIDTH), str(s.count), format_bytes(s.alone.bytes), format_count(s.alone.flops),
             format_time(s.alone.time_us), format_time(s.fused_us),
             f"{s.fused_us / whole_us if whole_us else 0.0:.0%}"] for s in found]


def _sorted(found: list[Share], sort: str | None) -> list[Share]:
    keys: dict[str | None, Any] = {"time": lambda s: -s.fused_us, "bytes": lambda s: -s.alone.bytes,
                                   "flops": lambda s: -s.alone.flops, "name": lambda s: s.key}
    return sorted(found, key=keys[sort]) if sort else found


def module_text(report: Report, sort: str | None = None, top: int | None = None) -> str:
    """Totals by module, with ``*`` for layers' numbers, by kind of operator and by bound: of nodes alone, and of their
    part of the plan's kernels."""
    whole = report.fused.time_us
    blocks = []
    for title, key in (("module", module_pattern), ("kind", lambda n: n.kind), ("bound", lambda n: n.bound)):
        found = _sorted(shares(report.graphs, key), sort)
        shown = found[:top]
        table = tabulate(_share_rows(shown, whole), [title, "nodes", "bytes", "FLOPs", "alone", "fused", "share"],
                         tablefmt="simple", colalign=["left", *["right"] * 6], disable_numparse=True)
        rest = f"\n… {len(found) - len(shown)} more rows" if len(shown) < len(found) else ""
        blocks.append(table + rest if shown else f"(no {title}s)")
    return "\n\n".join(blocks)


def _copy_line(found: Copies) -> str:
    fate = "fused away" if not found.left else "a kernel of its own" if found.left == found.count else (
        f"{found.left} a kernel of its own")
    times = f" ×{found.count}" if found.count > 1 else ""
    return clipped(f"{found.sort}{times}, {format_bytes(found.bytes)}, {fate}: {found.source or found.module}"
                   f"{'  ' + found.code if found.code else ''}", _WIDTH - 14)


def bytes_text(report: Report) -> str:
    """The summary "where the bytes go"."""
    before, after = report.alone, report.fused
    if not report.graphs:
        return ""
    least = sum(g.input_bytes for g in report.graphs)
    lines = ["where the bytes go",
             f"  bytes       each node alone {format_bytes(before.bytes)} → fused {format_bytes(after.bytes)}; "
             f"inputs read once are {format_bytes(least)}"]
    for name, time_us in (("alone", before.time_us), ("fused", after.time_us)):
        used = utilisation(report, time_us)
        lines.append(f"  {name}       {format_time(time_us)} predicted: MFU {used.mfu:.1%} of {used.peak}, "
                     f"MBU {used.mbu:.0%}")
    saved = sorted((s for g in distinct(report.graphs) for s in savings(g)), key=lambda s: -s.saved_bytes)
    lines += [f"  saved       {format_bytes(s.saved_bytes)} by {s.kernel.name}{f' ×{s.count}' if s.count > 1 else ''} "
              f"({len(s.kernel.nodes)} nodes)" for s in saved[:_SHOWN] if s.saved_bytes > 0]
    found = copies(report.graphs)
    unasked = [c for c in found if not c.asked]
    asked = sum(c.bytes for c in found if c.asked)
    lines += [f"  unasked     {_copy_line(c)}" for c in unasked[:_SHOWN]] or ["  unasked     no copies"]
    if unasked[_SHOWN:]:
        lines.append(f"              and {len(unasked) - _SHOWN} more places, "
                     f"{format_bytes(sum(c.bytes for c in unasked[_SHOWN:]))}")
    if asked:
        lines.append(f"  asked for   copies and casts of {format_bytes(asked)} that the code names")
    lines += [clipped(f"  refused     {m.first} + {m.second}, {format_time(m.saving_us)}"
                      f"{f' (and {count - 1} like it)' if count > 1 else ''}: {m.reason}", _WIDTH)
              for m, count in refusals(distinct(report.graphs))[:_SHOWN]]
    unknown = sorted({n.op for g in report.graphs for n in g.nodes if not n.known})
    if unknown:
        lines.append(clipped(f"  no formula  priced by their tensors alone: {', '.join(unknown)}", _WIDTH))
    return "\n".join(lines)
