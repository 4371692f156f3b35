"""From the grouped graph to a program: which buffer lies where, and the flat list of what runs."""
from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from rooffuse.codegen.ir import Kernel, Load, Store
from rooffuse.codegen.sweeps import plan_phases, stored_again
from rooffuse.passes import BufferLife, MemoryPlan, check_plan, plan_memory
from rooffuse.passes.graph import graph_device, viewed_arg, written_args
from torch.fx import Node

from .grouping import Group
from .partition import FusedModule

aten = torch.ops.aten

#: Library calls that can write into a planned buffer, and the faster Python function for each.
OUT_CALLS: Mapping[Any, Any] = {
    aten.mm.default: torch.mm, aten.bmm.default: torch.bmm, aten.addmm.default: torch.addmm,
    aten.baddbmm.default: torch.baddbmm,
}


@dataclass(frozen=True)
class KernelStep:
    """Launch the kernel of a group; ``arguments`` are graph nodes in the order of the kernel's buffers, of which a CPU
    writes those called ``streamed`` past its caches."""

    node: Node
    name: str
    group: Group
    arguments: tuple[Node, ...]
    results: tuple[Node, ...]
    streamed: tuple[str, ...] = ()


@dataclass(frozen=True)
class CallStep:
    """Call a library function; with ``out`` it writes into a planned or fresh buffer."""

    node: Node
    out: bool


@dataclass(frozen=True)
class ViewStep:
    """Make a view, take one result of a call that has several, or take memory that others write into."""

    node: Node


Step = KernelStep | CallStep | ViewStep


@dataclass(frozen=True)
class Program:
    """Steps in order and where buffers lie.

    ``planned`` maps nodes to bytes offsets in the arena; ``fresh`` are buffers that a kernel or an ``out`` call fills
    and that are allocated anew in each run because the caller gets them. ``last_use`` gives the step after which a
    node's Python reference can be dropped.
    """

    fused: FusedModule
    steps: tuple[Step, ...]
    plan: MemoryPlan
    planned: Mapping[Node, int]
    fresh: frozenset[Node]
    static: frozenset[Node]
    last_use: Mapping[Node, int]
    unplanned_bytes: int


def nbytes(node: Node) -> int:
    """Bytes from the first to past the last element of the tensor that ``node`` makes."""
    value = node.meta["val"]
    span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride())) if value.numel() else 0
    return span * value.dtype.itemsize


def storage_owners(fused: FusedModule) -> dict[Node, Node]:
    """For each node, the node whose storage its tensor lies in."""
    owners: dict[Node, Node] = {}
    for node in fused.module.graph.nodes:
        base = None
        if node.op == "call_function":
            source = node.args[0] if node.args else None
            if node.target is operator.getitem and isinstance(source, Node):
                base = source if owners.get(source, source) is not source else None
            else:
                base = viewed_arg(node)
        owners[node] = owners.get(base, base) if base is not None else node
    return owners


def inplace_pairs(kernel: Kernel) -> dict[str, tuple[str, ...]]:
    """For each written buffer, the read buffers whose memory it may share: one index for all accesses of both, in one
    nest, which varies along all loops around the write, and no read of the input after the write of the output."""
    result: dict[str, tuple[str, ...]] = {}
    for out in sorted(kernel.written - kernel.read):
        result[out] = tuple(
            b.name for b in kernel.buffers
            if b.name in kernel.read - kernel.written and b.size == kernel.buffer(out).size
            and b.dtype.itemsize == kernel.buffer(out).dtype.itemsize and _may_share(kernel, b.name, out))
    return result


def _may_share(kernel: Kernel, source: str, out: str) -> bool:
    touching = [(k, s) for k, nest in enumerate(kernel.nests) for s in nest.body
                if isinstance(s, Load | Store) and s.buffer in (source, out)]
    if len({k for k, _ in touching}) != 1 or len({s.index for _, s in touching}) != 1:
        return False
    order = [isinstance(s, Store) for _, s in touching]
    if order != sorted(order):
        return False
    nest = kernel.nests[touching[0][0]]
    if any(s.buffer == out for s in stored_again(nest)):
        return False
    phases = plan_phases(nest)
    reads = [k for k, p in enumerate(phases) for s in p.body if isinstance(s, Load) and s.buffer == source]
    writes = [k for k, p in enumerate(phases) for s in p.body if isinstance(s, Store) and s.buffer == out]
    if not reads or not writes or max(reads) > min(writes):
        return False
    # What doesn't vary along a loop around the store is read again in the loop's next step, and what several points of
    # a loop share, as lanes of one group do, is read again by the next one of them.
    around = {a.symbol: a.size for a in nest.axes if a.size > 1 and (phases[min(writes)].sweep or not a.reduction)}
    return around.keys() <= touching[0][1].index.free_symbols and prod(around.values()) <= kernel.buffer(out).size


def _steps(fused: FusedModule) -> list[Step]:
    steps: list[Step] = []
    device = graph_device(fused.module.graph)
    for node in fused.module.graph.nodes:
        if node.op == "call_module":
            group = fused.groups[str(node.target)]
            assert group.lowered is not None
            results = {user.args[1]: user for user in node.users}
            where: dict[str, Node] = {b: node.args[k] for b, k in group.lowered.inputs.items()}
            where.update({b: results[k] for b, k in group.lowered.outputs.items()})
            steps.append(KernelStep(node, str(node.target), group,
                                    tuple(where[b.name] for b in group.lowered.kernel.buffers),
                                    tuple(results[k] for k in sorted(results))))
        elif node.op == "call_function":
            source = node.args[0] if node.args else None
            if node.target is operator.getitem and isinstance(source, Node):
                if source.op != "call_module":
                    steps.append(ViewStep(node))
            elif node.target is aten.empty_strided.default or (viewed_arg(node) is not None and not written_args(node)):
                steps.append(ViewStep(node))
            else:
                steps.append(CallStep(node, node.target in OUT_CALLS and _plain(node, device)))
    return steps


def _plain(node: Node, device: torch.device) -> bool:
    """Whether an ``out`` buffer can take the result as it is: contiguous, and where planned memory is."""
    value = node.meta["val"]
    return value.is_contiguous() and value.numel() > 0 and value.device == device


def make_program(fused: FusedModule, verify: bool = False) -> Program:
    """Plan memory and list the steps. With ``verify`` the plan is checked by the independent check.

    Raises MemoryPlanError if that check finds an overlap.
    """
    steps = _steps(fused)
    owners = storage_owners(fused)
    output = fused.module.graph.output_node()
    escaping = {owners[n] for n in output.all_input_nodes}
    made: dict[Node, int] = {}
    last: dict[Node, int] = {}
    for k, step in enumerate(steps):
        for result in step.results if isinstance(step, KernelStep) else (step.node,):
            made[result] = k
        used = step.arguments if isinstance(step, KernelStep) else step.node.all_input_nodes
        for node in (*used, *(step.results if isinstance(step, KernelStep) else (step.node,))):
            last[node] = max(last.get(node, 0), k)
            last[owners[node]] = max(last.get(owners[node], 0), k)
    filled = [r for s in steps if isinstance(s, KernelStep) for r in s.results]
    filled += [s.node for s in steps if isinstance(s, CallStep) and s.out]
    filled += [s.node for s in steps if isinstance(s, ViewStep) and s.node.target is aten.empty_strided.default]
    fresh = frozenset(n for n in filled if n in escaping)
    lives = _lives(steps, [n for n in filled if n not in escaping], owners, made, last)
    plan = plan_memory(lives)
    if verify:
        check_plan(lives, plan)
    planned = {n: plan.offsets[n.name] for n in filled if n not in escaping}
    static = _static(steps, planned, fused)
    unplanned = sum(nbytes(n) for n in fresh) + sum(
        _result_bytes(s.node) for s in steps if isinstance(s, CallStep) and not s.out)
    return Program(fused, tuple(steps), plan, planned, fresh, static, last, unplanned)


def _lives(steps: list[Step], buffers: list[Node], owners: dict[Node, Node], made: dict[Node, int],
           last: dict[Node, int]) -> list[BufferLife]:
    known = set(buffers)
    takes: dict[Node, tuple[str, ...]] = {}
    for k, step in enumerate(steps):
        if not isinstance(step, KernelStep) or step.group.lowered is None:
            continue
        kernel = step.group.lowered.kernel
        where = dict(zip((b.name for b in kernel.buffers), step.arguments))
        for out, sources in inplace_pairs(kernel).items():
            if out not in step.group.lowered.outputs:
                continue  # written in place: what it holds already is needed
            dying = [where[s] for s in sources if where[s] in known and last[where[s]] == k
                     and sum(owners[a] is where[s] for a in step.arguments) == 1]
            if where[out] in known and dying:
                takes[where[out]] = tuple(n.name for n in dying)
    return [BufferLife(n.name, nbytes(n), made[n], last[n], takes.get(n, ())) for n in buffers]


def _static(steps: list[Step], planned: Mapping[Node, int], fused: FusedModule) -> frozenset[Node]:
    """Nodes whose tensor is the same object in every run with one arena: planned buffers and views of them."""
    static = set(planned)
    static.update(n for n in fused.module.graph.nodes if n.op == "get_attr")
    for step in steps:
        if isinstance(step, ViewStep):
            sources = step.node.all_input_nodes
            if sources and all(s in static for s in sources):
                static.add(step.node)
    return frozenset(static)


def _result_bytes(node: Node) -> int:
    """Bytes that a library call allocates for its results."""
    if written_args(node):
        return 0
    values = node.meta.get("val")
    values = values if isinstance(values, list | tuple) else [values]
    return sum(v.numel() * v.dtype.itemsize for v in values if isinstance(v, torch.Tensor))
