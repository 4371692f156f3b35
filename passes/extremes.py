"""Values that are looked for again after some of them were chosen, as the gradient of a maximum does.

``x == x.amax(dim)`` is meant to hold somewhere, and ``x >= x.topk(k).values[-1]`` for ``k`` of them. Where ``x`` is
computed once for the maximum and again for the comparison, the last bit may differ: then nothing is found, and a
gradient that is shared out among what was found is 0 / 0. Such values are therefore computed once.
"""

from __future__ import annotations

from rooffuse.passes.graph import argument, aten, viewed_arg
from rooffuse.passes.running import running_max, running_min
from torch.fx import Graph, Node

#: Library calls that choose some of the elements of their first argument, or put them in order.
_CHOICES = (aten.sort.default, aten.sort.stable, aten.topk.default, aten.kthvalue.default, aten.mode.default,
            aten.median.default, aten.median.dim, aten.nanmedian.default, aten.nanmedian.dim)
_EXTREMES = frozenset({aten.amax.default, aten.amin.default, aten.max.default, aten.min.default, running_max,
                       running_min, *_CHOICES})
#: Calls that choose among the elements of their first argument and those that are scattered to it.
_SCATTERED = frozenset({aten.scatter_reduce.two, aten.scatter_reduce_.two, aten.index_reduce.default})
_COMPARISONS = frozenset(getattr(aten, name).Tensor for name in ("eq", "ne", "lt", "le", "gt", "ge"))
_LOOKUPS = frozenset({aten.gather.default, aten.index_select.default, aten.index.Tensor, aten.take.default})
_PASSED_ON = frozenset({aten._to_copy.default, aten.clone.default, aten.where.self}) | _LOOKUPS


def compared_with_extremes(graph: Graph, returned: bool = False) -> frozenset[Node]:
    """Nodes whose values are compared with their own maximum or minimum, or with chosen ones of them; with ``returned``
    also those that ``graph`` returns together with it, since another graph, as that of a gradient, may compare them."""
    found: set[Node] = set()
    results = [_origins(node) for node in graph.output_node().all_input_nodes] if returned and any(
        _chosen_from(node) for node in graph.nodes) else []
    for extreme in {node for origins in results for node in origins}:
        for choices in _chosen_from(extreme):
            values = _origins(choices)
            found = found.union(*(values & origins for origins in results))
    for node in graph.nodes:
        if node.target not in _COMPARISONS:
            continue
        left, right = (_origins(side) for side in node.args[:2])
        for values, others in ((left, right), (right, left)):
            for extreme in others:
                for choices in _chosen_from(extreme):
                    found |= values & _origins(choices)
    return frozenset(found)


def _chosen_from(node: Node) -> tuple[Node, ...]:
    """The arguments among whose elements a call chooses; empty for others."""
    if node.target in _EXTREMES:
        return node.args[:1]  # type: ignore[return-value]
    if node.target in _SCATTERED and argument(node, "reduce") in ("amax", "amin"):
        return node.args[0], argument(node, "src" if node.target is not aten.index_reduce.default else "source")
    return ()


def is_computed(node: Node) -> bool:
    """Whether ``node`` makes new numbers, rather than passes on some that there are."""
    return node.op == "call_function" and viewed_arg(node) is None and node.target not in _PASSED_ON


def _origins(node: Node) -> set[Node]:
    """Where the elements of ``node`` may come from unchanged: itself, what it is a view of, what it chooses from."""
    found, work = {node}, [node]
    while work:
        current = work.pop()
        viewed = viewed_arg(current)
        sources = [viewed] if viewed is not None else []
        if current.target in _PASSED_ON:
            sources = current.all_input_nodes[:1 if current.target in _LOOKUPS else None]
        work += [s for s in sources if s not in found]
        found.update(sources)
    return found
