"""Charts from the rows: the roofline with measured points, and speed-ups against Inductor and eager."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .rows import Row
from .summary import OURS, by_case
from .table import DEVICE_TYPES, rows_of

_COLOURS = {OURS: "#c0392b", "inductor": "#2c6fbb", "inductor-max": "#7fb2e5", "rooffuse-max": "#e59a8f",
            "eager": "#7f8c8d"}


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise RuntimeError("plotting needs matplotlib: pip install 'rooffuse[plots]'") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "rooffuse"  # the same rows give the same file
    from matplotlib import pyplot

    return pyplot


def plot(results: Path, folder: Path) -> list[Path]:
    """Draw both charts for each device type that has rows, as PNG and SVG; the files are returned.

    Raises RuntimeError without matplotlib, ValueError if there are no rows.
    """
    pyplot = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for device_type in DEVICE_TYPES:
        rows = rows_of(results, device_type)
        for name, draw in (("roofline", _roofline), ("speedup", _speedup)):
            figure = draw(pyplot, rows)
            if figure is None:
                continue
            for kind in ("png", "svg"):
                files.append(folder / f"{name}-{device_type}.{kind}")
                figure.savefig(files[-1], dpi=150, bbox_inches="tight",
                               metadata={"Date": None} if kind == "svg" else {"Software": None})
            pyplot.close(figure)
    if not files:
        raise ValueError(f"{results} has no measured rows to plot; run python -m benchmarks run first")
    return files


def _roofline(pyplot: Any, rows: Sequence[Row]) -> Any:
    """FLOP per byte of the floor against FLOP/s, below the line that memory bandwidth draws."""
    timed = [r for r in rows if r.median_us and r.flops and r.floor_bytes and r.roof_gbs]
    if not timed:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 5))
    bandwidth = timed[0].roof_gbs * 1e9  # type: ignore[operator]
    intensities = [r.flops / r.floor_bytes for r in timed]  # type: ignore[operator]
    for name in dict.fromkeys(r.contender for r in timed):
        chosen = [(i, r) for i, r in zip(intensities, timed) if r.contender == name]
        axes.scatter([i for i, _ in chosen], [r.flops / r.median_us * 1e6 for _, r in chosen],  # type: ignore[operator]
                     s=18, alpha=0.7, label=name, color=_COLOURS.get(name))
    ends = [min(intensities), max(intensities)]
    axes.plot(ends, [i * bandwidth for i in ends], color="black", linewidth=1,
              label=f"memory: {bandwidth / 1e9:.0f} GB/s")
    # The least time of each case already has its peak in it, since types and units differ by case.
    roofs = sorted((i, r.flops / r.roof_us * 1e6)  # type: ignore[operator]
                   for i, r in zip(intensities, timed) if r.roof_us and r.contender == OURS)
    axes.scatter([i for i, _ in roofs], [v for _, v in roofs], marker="_", s=60, color="black", label="the case's roof")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that has to move", ylabel="FLOP/s",
             title=timed[0].device)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    return figure


def _speedup(pyplot: Any, rows: Sequence[Row]) -> Any:
    """Bars of how many times longer the others take, case by case; 1 is even."""
    found = [(key, row) for key, row in by_case(r for r in rows if r.median_us).items() if OURS in row]
    others = [n for n in dict.fromkeys(r.contender for r in rows) if n != OURS]
    if not found or not others:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.28 * len(found)))
    height = 0.8 / len(others)
    for k, name in enumerate(others):
        points = [(place, row[name].median_us / row[OURS].median_us)  # type: ignore[operator]
                  for place, (_, row) in enumerate(found) if name in row]
        axes.barh([p + (k - (len(others) - 1) / 2) * height for p, _ in points], [v - 1 for _, v in points], height,
                  left=1, label=f"{name} / {OURS}", color=_COLOURS.get(name))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(found)), [f"{case} {dtype}" for (_, case, dtype), _ in found])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="time over rooffuse's (more is better for rooffuse)", title=rows[0].device)
    axes.legend()
    return figure
