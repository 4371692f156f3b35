"""The page of ``rooffuse report --html``: one file with an interactive roofline and tables, and nothing to load."""
from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any

from rooffuse.cost_model import Device, all_devices

from .report import GraphReport, Report
from .report_summary import distinct, utilisation
from .report_text import fold_kernels, fold_nodes, summary
from .report_totals import bytes_text


def _device(device: Device) -> dict[str, Any]:
    return {"name": device.name, "peaks": dict(device.peaks), "bandwidth": device.bandwidth,
            "launch": device.launch_s}


def _graph(graph: GraphReport, calls: int) -> dict[str, Any]:
    sources = {n.name: n for n in graph.nodes}
    nodes = [{"name": f.row.name, "what": f.row.op.removeprefix("aten.").removesuffix(".default"), "kind": f.row.kind,
              "group": f.row.group, "module": f.row.module, "source": f.row.source, "code": f.row.code,
              "shape": f.row.shape, "peak": f.row.peak, "unit": f.row.unit, "read": f.row.bytes_read,
              "written": f.row.bytes_written, "flops": f.row.flops, "count": f.count * calls}
             for f in fold_nodes(graph) if f.row.bound != "none"]
    kernels = []
    for f in fold_kernels(graph):
        first = sources[f.row.nodes[0]]
        ops = [sources[n].op.removeprefix("aten.").split(".")[0] for n in f.row.nodes]
        kernels.append({"name": f.row.name, "what": " ".join(ops), "kind": f.row.kind, "group": "",
                        "module": first.module, "source": first.source, "code": first.code,
                        "shape": sources[f.row.nodes[-1]].shape, "peak": f.row.peak, "unit": f.row.unit,
                        "read": f.row.bytes_read, "written": f.row.bytes_written, "flops": f.row.flops,
                        "count": f.count * calls})
    return {"kind": graph.kind, "calls": calls, "nodes": nodes, "kernels": kernels}


def page(report: Report, title: str) -> str:
    """The page as text. ``title`` is what was reported on. Equal rows are one point with a number; the devices of the
    table and the report's own can be switched in the page, the plan stays that for the report's."""
    others = [_device(d) for d in all_devices() if d.name != report.device.name]
    data = {
        "title": title, "device": report.device.name, "devices": [_device(report.device), *others],
        "main": utilisation(report, report.fused.time_us).peak,
        "graphs": [_graph(g, sum(other is g for other in report.graphs)) for g in distinct(report.graphs)],
    }
    # A script element ends at the first "</", also inside of a string.
    encoded = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    text = "\n".join([*summary(report), "", bytes_text(report)])
    template = files("rooffuse").joinpath("report_page.html").read_text(encoding="utf-8")
    return (template.replace("@TITLE@", html.escape(title)).replace("@SUMMARY@", html.escape(text))
            .replace("@DATA@", encoded))
