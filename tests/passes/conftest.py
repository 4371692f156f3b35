"""Graphs to run passes on: written by hand as functions, or captured from models."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from rooffuse.passes import aot_decompositions, run_passes
from rooffuse.passes.pipeline import PIPELINE, Pass
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree


def draw(*sizes: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*sizes).to(dtype)


def trace(function: Callable[..., Any], *inputs: torch.Tensor) -> GraphModule:
    """The ATen graph of ``function``, operators as called, with fake values in ``meta["val"]``."""
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor) for tensor in inputs]
    with mode:
        return make_fx(function)(*fakes)


def single_call(op: Any, *args: Any, **kwargs: Any) -> GraphModule:
    """A graph of one call of ``op``, its tensor arguments being the placeholders; multiple results are a tuple."""
    mode = FakeTensorMode()
    graph = Graph()

    def operand(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        node = graph.placeholder(f"x{len(graph.nodes)}")
        node.meta["val"] = mode.from_tensor(value)
        return node

    nodes = pytree.tree_map(operand, (args, kwargs))
    call = graph.call_function(op, *nodes)
    with mode:
        fakes, fake_kwargs = torch.fx.map_arg(nodes, lambda node: node.meta["val"])
        call.meta["val"] = op(*fakes, **fake_kwargs)
    if isinstance(call.meta["val"], torch.Tensor):
        graph.output(call)
        return GraphModule({}, graph)
    results = []
    for index, value in enumerate(call.meta["val"]):
        if value is not None:
            part = graph.call_function(operator.getitem, (call, index))
            part.meta["val"] = value
            results.append(part)
    graph.output(tuple(results))
    return GraphModule({}, graph)


def targets(gm: GraphModule) -> list[str]:
    """The names of the calls in a graph, in order."""
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]


def clone_all(inputs: Sequence[Any]) -> list[Any]:
    """Copies with the same strides and the same aliasing-free storage."""
    return [item.clone() if isinstance(item, torch.Tensor) else item for item in inputs]


def assert_same_results(
    before: GraphModule, after: GraphModule, inputs: Sequence[Any], *, exact: bool = True, seed: int = 0
) -> None:
    """Both graphs give the same results, and leave the same values in their inputs."""
    left_inputs, right_inputs = clone_all(inputs), clone_all(inputs)
    torch.manual_seed(seed)
    left = before(*left_inputs)
    torch.manual_seed(seed)
    right = after(*right_inputs)
    tolerance = {"rtol": 0, "atol": 0} if exact else {}
    torch.testing.assert_close(right, left, equal_nan=True, check_stride=True, **tolerance)
    torch.testing.assert_close(right_inputs, left_inputs, equal_nan=True, **tolerance)


class Capture:
    """A ``torch.compile`` backend that runs the pipeline's result and keeps the graphs it saw."""

    def __init__(self, passes: Sequence[Pass] = PIPELINE) -> None:
        self.passes = passes
        self.before: list[GraphModule] = []
        self.after: list[GraphModule] = []

    def __call__(self, gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def compiler(graph: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
            result = run_passes(graph, self.passes)
            self.before.append(graph)
            self.after.append(result)
            return make_boxed_func(result.forward)

        backend = aot_autograd(
            fw_compiler=compiler,
            inference_compiler=compiler,
            decompositions=aot_decompositions(),
            keep_inference_input_mutations=True,
        )
        return backend(gm, inputs)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
