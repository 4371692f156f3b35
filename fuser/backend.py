"""The torch.compile backend: ``torch.compile(model, backend="rooffuse")``."""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rooffuse.passes import aot_decompositions
from rooffuse.passes.extremes import compared_with_extremes
from torch.fx import GraphModule

from .compile import InputFacts, compile_graph, has_symbolic_sizes
from .options import Options, make_options
from .saved_layouts import layout_of, report_strides
from .specialise import SpecialisingFunction
from .targets import local_target

log = logging.getLogger(__name__)


def _compiler(options: Options, kind: str) -> Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]:
    """A compiler for AOTAutograd. ``kind`` is "inference", "forward" or "backward"."""

    def compile_one(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        if has_symbolic_sizes(gm):
            return SpecialisingFunction(gm, options, kind)
        facts = _input_facts(gm, kind, example_inputs)
        compiled = compile_graph(gm, local_target(example_inputs), options, facts, kind)
        if kind == "forward":
            report_strides(compiled.plan.graph)
        return compiled.function

    return compile_one


def _input_facts(gm: GraphModule, kind: str, example_inputs: Sequence[Any]) -> InputFacts:
    layout = layout_of(gm, kind, example_inputs)
    if kind == "backward":
        # What autograd hands to a backward may have other strides than the traced tangents.
        count = sum(n.op == "placeholder" for n in gm.graph.nodes)
        return InputFacts(unchecked_strides=frozenset(range(count)), backward=True, layout=layout)
    context = torch._guards.TracingContext.try_get()
    metadata = context.fw_metadata if context is not None else None
    static = frozenset(metadata.static_input_indices or ()) if metadata is not None else frozenset()
    return InputFacts(static=static, layout=layout)


def _partition(joint: GraphModule, *args: Any, **kwargs: Any) -> tuple[GraphModule, GraphModule]:
    """Forward and backward, with the least to keep in between; but a value that the gradient of a maximum looks for is
    kept, since computed again in the backward it may not equal the maximum."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch.utils.checkpoint import CheckpointPolicy

    for node in compared_with_extremes(joint.graph):
        node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    return min_cut_rematerialization_partition(joint, *args, **kwargs)


def rooffuse_backend(gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None,
                     options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """Compile a Dynamo graph, for inference or training.

    ``mode`` and ``options`` are those of ``torch.compile``; see ``rooffuse.Options``. Raises OptionError for unknown
    ones.
    """
    chosen = make_options(mode, options)
    from torch._dynamo.backends.common import aot_autograd

    compiler = aot_autograd(
        fw_compiler=_compiler(chosen, "forward"), bw_compiler=_compiler(chosen, "backward"),
        inference_compiler=_compiler(chosen, "inference"), decompositions=aot_decompositions(),
        partition_fn=_partition, keep_inference_input_mutations=True)
    return compiler(gm, example_inputs)
