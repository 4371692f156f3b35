"""From a plan to the rows of its report."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.fxinfo import op_name
from rooffuse.cost_model import Cost, Estimate, estimate
from rooffuse.cost_model.device import peak_key
from rooffuse.passes import LIBRARY
from rooffuse.passes.graph import viewed_arg, written_args
from torch.fx import Graph, Node

from .autotune import Outcome, chosen_candidates, known_outcomes
from .compile import Plan, kernel_steps, step_source
from .cuda_graphs import decide
from .node_facts import LOOKUPS, distinct_bytes, node_price
from .options import Options
from .program import CallStep, KernelStep
from .provenance import module_path, shape_text, source_line
from .report import FallbackRow, GraphReport, KernelRow, NodeRow, RefusedMerge
from .step_prices import step_estimate, step_price

#: Digits after the point of a microsecond and of an intensity: more would be noise, and would differ by machine.
_DIGITS = 4
#: Products of rows with one of several matrices each.
_GROUPED = frozenset({"_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2"})


def _intensity(cost: Cost) -> float:
    return round(int(cost.flops) / int(cost.bytes), _DIGITS) if cost.bytes else 0.0


def _measures(cost: Cost, estimated: Estimate) -> dict[str, int | float | str]:
    return {
        "bytes_read": int(cost.bytes_read), "bytes_written": int(cost.bytes_written), "flops": int(cost.flops),
        "intensity": _intensity(cost), "bound": estimated.bound if estimated.seconds else "none",
        "time_us": round(1e6 * estimated.seconds, _DIGITS)}


def _op(node: Node) -> str:
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else getattr(
        node.target, "__name__", str(node.target))


def _node_row(node: Node, group: str, plan: Plan) -> NodeRow:
    priced = node_price(node)
    cost = Cost(0, 0, 0) if priced.kind == "view" else priced.cost
    estimated = estimate(cost, plan.target.device, priced.dtype, priced.unit)
    line = source_line(node)
    return NodeRow(node.name, _op(node), group, **_measures(cost, estimated), kind=priced.kind,  # type: ignore[arg-type]
                   module=module_path(node), source=line.place, code=line.code, shape=shape_text(node.meta.get("val")),
                   peak=peak_key(priced.dtype), unit=priced.unit, known=priced.known,
                   origin=str(node.meta.get("original_aten", "")), expands=_reads_expanded(node))


def _reads_expanded(node: Node) -> bool:
    values = [n.meta.get("val") for n in node.all_input_nodes]
    return any(s == 0 and n > 1 for v in values if isinstance(v, torch.Tensor) for n, s in zip(v.shape, v.stride()))


def _input_bytes(graph: Graph) -> int:
    """Bytes of inputs that must be read: all of them, but of tables that are only looked up the rows that are, and of
    the matrices of a mixture's experts as many as there are rows to meet one."""
    found = 0
    for node in graph.find_nodes(op="placeholder"):
        if not node.users or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        whole = distinct_bytes(node)
        parts = [_looked_at(use, source, whole) for use, source in _uses(node)]
        found += whole if None in parts else min(whole, sum(p for p in parts if p is not None))
    return found


def _uses(node: Node) -> Iterator[tuple[Node, Node]]:
    """What reads ``node`` or views of it, each with the view that it reads."""
    for user in node.users:
        if viewed_arg(user) is node and not written_args(user):
            yield from _uses(user)
        else:
            yield user, node


def _looked_at(use: Node, source: Node, whole: int) -> int | None:
    """Bytes of ``source`` that one call reads, of ``whole``; None for a call that reads all of it."""
    value, name = use.meta.get("val"), op_name(use)
    if name in LOOKUPS and use.args[0] is source:
        return value.numel() * value.dtype.itemsize
    if name in _GROUPED and use.args[1] is source and source.meta["val"].ndim == 3:
        groups = source.meta["val"].shape[0]
        return min(groups, value.shape[0]) * (whole // groups)
    return None


def _is_library(node: Node) -> bool:
    """Whether ``node`` is a call that is left to a library on purpose, in place or not."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return node.target._schema.name.replace("::", ".").rstrip("_") in {name.rstrip("_") for name in LIBRARY}


def _outcomes(plan: Plan, options: Options) -> tuple[Outcome, ...]:
    """What earlier searches chose, with the option ``autotune``: a report measures nothing."""
    if not options.autotune:
        return ()
    cache = DiskCache(options.cache_folder)
    return known_outcomes(kernel_steps(plan.program), plan.target, cache, options.eager_casts)


def graph_report(plan: Plan, kind: str, options: Options) -> GraphReport:
    """The rows of one graph. ``kind`` is "inference", "forward" or "backward"."""
    target = plan.target
    outcomes = _outcomes(plan, options)
    chosen, tuned = chosen_candidates(outcomes), {name: str(o) for o in outcomes for name in o.steps}
    kernels: list[KernelRow] = []
    fallbacks: list[FallbackRow] = []
    groups: dict[str, str] = {}
    reasons = {n.name: g.reason for g in plan.grouping.groups if not g.fused for n in g.nodes}
    for step in plan.program.steps:
        source: Callable[[], str]
        if isinstance(step, KernelStep):
            names, row_kind, name = tuple(n.name for n in step.group.nodes), target.language, step.name
            source = partial(step_source, step, target, chosen)
        elif isinstance(step, CallStep):
            name, names = step.node.name, (step.node.name,)
            reason = reasons.get(name, "")
            row_kind = "fallback" if reason and not _is_library(step.node) else "extern"
            source = partial(str, step.node.format_node())
            if row_kind == "fallback":
                fallbacks.append(FallbackRow(names, reason))
        else:
            continue
        for node_name in names:  # a producer that several kernels compute is counted with the first
            groups.setdefault(node_name, name)
        priced = step_price(step, target)
        kernels.append(KernelRow(name, row_kind, names, source=source, peak=peak_key(priced.dtype), unit=priced.unit,
                                 tuned=tuned.get(name, ""), **_measures(priced.cost, step_estimate(step, target))))  # type: ignore[arg-type]
    nodes = tuple(_node_row(n, groups.get(n.name, ""), plan) for n in plan.graph.graph.nodes
                  if n.op == "call_function")
    decision = decide(plan, options, backward=kind == "backward")
    refused = tuple(RefusedMerge(r.first, r.second, round(1e6 * r.seconds, _DIGITS), r.reason)
                    for r in plan.grouping.refusals)
    return GraphReport(kind, nodes, tuple(kernels), plan.program.plan.arena_bytes, plan.program.unplanned_bytes,
                       tuple(fallbacks), decision.captured, decision.reason, refused, _input_bytes(plan.graph.graph))
