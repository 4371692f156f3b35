"""Workloads at their GPU shapes as fake tensors on the CPU: nothing is allocated, and no GPU is needed."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from .cases import DTYPES, case_named


class _OnCpu(TorchFunctionMode):
    """Makes tensors that are asked for on a GPU on the CPU instead: some operators can't be traced for a device that
    torch wasn't built for."""

    def __torch_function__(self, func: Any, types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        values = dict(kwargs or {})
        if values.get("device") is not None:
            values["device"] = torch.device("cpu")
        return func(*args, **values)


@dataclass(frozen=True)
class GpuCase:
    """A workload's function and its fake arguments."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    mode: FakeTensorMode


def gpu_case(name: str, dtype: str) -> GpuCase:
    """Raises ValueError if the suite ``kernels`` has no workload of that name."""
    case, mode = case_named("kernels", name), FakeTensorMode()
    with mode, _OnCpu():
        fn, args = case.make("cuda", DTYPES[dtype])
    return GpuCase(fn, args, mode)


def trace(case: GpuCase, decompositions: Mapping[Any, Callable[..., Any]]) -> GraphModule:
    """The functional ATen graph; writes to arguments are copies at its end."""
    table = dict(decompositions)
    with case.mode, torch.no_grad():
        # Decompositions write into values of their own: what they are made of is known, and functional, after them.
        expanded = make_fx(case.fn, decomposition_table=table, tracing_mode="real")(*case.args)
        functional = torch.func.functionalize(expanded, remove="mutations")
        return make_fx(functional, decomposition_table=table, tracing_mode="real")(*case.args)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def floor_of(gm: GraphModule, case: GpuCase) -> int:
    """Bytes of each argument and each result once, and of written arguments once more; of a table that is only
    gathered from, at most what is gathered."""
    total = 0
    for placeholder in gm.graph.find_nodes(op="placeholder"):
        if isinstance(placeholder.meta.get("val"), torch.Tensor):
            total += _read(placeholder)
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        total += _bytes(node.meta["val"])
    results = {n for n in gm.graph.output_node().all_input_nodes if n.op != "placeholder"}
    written = {n.args[0] for n in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)}
    for node in sorted(results - written, key=lambda n: n.name):
        if node.target is not torch.ops.aten.copy_.default:
            total += _bytes(node.meta["val"])
    return total


def _read(placeholder: Node) -> int:
    whole = _bytes(placeholder.meta["val"])
    gathers = [u for u in placeholder.users if u.target is torch.ops.aten.embedding.default]
    if gathers and len(gathers) == len(placeholder.users):
        return min(whole, sum(_bytes(u.meta["val"]) for u in gathers))
    return whole
