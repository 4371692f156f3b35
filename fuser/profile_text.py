"""Profiles for reading."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tabulate import tabulate

from .profiling import MeasuredKernel, Profile
from .report_text import device_line, format_bytes, format_count, format_time

SORTS = ("time", "lost", "ratio", "bytes", "flops", "name")
_OPS_WIDTH = 34


def _folded(kernels: tuple[MeasuredKernel, ...]) -> list[tuple[MeasuredKernel, int]]:
    """Equal kernels once, with the mean of their measured times, and how many there are."""
    found: dict[object, list[MeasuredKernel]] = {}
    for kernel in kernels:
        found.setdefault((kernel.graph, kernel.kind, kernel.ops, kernel.bytes, kernel.flops), []).append(kernel)
    return [(replace(same[0], measured_us=sum(k.measured_us for k in same) / len(same)), len(same))
            for same in found.values()]


def _ops(kernel: MeasuredKernel) -> str:
    short = [op.split(".")[0] for op in kernel.ops]
    text = " ".join(short)
    if len(text) <= _OPS_WIDTH:
        return text
    count = f" … {short[-1]} ({len(short)})"
    kept = ""
    for op in short:
        if len(kept) + len(op) + 1 + len(count) > _OPS_WIDTH:
            break
        kept = f"{kept} {op}".strip()
    return kept + count


def profile_text(profile: Profile, sort: str | None = None, top: int | None = None) -> str:
    """A line for each kernel, equal ones once: predicted and measured time, measured over predicted, what it reached,
    the share of the roof and what is lost above it. Rows are in the order of running, or by ``sort``, one of `SORTS`,
    largest total first; ``top`` shows the first rows only. Raises ValueError for an order that there isn't."""
    rows = _folded(profile.kernels)
    keys: dict[str, Callable[[tuple[MeasuredKernel, int]], float | str]] = {
        "time": lambda r: -r[1] * r[0].measured_us, "lost": lambda r: -r[1] * r[0].lost_us,
        "ratio": lambda r: -r[0].ratio, "bytes": lambda r: -r[1] * r[0].bytes, "flops": lambda r: -r[1] * r[0].flops,
        "name": lambda r: r[0].name}
    if sort is not None:
        if sort not in keys:
            raise ValueError(f"profiles are sorted by {', '.join(SORTS)}, not by {sort!r}")
        rows.sort(key=keys[sort])  # type: ignore[arg-type]
    several = len({k.graph for k in profile.kernels}) > 1
    cells = [[f"{k.graph}:{k.name}" if several else k.name, k.kind, _ops(k), str(count), format_time(k.predicted_us),
              format_time(k.measured_us), f"{k.ratio:.2f}", f"{k.bytes_per_s / 1e9:.1f}", f"{k.flops_per_s / 1e9:.1f}",
              f"{k.roof_share:.0%}", format_time(count * k.lost_us)] for k, count in rows[:top]]
    head = ["kernel", "kind", "operators", "×", "predicted", "measured", "ratio", "GB/s", "GFLOP/s", "of roof", "lost"]
    table = tabulate(cells, head, tablefmt="simple", colalign=["left"] * 3 + ["right"] * 8, disable_numparse=True)
    predicted, measured, roof = (sum(getattr(k, name) for k in profile.kernels)
                                 for name in ("predicted_us", "measured_us", "roof_us"))
    lines = [device_line(profile.device),
             f"{len(profile.kernels)} kernels, each the {profile.of_rounds} of {profile.rounds} runs; "
             f"{format_bytes(sum(k.bytes for k in profile.kernels))}, "
             f"{format_count(sum(k.flops for k in profile.kernels))}FLOP"]
    if not profile.kernels:
        return "\n".join([lines[0], "no kernels: no tensor operation was traced"])
    if not profile.device.calibrated:
        lines.append("rates are estimates: `rooffuse calibrate` measures them, and predictions follow")
    rest = f"\n… {len(rows) - len(cells)} more rows" if len(cells) < len(rows) else ""
    total = (f"all kernels: predicted {format_time(predicted)}, measured {format_time(measured)} "
             f"(ratio {measured / predicted:.2f}), {format_time(measured - roof)} above the roof")
    return "\n".join([*lines, "", table + rest, "", total,
                      f"median error of the predictions: {profile.median_error:.0%} of the measured time"])
