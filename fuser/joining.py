"""Whether library calls may write into concatenations is known once it is known which of them are stored."""
from __future__ import annotations

from rooffuse.passes import joined_results_pass, run_passes
from torch.fx import GraphModule

from .grouping import Grouping


def with_joined_results(graph: GraphModule, grouping: Grouping, lint: bool) -> GraphModule | None:
    """``graph`` with results that are written where a concatenation has them; None if there are none such."""
    kernels = {n.name: k for k, g in enumerate(grouping.groups) if g.fused for n in g.nodes}
    stored = {n.name for g in grouping.groups if g.fused for n in g.outputs}
    joined = run_passes(graph, [joined_results_pass(kernels, stored)], lint=lint)
    return joined if len(joined.graph.nodes) != len(graph.graph.nodes) else None
