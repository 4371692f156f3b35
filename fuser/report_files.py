"""Reports as files: CSV rows and a plot."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .csv_rows import rows_to_csv
from .report import KernelRow, NodeRow, Report
from .report_summary import module_pattern, shares

_PEAKS = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8")


def csv_text(report: Report, level: str | None = None) -> str:
    """One line for each node (by default), kernel or module, with a head line. Units are those of the JSON."""
    rows: list[dict[str, Any]]
    if level == "kernel":
        rows = [{**row, "nodes": " ".join(row["nodes"])} for row in report.kernels]
    elif level == "module":
        rows = [{"module": s.key, "nodes": s.count, "bytes": s.alone.bytes, "flops": s.alone.flops,
                 "alone_us": round(s.alone.time_us, 4), "fused_us": round(s.fused_us, 4)}
                for s in shares(report.graphs, module_pattern)]
    else:
        rows = report.nodes
    return rows_to_csv(rows)


def save_plot(report: Report, path: str) -> None:
    """The roofline of the report's device with its nodes and kernels; the file's ending chooses the format.

    Raises ValueError without matplotlib, and OSError if the file can't be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib; install it with pip install 'rooffuse[plots]'") from None
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    device = report.device
    kernels = [k for g in report.graphs for k in g.kernels if k.flops and k.time_us]
    nodes = [n for g in report.graphs for n in g.nodes if n.flops and n.time_us]
    drawn: list[NodeRow | KernelRow] = [*kernels, *nodes]
    points = [r.intensity for r in drawn if r.intensity] or [1.0]
    low, high = min(0.05, *points), max(2000.0, *points)
    used = {r.peak if r.unit == "tensor" else "fp32" for r in drawn}
    for key in (k for k in _PEAKS if k in device.peaks and k in used | {"fp32"}):
        ridge = device.peaks[key] / device.bandwidth
        axes.plot([low, ridge, high], [low * device.bandwidth, device.peaks[key], device.peaks[key]], lw=1.2,
                  label=f"{key}: ridge {ridge:.0f} FLOP/byte")
    layers: tuple[tuple[Sequence[NodeRow | KernelRow], dict[str, Any], str], ...] = (
        (nodes, dict(marker="o", alpha=0.35, s=16), "nodes alone"),
        (kernels, dict(marker="D", alpha=0.8, s=26), "kernels of the plan"))
    for rows, style, name in layers:
        axes.scatter([r.intensity for r in rows], [r.flops / (1e-6 * r.time_us) for r in rows], label=name,
                     **style)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="predicted FLOP/s", title=device.name)
    axes.grid(alpha=0.25, which="major")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
