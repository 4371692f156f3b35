"""The torch.compile backend: ``torch.compile(model, backend="rooffuse")``."""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rooffuse.passes import aot_decompositions
from torch.fx import GraphModule

from .collecting import no_collections
from .compile import InputFacts, compile_graph, has_symbolic_sizes
from .data_dependent import CutFunction, reads_sizes
from .joint_graph import partition_joint
from .options import Options, make_options
from .saved_layouts import layout_of, report_strides
from .specialise import SpecialisingFunction
from .targets import local_target
from .whole_operators import whole_operators

log = logging.getLogger(__name__)


def _compiler(options: Options, kind: str) -> Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]:
    """A compiler for AOTAutograd. ``kind`` is "inference", "forward" or "backward"."""

    def compile_one(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        if reads_sizes(gm):
            return CutFunction(gm, lambda piece: SpecialisingFunction(piece, options, kind))
        if has_symbolic_sizes(gm):
            return SpecialisingFunction(gm, options, kind)
        facts = _input_facts(gm, kind, example_inputs)
        compiled = compile_graph(gm, local_target(n.meta.get("val") for n in gm.graph.nodes), options, facts, kind)
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


def rooffuse_backend(gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None,
                     options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """Compile a Dynamo graph, for inference or training.

    ``mode`` and ``options`` are those of ``torch.compile``; see ``rooffuse.Options``. Raises OptionError for unknown
    ones.
    """
    chosen = make_options(mode, options)
    return compile_ahead(gm, example_inputs, lambda kind: _compiler(chosen, kind))


@no_collections()
def compile_ahead(gm: GraphModule, example_inputs: Sequence[Any], compiler: Callable[[str], Callable[..., Any]]
                  ) -> Callable[..., Any]:
    """``gm`` with the graphs that AOTAutograd makes of it compiled by ``compiler("inference")``, or by "forward" and,
    once it is wanted, "backward".

    It is what ``aot_autograd`` of Dynamo's backends does, but for the import of Inductor's scheduler, which its log
    alone needs and which takes a quarter of the time of planning a small model.
    """
    parts: dict[str, Any] = {
        "fw_compiler": compiler("forward"), "bw_compiler": compiler("backward"),
        "inference_compiler": compiler("inference"), "decompositions": aot_decompositions(),
        "partition_fn": partition_joint, "keep_inference_input_mutations": True}
    if any(isinstance(x, list | tuple | dict) for x in example_inputs):
        from torch._dynamo.backends.common import aot_autograd

        with whole_operators():
            return aot_autograd(**parts)(gm, example_inputs)
    from torch._functorch.aot_autograd import aot_module_simplified

    def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch._dynamo.disable(function, reason="it is compiled already")

    backward = parts["bw_compiler"]
    parts["bw_compiler"] = lambda *graph: untraced(untraced(backward)(*graph))
    with whole_operators():
        return untraced(aot_module_simplified(gm, example_inputs, **parts))
