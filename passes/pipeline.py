"""The list of passes, and how they run: copy at the door, one after the other, checked in between."""

from __future__ import annotations

import copy
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rooffuse.passes.added_scatters import added_scatters
from rooffuse.passes.complex_pairs import complex_pairs
from rooffuse.passes.constant_fold import constant_fold
from rooffuse.passes.cse import cse
from rooffuse.passes.dce import dce
from rooffuse.passes.decompose import decompose
from rooffuse.passes.exclusive_scans import exclusive_scans
from rooffuse.passes.foreach import expand_foreach
from rooffuse.passes.grouped_heads import grouped_heads
from rooffuse.passes.joined_pads import joined_pads
from rooffuse.passes.kept_dims import kept_dims
from rooffuse.passes.negated_views import negated_views
from rooffuse.passes.one_device import one_device
from rooffuse.passes.pooled_places import pooled_places
from rooffuse.passes.reduced_pieces import reduced_pieces
from rooffuse.passes.redundant import redundant
from rooffuse.passes.reinplace import reinplace
from rooffuse.passes.scan_totals import scan_totals
from rooffuse.passes.strided_places import strided_places
from rooffuse.passes.verify import stale_reads, verify
from rooffuse.passes.whole_writes import whole_writes
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule

log = logging.getLogger(__name__)

GraphPass = Callable[[GraphModule], GraphModule]


@dataclass(frozen=True)
class Pass:
    """A named rewrite of a functional ATen graph.

    ``run`` may edit the module it is given (``run_passes`` hands it a copy) and returns the result; ``doc`` says
    what the pass requires and what it ensures.
    """

    name: str
    run: GraphPass
    doc: str


def _pass(function: GraphPass) -> Pass:
    return Pass(function.__name__, function, inspect.getdoc(function) or "")


# Lists of tensors come apart first, so that what they hold is expanded like all else. Redundant runs before cse, so
# that equal values reached through different views meet there, and again after, since merged sources make more chains
# equal. What will be written in place needs single users, so dead readers go before the two passes that see to it.
PIPELINE: tuple[Pass, ...] = tuple(
    map(_pass, (negated_views, strided_places, expand_foreach, pooled_places, decompose, complex_pairs, dce,
                constant_fold, one_device, redundant, grouped_heads, exclusive_scans, scan_totals, whole_writes,
                joined_pads, reduced_pieces, cse, kept_dims, redundant, dce, added_scatters, reinplace, dce))
)


#: Run once more where other passes make equal calls.
CSE_PASS = _pass(cse)


def copy_graph(gm: GraphModule) -> GraphModule:
    """A module with its own graph: nodes and their ``meta`` dicts are new, tensors and fake values are shared."""
    graph = Graph()
    val_map: dict[Node, Node] = {}
    output = graph.graph_copy(gm.graph, val_map)
    copied = graph.output(output)
    source = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    copied.meta = copy.copy(source.meta)
    graph._codegen = copy.deepcopy(gm.graph._codegen)
    for old, new in val_map.items():
        new.meta = copy.copy(old.meta)
    # Python code is generated when the module first runs, which a graph on its way to a compiler never does.
    result = _LazyGraphModule(gm, graph)
    result.meta = dict(gm.meta)
    return result


def run_passes(
    gm: GraphModule,
    passes: Sequence[Pass] = PIPELINE,
    *,
    lint: bool = True,
    observe: Callable[[str, GraphModule], None] | None = None,
) -> GraphModule:
    """Run ``passes`` in order on a copy of ``gm`` and return the copy; the argument is never edited.

    Args:
        gm: a graph as AOTAutograd hands it to a compiler.
        passes: the passes to run, e.g. ``PIPELINE``.
        lint: check ``graph.lint()`` and ``verify`` after every pass.
        observe: called with the pass's name and the module after every pass.

    Raises:
        GraphError: if a pass left a graph that breaks an invariant; the message starts with the pass's name.
    """
    result = copy_graph(gm)
    # A graph that arrives with such reads keeps them; the rule is then not one the passes can be held to.
    check = verify if not stale_reads(result) else None
    for step in passes:
        before = len(result.graph.nodes)
        start = time.perf_counter()
        result = step.run(result)
        result.recompile()
        elapsed = time.perf_counter() - start
        if lint:
            result.graph.lint()
            if check is not None:
                _checked(step.name, result)
        log.debug("%s: %d -> %d nodes, %.2f ms", step.name, before, len(result.graph.nodes), elapsed * 1e3)
        if observe is not None:
            observe(step.name, result)
    return result


def _checked(name: str, gm: GraphModule) -> None:
    try:
        verify(gm)
    except RuntimeError as error:
        raise type(error)(f"after pass {name!r}: {error}") from error
