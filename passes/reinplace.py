"""Writing a mutated input in place instead of copying it.

AOTAutograd turns ``cache.index_copy_(…)`` into a functional ``index_copy`` of the whole cache and a trailing
``copy_`` back into it: two full copies for one written row.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from rooffuse.passes.graph import (
    argument,
    aten,
    reads_first_again,
    same_sizes,
    schema_of,
    storage_roots,
    tensor_meta,
    viewed_arg,
    written_args,
)
from torch.fx import Graph, GraphModule, Node

log = logging.getLogger(__name__)

# Operators that return their first argument with some elements written, and the mutating form of each.
_IN_PLACE: dict[Any, Any] = {
    aten.index_copy.default: aten.index_copy_.default,
    aten.index_put.default: aten.index_put_.default,
    aten._unsafe_index_put.default: aten.index_put_.default,
    aten.index_add.default: aten.index_add_.default,
    aten.index_fill.int_Scalar: aten.index_fill_.int_Scalar,
    aten.index_fill.int_Tensor: aten.index_fill_.int_Tensor,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter.value: aten.scatter_.value,
    aten.scatter_add.default: aten.scatter_add_.default,
    aten.scatter_reduce.two: aten.scatter_reduce_.two,
    aten.masked_scatter.default: aten.masked_scatter_.default,
}
# Operators that write a view of their first argument, and the view.
_THROUGH_VIEW: dict[Any, tuple[Any, tuple[str, ...]]] = {
    aten.slice_scatter.default: (aten.slice.Tensor, ("dim", "start", "end", "step")),
    aten.select_scatter.default: (aten.select.int, ("dim", "index")),
}
_PARTIAL_WRITES = frozenset({*_IN_PLACE, *_THROUGH_VIEW})


@dataclass(frozen=True)
class _Uses:
    """Who reads and who writes each storage, in the graph as it came in."""

    roots: dict[Node, Node]
    position: dict[Node, int]
    readers: dict[Node, list[tuple[Node, Node]]]
    writers: dict[Node, list[Node]]

    @classmethod
    def of(cls, graph: Graph) -> _Uses:
        roots = storage_roots(graph)
        position: dict[Node, int] = {}
        readers: dict[Node, list[tuple[Node, Node]]] = {}
        writers: dict[Node, list[Node]] = {}
        for index, node in enumerate(graph.nodes):
            position[node] = index
            for item in node.all_input_nodes:
                readers.setdefault(roots[item], []).append((node, item))
            for item in written_args(node):
                writers.setdefault(roots[item], []).append(node)
        return cls(roots, position, readers, writers)


def reinplace(gm: GraphModule) -> GraphModule:
    """Turn ``copy_(arg, index_copy(arg, …))`` and its like into a write to ``arg`` in place.

    Requires: a functional graph whose input mutations are ``copy_`` calls into placeholders; ``dce`` afterwards.
    Ensures: what the caller sees is unchanged; readers of the new value read ``arg``, after the write. Where that
    is unsafe the copy stays, and the reason is logged at debug level.
    """
    copies = gm.graph.find_nodes(op="call_function", target=aten.copy_.default)
    if not copies:
        return gm
    uses = _Uses.of(gm.graph)
    for copy in copies:
        reason = _reinplace_one(gm.graph, copy, uses)
        if reason is not None:
            log.debug("reinplace: %s stays a copy: %s", copy.name, reason)
    return gm


def _reinplace_one(graph: Graph, copy: Node, uses: _Uses) -> str | None:
    """Rewrite one ``copy_``; returns why not, or None when done."""
    target, new = copy.args[:2]
    if target.op != "placeholder" or not isinstance(new, Node):
        return "its destination is not an input of the graph"
    if new.target not in _PARTIAL_WRITES:
        return f"its source is {new.target}, which does not write a part of its first argument"
    before, after = tensor_meta(target), tensor_meta(new)
    if before is None or after is None or before.dtype != after.dtype or not same_sizes(before.shape, after.shape):
        return "the sizes or dtypes of source and destination differ"
    if copy.users:
        return "its result is used"
    reason = _hazard(copy, target, new, uses)
    if reason is None:
        chain = _chain(new, target)
        reason = chain if isinstance(chain, str) else _foreign_reads(chain, target, uses)
    if reason is not None:
        return reason
    with graph.inserting_before(new):
        _write(graph, new, target, uses)
    graph.erase_node(copy)
    new.replace_all_uses_with(target)
    graph.erase_node(new)
    return None


def _hazard(copy: Node, target: Node, new: Node, uses: _Uses) -> str | None:
    """Why the old value of ``target`` must outlive ``new``, or why ``new`` must be a tensor of its own."""
    for writer in uses.writers.get(target, ()):
        if writer is not copy:
            return f"{writer.name} mutates {target.name} too"
    if uses.writers.get(new):
        return f"{uses.writers[new][0].name} mutates the new value"
    for reader, item in uses.readers.get(target, ()):
        if reader.op == "output":
            if item is not target:
                return f"{item.name}, a view of the old value, is returned"
        elif reader is not copy and uses.position[reader] > uses.position[new]:
            return f"{reader.name} reads the old value, through {item.name}, after the write"
    for reader, item in uses.readers.get(new, ()):
        if reader.op == "output":
            return f"{item.name}, which shares the new value's storage, is returned"
    return None


def _chain(new: Node, place: Node) -> list[Node] | str:
    """The partial writes that lead from the old value in ``place`` to ``new``, last first; or why there is none.

    The first argument of the earliest is ``place`` itself or an equal view of it.
    """
    writes = [new]
    current = new
    while not _is_place(current.args[0], place):
        current = current.args[0]
        if not isinstance(current, Node) or current.target not in _PARTIAL_WRITES:
            return f"{new.name} is not a partial write of {place.name}"
        if len(current.users) > 1:
            return f"{current.name}, an intermediate value, has other readers"
        writes.append(current)
    return writes


def _is_place(node: Any, place: Node) -> bool:
    """Whether ``node`` is ``place`` or the same view of the same tensor."""
    if node is place:
        return True
    if not isinstance(node, Node) or node.op != "call_function" or node.target is not place.target:
        return False
    source, expected = viewed_arg(node), viewed_arg(place)
    if source is None or expected is None or not _is_place(source, expected):
        return False
    names = [parameter.name for parameter in schema_of(node).arguments][1:]
    return all(argument(node, name) == argument(place, name) for name in names)


def _foreign_reads(chain: list[Node], target: Node, uses: _Uses) -> str | None:
    """Why an index or a source of the writes may change under them: it is a view of what they write."""
    for write in chain:
        if reads_first_again(write):
            return f"{write.name} reads what it writes into as an index or a source, too"
        for item in write.all_input_nodes:
            if item is not write.args[0] and uses.roots[item] is target:
                return f"{write.name} reads {item.name}, a view of {target.name}, while writing it"
    return None


def _write(graph: Graph, new: Node, place: Node, uses: _Uses) -> None:
    """Emit nodes that leave in ``place`` what ``new`` computes from it."""
    if not _is_place(new.args[0], place):
        _write(graph, new.args[0], place, uses)
    if new.target in _IN_PLACE:
        node = graph.call_function(_IN_PLACE[new.target], (place, *new.args[1:]), dict(new.kwargs))
        node.meta = {**new.meta, "val": place.meta["val"]}
        return
    view_op, names = _THROUGH_VIEW[new.target]
    part = graph.call_function(view_op, (place, *(argument(new, name) for name in names)))
    part.meta = {**new.meta, "val": _view_value(part)}
    source = argument(new, "src")
    if _is_inner_write(source, part, uses):
        _write(graph, source, part, uses)
        return
    node = graph.call_function(aten.copy_.default, (part, source))
    node.meta = {**new.meta, "val": part.meta["val"]}


def _is_inner_write(source: Any, place: Node, uses: _Uses) -> bool:
    """Whether the source of a write to a view is itself a partial write of that view, read by nothing else."""
    if not isinstance(source, Node) or source.target not in _PARTIAL_WRITES or len(source.users) > 1:
        return False
    chain = _chain(source, place)
    if isinstance(chain, str) or not same_sizes(source.meta["val"].shape, place.meta["val"].shape):
        return False
    return _foreign_reads(chain, uses.roots[chain[-1].args[0]], uses) is None


def _view_value(view: Node) -> torch.Tensor:
    """The fake value of a new view node, from its operands' fake values."""
    args = torch.fx.map_arg(view.args, lambda node: node.meta["val"])
    with torch.no_grad():
        return view.target(*args)
