"""Where the bytes go: totals by module, kind and bound, what each kernel saved, copies, and how much of the device is
used."""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .report import GraphReport, KernelRow, NodeRow, RefusedMerge, Report, Totals, totals

_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")
#: What a line of code says when its author wants the copy that it makes.
_ASKED = re.compile(r"\.(clone|contiguous|copy_|to|type|float|half|bfloat16|double|int|long|bool|type_as|cpu|cuda)\(")
_CASTS = frozenset({"_to_copy", "convert_element_type"})
_COPIES = frozenset({"clone", "copy", "contiguous", "_to_copy", "convert_element_type", "repeat", "expand_copy",
                     "view_copy", "permute_copy"})


@dataclass(frozen=True)
class Share:
    """Totals of nodes with one ``key``: each a kernel of its own (``alone``), and their part of the kernels of the plan
    (``fused_us``), in which a kernel's time is divided over its nodes as the time that they take alone."""

    key: str
    count: int
    alone: Totals
    fused_us: float


@dataclass(frozen=True)
class Saving:
    """A kernel of several nodes and the bytes that fusing them saved."""

    kernel: KernelRow
    count: int
    saved_bytes: int


@dataclass(frozen=True)
class Copies:
    """Copies of one sort at one line. ``sort`` is "copy", "cast" or "expansion"; ``asked`` says that the line names it.
    ``bytes`` is what they move as kernels of their own; ``left`` counts those that the plan leaves as such."""

    sort: str
    source: str
    code: str
    module: str
    asked: bool
    count: int
    bytes: int
    left: int


@dataclass(frozen=True)
class Utilisation:
    """Of the predicted time of the whole plan.

    ``mfu``: FLOPs over the time and the device's peak for the type of most of its FLOPs (model FLOPs utilisation,
    Chowdhery et al. 2022, PaLM). ``mbu``: bytes of weights, caches and other inputs, each once, over the time and the
    device's bandwidth (model bandwidth utilisation, Databricks 2023).
    """

    mfu: float
    mbu: float
    peak: str


def _fused_times(graph: GraphReport) -> dict[str, float]:
    """Microseconds of each node's part of its kernel."""
    alone = {n.name: n.time_us for n in graph.nodes}
    parts: dict[str, float] = {}
    for kernel in graph.kernels:
        whole = sum(alone[n] for n in kernel.nodes)
        for name in kernel.nodes:
            part = alone[name] / whole if whole else 1 / len(kernel.nodes)
            parts[name] = parts.get(name, 0.0) + part * kernel.time_us
    return parts


def shares(graphs: Iterable[GraphReport], key: Callable[[NodeRow], str]) -> list[Share]:
    """Nodes that cost anything by ``key``, in order of appearance."""
    rows: dict[str, list[NodeRow]] = {}
    fused: dict[str, float] = {}
    for graph in graphs:
        parts = _fused_times(graph)
        for node in graph.nodes:
            if node.bound != "none":
                rows.setdefault(key(node), []).append(node)
                fused[key(node)] = fused.get(key(node), 0.0) + parts.get(node.name, 0.0)
    return [Share(k, len(found), totals(found), fused[k]) for k, found in rows.items()]


def module_pattern(node: NodeRow) -> str:
    """The module of a node with ``*`` for the numbers of layers, so that equal layers count together."""
    return layer_pattern(node.module)


def layer_pattern(module: str) -> str:
    """The path of a module with ``*`` for the numbers of layers."""
    return _LAYER.sub("*", module) or "(outside of modules)"


def savings(graph: GraphReport) -> list[Saving]:
    """Generated kernels of several nodes, equal ones together, by bytes saved, most first."""
    alone = {n.name: n.bytes_read + n.bytes_written for n in graph.nodes}
    ops = {n.name: n.op for n in graph.nodes}
    found: dict[object, list[tuple[KernelRow, int]]] = {}
    for kernel in graph.kernels:
        if len(kernel.nodes) > 1:
            saved = sum(alone[n] for n in kernel.nodes) - kernel.bytes_read - kernel.bytes_written
            found.setdefault((tuple(ops[n] for n in kernel.nodes), saved), []).append((kernel, saved))
    groups = [Saving(same[0][0], len(same), sum(s for _, s in same)) for same in found.values()]
    return sorted(groups, key=lambda s: -s.saved_bytes)


def copies(graphs: Iterable[GraphReport]) -> list[Copies]:
    """Copies, casts and expansions that become memory traffic without fusion, by bytes, most first."""
    found: dict[tuple[str, str, str, str, bool], list[tuple[NodeRow, bool]]] = {}
    for graph in graphs:
        sizes = {k.name: len(k.nodes) for k in graph.kernels}
        for node in graph.nodes:
            op = node.op.split(".")[1] if "." in node.op else node.op
            inside = node.origin.split(".")[1] if "." in node.origin else op
            if op not in _COPIES or inside not in _COPIES or node.bound == "none":
                continue  # what an operator such as layer_norm casts for itself is no copy of the user's
            expands = op in ("repeat", "expand_copy") or node.expands
            sort = "cast" if op in _CASTS else "expansion" if expands else "copy"
            key = (sort, node.source, node.code, module_pattern(node), bool(_ASKED.search(node.code)))
            found.setdefault(key, []).append((node, sizes.get(node.group, 1) == 1))
    result = [Copies(*key, len(rows), totals(n for n, _ in rows).bytes, sum(left for _, left in rows))
              for key, rows in found.items()]
    return sorted(result, key=lambda c: (-c.bytes, c.source))


def refusals(graphs: Iterable[GraphReport]) -> list[tuple[RefusedMerge, int]]:
    """Merges that were not made, one for each reason with their number, by the time that they would have saved."""
    seen: dict[str, list[RefusedMerge]] = {}
    for graph in graphs:
        for merge in graph.refused:
            seen.setdefault(merge.reason, []).append(merge)
    best = [(max(merges, key=lambda m: m.saving_us), len(merges)) for merges in seen.values()]
    return sorted(best, key=lambda pair: -pair[0].saving_us)


def utilisation(report: Report, time_us: float) -> Utilisation:
    """MFU and MBU of running the report's graphs in ``time_us``."""
    flops: dict[tuple[str, str], int] = {}
    for graph in report.graphs:
        for node in graph.nodes:
            flops[node.unit, node.peak] = flops.get((node.unit, node.peak), 0) + node.flops
    matrix = {peak: n for (unit, peak), n in flops.items() if unit == "tensor" and n}
    peak = max(matrix, key=lambda p: matrix[p]) if matrix else "fp32"
    rate = report.device.peaks.get(peak, report.device.peaks["fp32"])
    seconds = 1e-6 * time_us
    if not seconds:
        return Utilisation(0.0, 0.0, peak)
    needed = sum(g.input_bytes for g in report.graphs)
    return Utilisation(sum(flops.values()) / (seconds * rate), needed / (seconds * report.device.bandwidth), peak)


def distinct(graphs: Sequence[GraphReport]) -> list[GraphReport]:
    """Graphs without repetitions."""
    return list({id(g): g for g in graphs}.values())
