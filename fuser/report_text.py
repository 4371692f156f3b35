"""Reports for reading: aligned text, and HTML for notebooks."""
from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from .report import GraphReport, KernelRow, NodeRow, Report, Totals

if TYPE_CHECKING:
    from rooffuse.cost_model import Device

SORTS = ("time", "bytes", "flops", "name")
LEVELS = ("node", "kernel", "module")

_NAME_WIDTH, _OP_WIDTH, _GROUP_WIDTH, _CONTENTS_WIDTH = 22, 26, 12, 32
_WIDTH = 140
_NUMBERED = re.compile(r"_\d+\b")


# -- units ------------------------------------------------------------------------------------------------------------

def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    """Three digits in the unit that suits, and no digits after the point of whole numbers."""
    steps = 0
    while abs(value) >= 999.5 and steps < len(units) - 1:
        value /= step
        steps += 1
    digits = 0 if value == int(value) else max(0, 3 - len(str(int(abs(value)))))
    return f"{value:.{digits}f} {units[steps]}".rstrip()


def format_bytes(value: float) -> str:
    """``1536`` as ``1.50 KiB``."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def format_count(value: float) -> str:
    """``1500`` as ``1.50 K``."""
    return _scaled(value, 1000, ("", "K", "M", "G", "T", "P"))


def format_time(microseconds: float) -> str:
    """``1500`` as ``1.50 ms``."""
    return _scaled(microseconds, 1000, ("µs", "ms", "s"))


def clipped(text: str, width: int) -> str:
    """``text`` in ``width`` characters, its middle left out where it is longer."""
    return text if len(text) <= width else f"{text[:width - 9]}…{text[-8:]}"


# -- rows that differ only in names -------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Folded:
    """Equal rows: the first of them, and how many there are."""

    row: Any  # NodeRow or KernelRow
    count: int

    @property
    def bytes(self) -> int:
        return self.count * (self.row.bytes_read + self.row.bytes_written)

    @property
    def time_us(self) -> float:
        return self.count * self.row.time_us


def _fold(rows: Sequence[Any], key: Callable[[Any], Any]) -> list[_Folded]:
    first: dict[Any, Any] = {}
    counts: dict[Any, int] = {}
    for row in rows:
        k = (key(row), row.bytes_read, row.bytes_written, row.flops, row.bound)
        first.setdefault(k, row)
        counts[k] = counts.get(k, 0) + 1
    return [_Folded(row, counts[k]) for k, row in first.items()]


def fold_kernels(graph: GraphReport) -> list[_Folded]:
    """Kernels in running order, equal ones once: of one kind, with the same operators, moving and computing as much."""
    ops = {n.name: n.op for n in graph.nodes}
    return _fold(graph.kernels, lambda row: (row.kind, tuple(ops[n] for n in row.nodes)))


def fold_nodes(graph: GraphReport) -> list[_Folded]:
    """Nodes in order, equal ones once: of one operator, in equal kernels, moving and computing as much."""
    ops = {n.name: n.op for n in graph.nodes}
    shapes: dict[Any, str] = {}
    likes = {}
    for kernel in graph.kernels:
        key = (kernel.kind, tuple(ops[n] for n in kernel.nodes), kernel.bytes_read, kernel.bytes_written, kernel.flops)
        likes[kernel.name] = shapes.setdefault(key, kernel.name)
    return _fold(graph.nodes, lambda row: (row.op, likes.get(row.group, "")))


def _ordered(rows: list[_Folded], sort: str | None, top: int | None) -> list[_Folded]:
    keys: dict[str, Callable[[_Folded], Any]] = {
        "time": lambda f: -f.time_us, "bytes": lambda f: -f.bytes, "flops": lambda f: -f.count * f.row.flops,
        "name": lambda f: f.row.name}
    if sort is not None:
        if sort not in keys:
            raise ValueError(f"reports are sorted by {', '.join(SORTS)}, not by {sort!r}")
        rows = sorted(rows, key=keys[sort])
    if top is not None and top < 0:
        raise ValueError(f"top is {top}; it must be a number of rows")
    return rows[:top]


# -- tables -----------------------------------------------------------------------------------------------------------

_MEASURES = ("×", "read", "written", "FLOPs", "FLOP/B", "bound", "time", "share")


def _measures(folded: _Folded, whole_us: float) -> list[str]:
    row = folded.row
    fraction = folded.time_us / whole_us if whole_us else 0.0
    share = "<1%" if 0 < fraction < 0.005 else f"{fraction:.0%}"
    if row.bound == "none":
        return [str(folded.count), "0", "0", "0", "", "", "", ""]
    return [str(folded.count), format_bytes(row.bytes_read), format_bytes(row.bytes_written), format_count(row.flops),
            f"{row.intensity:.3g}" if row.intensity < 1000 else f"{row.intensity:.0f}", row.bound,
            format_time(row.time_us), share]


def _table(title: Sequence[str], cells: list[list[str]], style: str) -> str:
    align = ["left"] * len(title) + ["right"] * 5 + ["left"] + ["right"] * 2
    return tabulate(cells, [*title, *_MEASURES], tablefmt=style, colalign=align, disable_numparse=True)


def _node_table(graph: GraphReport, sort: str | None, top: int | None, style: str) -> tuple[str, int, int]:
    rows = fold_nodes(graph)
    whole = sum(f.time_us for f in rows)
    chosen = _ordered(rows, sort, top)
    cells = [[clipped(f.row.name, _NAME_WIDTH), clipped(_short_op(f.row.op), _OP_WIDTH),
              clipped(_group(graph, f.row), _GROUP_WIDTH), *_measures(f, whole)] for f in chosen]
    return _table(("node", "op", "group"), cells, style) if cells else "", len(chosen), len(rows)


def _short_op(op: str) -> str:
    return op.removeprefix("aten.").removesuffix(".default")


def _group(graph: GraphReport, row: NodeRow) -> str:
    """The kernel of a node; "library" or "fallback" for a call that is its own."""
    kinds = {k.name: k.kind for k in graph.kernels}
    return {"extern": "library", "fallback": "fallback"}.get(kinds.get(row.group, ""), row.group)


def _kernel_table(graph: GraphReport, sort: str | None, top: int | None, style: str) -> tuple[str, int, int]:
    rows = fold_kernels(graph)
    whole = sum(f.time_us for f in rows)
    chosen = _ordered(rows, sort, top)
    cells = [[clipped(f.row.name, _NAME_WIDTH), f.row.kind, _contents(graph, f.row), *_measures(f, whole)]
             for f in chosen]
    return _table(("kernel", "kind", "operators"), cells, style) if cells else "", len(chosen), len(rows)


def _contents(graph: GraphReport, kernel: KernelRow) -> str:
    """The operators of a kernel in short: ``add pow mean … mul (7)``."""
    ops = {n.name: n.op for n in graph.nodes}
    short = [ops[n].split(".")[1] if "." in ops[n] else ops[n] for n in kernel.nodes]
    text = " ".join(short)
    count = f" ({len(short)})"
    if len(text) <= _CONTENTS_WIDTH:
        return text
    if len(short) == 1:
        return clipped(text, _CONTENTS_WIDTH)
    while len(" ".join(short)) + len(count) + 2 > _CONTENTS_WIDTH and len(short) > 2:
        short.pop(-2)
    return clipped(f"{' '.join(short[:-1])} … {short[-1]}", _CONTENTS_WIDTH - len(count)) + count


# -- the text ---------------------------------------------------------------------------------------------------------

def device_line(device: Device) -> str:
    """Peaks, bandwidth, and whether they were measured."""
    peaks = ", ".join(f"{key} {rate / 1e12:.4g}" for key, rate in device.peaks.items()
                      if key in ("fp32", "bf16", "fp16", "fp8"))
    origin = "measured here" if device.calibrated else "estimated" if "estimate" in device.sources.get(
        "bandwidth", "") else "datasheet"
    return f"{device.name} ({origin}): {device.bandwidth / 1e9:.4g} GB/s; TFLOP/s {peaks}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _ratio(before: Totals, after: Totals) -> str:
    return f" ({before.time_us / after.time_us:.2f}× faster)" if after.time_us else ""


def _calls(graphs: Sequence[GraphReport]) -> list[tuple[int, GraphReport, int]]:
    """Different graphs with the number of their first call, and how often they are called."""
    first: dict[int, int] = {}
    for k, graph in enumerate(graphs):
        first.setdefault(id(graph), k)
    return [(k, graphs[k], sum(g is graphs[k] for g in graphs)) for k in first.values()]


def summary(report: Report) -> list[str]:
    """The lines at the head: the device, what there is, and what fusing saves."""
    kernels = [k for g in report.graphs for k in g.kernels]
    made = sum(k.kind in ("triton", "cpp") for k in kernels)
    before, after = report.alone, report.fused
    lines = [device_line(report.device)]
    if not report.graphs:
        return [*lines, "no graphs: no tensor operation was traced"]
    fraction = 1 - after.bytes / before.bytes if before.bytes else 0.0
    saved = f" ({fraction:.0%} less)" if fraction >= 0.005 else ""
    graphs = "1 graph" if len(report.graphs) == 1 else f"{len(report.graphs)} calls of graphs"
    return [
        *lines,
        f"{graphs}, {_plural(sum(len(g.nodes) for g in report.graphs), 'node')} → {_plural(len(kernels), 'kernel')} "
        f"({made} generated, {_plural(len(kernels) - made, 'library call')}); {format_count(after.flops)}FLOP",
        f"moved      each node alone {format_bytes(before.bytes)} → fused {format_bytes(after.bytes)}{saved}",
        f"predicted  each node alone {format_time(before.time_us)} → fused {format_time(after.time_us)}"
        f"{_ratio(before, after)}",
    ]


def _relative(location: str) -> str:
    """``location`` with its file relative to the working folder, if it lies in there."""
    file, _, rest = location.partition(":")
    path = Path(file)
    return f"{path.relative_to(Path.cwd())}:{rest}" if path.is_relative_to(Path.cwd()) else location


def _first_few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if names[4:] else ''}"


def _graph_notes(graph: GraphReport) -> list[str]:
    lines = [f"memory      arena {format_bytes(graph.arena_bytes)}; allocated in each call (results and library calls) "
             f"{format_bytes(graph.unplanned_bytes)}",
             f"CUDA graph  {'captured' if graph.captured else 'not captured'}: {graph.capture_reason}"]
    tuned: dict[str, list[str]] = {}  # equal kernels have one choice
    for kernel in graph.kernels:
        if kernel.tuned:
            tuned.setdefault(kernel.tuned, []).append(kernel.name)
    lines += [clipped(f"autotune    {_first_few(names)}: {chosen}", _WIDTH) for chosen, names in tuned.items()]
    if graph.fallbacks:
        # The same reason names other nodes in each layer.
        reasons: dict[str, tuple[str, list[str]]] = {}
        for fallback in graph.fallbacks:
            reasons.setdefault(_NUMBERED.sub("", fallback.reason), (fallback.reason, []))[1].extend(fallback.nodes)
        lines += [clipped(f"fallback    {_first_few(nodes)}: {reason}", _WIDTH) for reason, nodes in reasons.values()]
    else:
        lines.append("fallbacks   none")
    return lines


def report_text(report: Report, level: str | None = None, sort: str | None = None, top: int | None = None) -> str:
    """See `Report.text`. Raises ValueError for a level or an order that there isn't."""
    if level is not None and level not in LEVELS:
        raise ValueError(f"the levels of a report are {', '.join(LEVELS)}, not {level!r}")
    from .report_totals import bytes_text, module_text

    blocks = ["\n".join(summary(report))]
    if level == "module" and report.graphs:
        blocks.append(module_text(report, sort, top))
    tables = [(name, make) for name, make in (("node", _node_table), ("kernel", _kernel_table))
              if level in (None, name)]
    for k, graph, count in _calls(report.graphs) if tables else ():
        called = f", called {count} times" if count > 1 else ""
        blocks.append(f"── graph {k}: {graph.kind}{called} ".ljust(_WIDTH, "─"))
        for name, make in tables:
            table, shown, there = make(graph, sort, top, "simple")
            rest = f"\n… {there - shown} more rows" if shown < there else ""
            blocks.append(table + rest if table else f"(no {name}s)")
        blocks.append("\n".join(_graph_notes(graph)))
    if report.graphs:
        blocks.append(bytes_text(report))
    if report.graph_breaks:
        lines = [f"{_relative(b.location) or 'somewhere'}: {b.reason}" for b in report.graph_breaks]
        blocks.append("\n".join([f"graph breaks  {len(lines)}", *(f"  {line}" for line in lines)]))
    elif report.graphs:
        blocks.append("graph breaks  none")
    return "\n\n".join(blocks)


def report_html(report: Report) -> str:
    """The summary and the tables for a notebook; node tables are folded away."""
    parts = [f"<pre>{html.escape(chr(10).join(summary(report)))}</pre>"]
    for k, graph, _ in _calls(report.graphs):
        kernels, nodes = (make(graph, None, None, "html")[0] for make in (_kernel_table, _node_table))
        notes = html.escape("\n".join(_graph_notes(graph)))
        parts.append(f"<h4>graph {k}: {html.escape(graph.kind)}</h4>{kernels}<pre>{notes}</pre>"
                     f"<details><summary>{len(graph.nodes)} nodes</summary>{nodes}</details>")
    for found in report.graph_breaks:
        parts.append(f"<p>graph break at {html.escape(found.location)}: {html.escape(found.reason)}</p>")
    return "".join(parts)
