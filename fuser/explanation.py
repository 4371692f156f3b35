"""``rooffuse.explain``: the plan for a function, on any device, without running it."""
from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rooffuse.cost_model import Device, get_device, local_device
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.fx import GraphModule, Node

from .backend import compile_ahead
from .compile import Plan, plan_graph
from .dynamo_scope import GraphBreak, dynamo_scope, location_of
from .fake_copies import FakeCopier, fake_on
from .options import Options, make_options
from .report import GraphReport, Report
from .report_rows import graph_report
from .saved_layouts import layout_of, report_strides
from .targets import Target, target_for

_VALUES_NEEDED = (DataDependentOutputException, DynamicOutputShapeException)


@dataclass
class _Traced:
    """The graphs of one piece of traced code, and how often each was called."""

    plans: dict[str, Plan] = field(default_factory=dict)
    backward_calls: int = 0


@dataclass
class _Recorder:
    """An internal Dynamo backend: plans graphs, and stands in for them with fake results."""

    target: Target
    options: Options
    mode: FakeTensorMode
    calls: list[tuple[_Traced, str]] = field(default_factory=list)

    def __call__(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        traced = _Traced()
        return compile_ahead(gm, example_inputs, lambda kind: self._compiler(traced, kind))

    def _compiler(self, traced: _Traced, kind: str) -> Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]:
        def plan(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
            layout = layout_of(gm, kind, example_inputs)
            with unset_fake_temporarily():
                traced.plans[kind] = plan_graph(gm, self.target, self.options, layout=layout)
            if kind == "forward":
                report_strides(traced.plans[kind].graph)
            return self._stand_in(gm, traced, kind)

        return plan

    def _stand_in(self, gm: GraphModule, traced: _Traced, kind: str) -> Callable[[list[Any]], tuple[Any, ...]]:
        """What is called in the graph's place: notes the call, and returns tensors that have shapes and no values."""
        placeholders = {n: k for k, n in enumerate(gm.graph.find_nodes(op="placeholder"))}
        outputs = list(gm.graph.output_node().args[0])

        def run(args: list[Any]) -> tuple[Any, ...]:
            self.calls.append((traced, kind))
            traced.backward_calls += kind == "backward"
            made: dict[Node, Any] = {}
            with self.mode:
                for node in outputs:
                    if isinstance(node, Node) and node not in made:
                        made[node] = args[placeholders[node]] if node in placeholders else _like(node.meta["val"])
            args.clear()
            return tuple(made[n] if isinstance(n, Node) else n for n in outputs)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def graphs(self) -> list[tuple[Plan, str]]:
        """Plans in the order of their calls; backward graphs that nobody called come last, last forward first."""
        found = [(traced.plans[kind], kind) for traced, kind in self.calls]
        missing: dict[int, int] = {}
        for traced, kind in reversed(self.calls):
            if kind == "forward" and "backward" in traced.plans:
                missing[id(traced)] = missing.get(id(traced), -traced.backward_calls) + 1
                if missing[id(traced)] > 0:
                    found.append((traced.plans["backward"], "backward"))
        return found


def _like(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def chosen_device(device: str | Device | None, values: Any) -> Device:
    """The device by name; by default this machine's GPU if a tensor is there, else its CPU."""
    if isinstance(device, Device):
        return device
    if device is not None:
        return get_device(device)
    from torch.utils._pytree import tree_leaves

    tensors = [t for leaf in tree_leaves(values) for t in
               ((*leaf.parameters(), *leaf.buffers()) if isinstance(leaf, torch.nn.Module) else (leaf,))]
    on_gpu = torch.cuda.is_available() and any(isinstance(t, torch.Tensor) and t.is_cuda for t in tensors)
    return local_device("cuda" if on_gpu else "cpu")


def raised_at(error: BaseException) -> str:
    """The innermost place outside of torch and this package that ``error`` comes from, traced code included."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = getattr(error, "real_stack", None) or traceback.extract_tb(error.__traceback__)
    return location_of([f for f in frames if not f.filename.startswith(inside)])


def explain(fn: Callable[..., Any], /, *args: Any, device: str | Device | None = None, **kwargs: Any) -> Report:
    """What rooffuse would do with ``fn(*args, **kwargs)`` on ``device``, priced node by node and kernel by kernel.

    Nothing is run: ``fn``, its parameters and its arguments are traced as copies without values, so real, meta and
    fake tensors give the same report, models of any size fit, and the originals stay as they are. No GPU is needed to
    plan for one.

    Args:
        fn: a function or ``torch.nn.Module``, compiled or not. If gradients are on and wanted, forward and backward
            graphs are both in the report; trace under ``torch.no_grad()`` for inference.
        device: a name of ``rooffuse devices``, a TOML file, or a ``rooffuse.cost_model.Device``; by default this
            machine's GPU where the tensors are on one, else its CPU.

    Operators that torch chooses by device, such as the variant of scaled-dot-product attention, are named after the
    device that was traced (the CPU for meta tensors), also when the plan is for another.

    Where the function needs a tensor's value, as in ``if x.sum() > 0``, the report ends; its ``graph_breaks`` say so.

    Raises UnknownDevice for a name that isn't known, and what ``fn`` raises.
    """
    return explain_call(fn, args, kwargs, device)


def explain_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
                 device: str | Device | None = None) -> Report:
    """`explain` for arguments whose names may be those of its own."""
    planned = planned_call(fn, args, kwargs, device)
    rows: dict[int, GraphReport] = {}
    for plan, kind in planned.calls:
        if id(plan) not in rows:
            rows[id(plan)] = graph_report(plan, kind, planned.options)
    return Report(planned.target.device, tuple(rows[id(p)] for p, _ in planned.calls), planned.breaks)


@dataclass(frozen=True)
class PlannedCall:
    """The plans of one call of a function: ``calls`` has the plan and its kind for each graph in order of the calls,
    the same plan several times if its graph is called as often."""

    target: Target
    options: Options
    calls: tuple[tuple[Plan, str], ...]
    breaks: tuple[GraphBreak, ...]


def planned_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
                 device: str | Device | None = None, on: torch.device | None = None) -> PlannedCall:
    """Trace and plan as `explain` does, without making rows; with ``on`` as if every tensor were there."""
    target = target_for(chosen_device(device, (fn, args, kwargs)))
    options = make_options()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = _Recorder(target, options, mode)
    original = getattr(fn, "_orig_mod", getattr(fn, "_torchdynamo_orig_callable", fn))
    copier = FakeCopier(mode) if on is None or on.type == "cpu" else FakeCopier(mode, fake_on(on))
    function, inputs, named = copier(original), copier(args), copier(dict(kwargs))
    ended: list[GraphBreak] = []
    with dynamo_scope() as trace, mode, warnings.catch_warnings():
        # Models cache what they ask of the environment, which is the same each time.
        warnings.filterwarnings("ignore", "Dynamo detected a call to a .functools.lru_cache")
        try:
            torch.compile(function, backend=recorder, dynamic=False)(*inputs, **named)
        except _VALUES_NEEDED as error:
            ended.append(GraphBreak("A tensor's value is needed here, and nothing is run: what follows is not in this "
                                    "report", raised_at(error)))
    return PlannedCall(target, options, tuple(recorder.graphs()), (*trace.breaks, *ended))
