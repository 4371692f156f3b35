"""Strides of what a forward graph saves for its backward graph: chosen by the one, told to the other."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rooffuse.passes import Layout
from rooffuse.passes.graph import output_node
from torch._guards import TracingContext
from torch.fx import GraphModule


def layout_of(gm: GraphModule, kind: str, example_inputs: Sequence[Any]) -> Layout:
    """Which strides of a graph from AOTAutograd are open or aren't the traced ones.

    A "forward" may save what it likes for its backward, of tensors that were traced contiguous; the example inputs of a
    "backward" have the strides that its forward reported.
    """
    if kind == "forward":
        context = TracingContext.try_get()
        if context is None or context.fw_metadata is None or context.output_strides is None:
            return Layout()
        results, tokens = list(output_node(gm.graph).args[0]), _tokens(context)  # type: ignore[arg-type]
        saved = range(tokens, len(results))[context.fw_metadata.tensors_saved_for_backwards_slice]
        values = {k: results[k].meta.get("val") for k in saved if isinstance(results[k], torch.fx.Node)}
        return Layout(free=frozenset(k for k, v in values.items()
                                     if isinstance(v, torch.Tensor) and v.is_contiguous()))
    if kind == "backward":
        traced = {n.name: n.meta.get("val") for n in gm.graph.find_nodes(op="placeholder")}
        return Layout(inputs={name: v for (name, t), v in zip(traced.items(), example_inputs)
                              if isinstance(t, torch.Tensor) and isinstance(v, torch.Tensor)
                              and t.stride() != v.stride()})
    return Layout()


def _tokens(context: TracingContext) -> int:
    """How many results of a forward graph order its effects, as the check of a library call is one: they come first,
    and AOTAutograd doesn't count them."""
    return len(context.fw_metadata.tokens) if context.fw_metadata is not None else 0


def report_strides(gm: GraphModule) -> None:
    """Tell AOTAutograd the strides of the results of a compiled forward graph."""
    context = TracingContext.try_get()
    if context is None or context.output_strides is None:
        return
    for result in output_node(gm.graph).args[0][_tokens(context):]:  # type: ignore[union-attr,index]
        value = result.meta.get("val") if isinstance(result, torch.fx.Node) else None
        context.output_strides.append(tuple(value.stride()) if isinstance(value, torch.Tensor) else None)
