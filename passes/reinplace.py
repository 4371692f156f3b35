"""Writing a mutated input in place instead of copying it.

AOTAutograd turns ``cache.view(-1, 128)[rows] = x`` into an ``index_put`` of a copy of the whole cache, the inverse of
the view, and a trailing ``copy_`` back into it: two full copies for some written rows.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from rooffuse.passes.graph import (
    argument,
    aten,
    reads_first_again,
    same_sizes,
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
    aten.diagonal_scatter.default: (aten.diagonal.default, ("offset", "dim1", "dim2")),
}
_PARTIAL_WRITES = frozenset({*_IN_PLACE, *_THROUGH_VIEW})

#: Calls that view something, each what the one before does, and their fake values.
Views = tuple[tuple[Node, Any], ...]


class _Refused(Exception):
    """A copy stays; the message says why."""


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


@dataclass(frozen=True)
class _Way:
    """Views and partial writes that lead from ``base`` to ``steps[-1]``, each of the one before. ``places`` are the
    fake values that they have where the writes go to ``base`` itself, and ``inner`` the way to what is written into a
    view of ``base`` for the writes whose source is such a view, written in part."""

    base: Node
    steps: tuple[Node, ...]
    places: tuple[Any, ...]
    inner: dict[Node, _Way] = field(default_factory=dict)

    @property
    def writes(self) -> list[Node]:
        """The partial writes, first to last, without those inside of others' sources."""
        return [s for s in self.steps if s.target in _PARTIAL_WRITES]

    def all_ways(self) -> Iterator[_Way]:
        """This and those inside of it."""
        yield self
        for way in self.inner.values():
            yield from way.all_ways()

    def all_steps(self) -> Iterator[Node]:
        """Every step, those of the inner ways, too."""
        for way in self.all_ways():
            yield from way.steps


def reinplace(gm: GraphModule) -> GraphModule:
    """Turn ``copy_(arg, index_copy(arg, …))`` and its like into a write to ``arg``, or to a view of it, in place.

    Requires: a functional graph whose input mutations are ``copy_`` calls into placeholders; ``dce`` afterwards.
    Ensures: what the caller sees is unchanged; readers of the new value read ``arg``, after the write. Where that
    is unsafe the copy stays, and the reason is logged at debug level.
    """
    copies = gm.graph.find_nodes(op="call_function", target=aten.copy_.default)
    if not copies:
        return gm
    uses = _Uses.of(gm.graph)
    for copy in copies:
        try:
            _write_in_place(gm.graph, copy, copy.args[1], uses)  # type: ignore[arg-type]
        except _Refused as reason:
            log.debug("reinplace: %s stays a copy: %s", copy.name, reason)
            _write_before(gm.graph, copy, uses)
    return gm


def _write_before(graph: Graph, copy: Node, uses: _Uses) -> None:
    """Write into an input, which ``copy`` overwrites in the end, what was written in part on the way there: its memory
    is free until then."""
    for written in reversed([n for n in graph.nodes if n.target in _IN_PLACE]):
        try:
            return _write_in_place(graph, copy, written, uses)
        except _Refused as reason:
            log.debug("reinplace: %s stays apart from %s: %s", written.name, copy.args[0], reason)


def _write_in_place(graph: Graph, copy: Node, written: Node, uses: _Uses) -> None:
    """Compute ``written``, what ``copy`` copies or what is overwritten by that, in the memory that it is copied to.
    Raises _Refused."""
    target, new = copy.args[:2]
    if not isinstance(target, Node) or not isinstance(written, Node) or not (
            target.op == "placeholder" or target.target is aten.clone.default):
        raise _Refused("its destination is not an input of the graph, nor a copy made for it")
    before, after = tensor_meta(target), tensor_meta(written)
    if before is None or after is None or before.dtype != after.dtype or (
            written is new and not same_sizes(before.shape, after.shape)):
        raise _Refused("the sizes or dtypes of source and destination differ")
    way = _way(written, target, before)
    if not way.writes:
        raise _Refused(f"{written.name} is not a partial write of {target.name}")
    if written is new and not _same_place(way.places[-1], before):
        raise _Refused(f"{new.name} has the elements of {target.name} at other places")
    _check_hazards(copy, way, uses)
    _check_sources(way, uses)
    inside = frozenset(way.all_steps())
    for step, place in _emit(graph, way, target, uses).items():
        for user in [u for u in step.users if u not in inside and u is not copy]:
            user.replace_input_with(step, target if step is new else place)
    if written is new:
        copy.replace_all_uses_with(target)
        graph.erase_node(copy)
    for step in sorted(inside, key=uses.position.__getitem__, reverse=True):
        if not step.users:
            graph.erase_node(step)


def _way(node: Node, base: Node, place: torch.Tensor) -> _Way:
    """The way from ``base``, whose memory is as that of ``place``, to ``node``. Raises _Refused."""
    steps: list[Node] = []
    current: Any = node
    while current is not base:
        steps.append(current)
        current = _before(current)
        if not isinstance(current, Node):
            raise _Refused(f"{node.name} is not a partial write of {base.name}")
    steps.reverse()
    places: list[Any] = [place]
    inner: dict[Node, _Way] = {}
    for step in steps:
        if step.target is aten.copy.default:
            places.append(places[-1])
            continue
        if step.target not in _PARTIAL_WRITES:
            places.append(_view_of(step, places[-1]))
            continue
        if not _is_injective(places[-1]) or not same_sizes(places[-1].shape, step.meta["val"].shape):
            raise _Refused(f"{step.name} writes an element at several places")
        if step.target in _THROUGH_VIEW:
            found = _inner_way(step, places[-1])
            if found is not None:
                inner[step] = found
        places.append(places[-1])
    return _Way(base, tuple(steps), tuple(places[1:]), inner)


def _before(step: Node) -> Node | None:
    """What a partial write, a view, or a copy of as many elements of the same type has its elements from."""
    if step.target in _PARTIAL_WRITES:
        return step.args[0]  # type: ignore[return-value]
    if step.target is aten.copy.default:
        source, value = tensor_meta(step.args[1]), tensor_meta(step)
        alike = source is not None and value is not None and source.dtype == value.dtype
        same = alike and same_sizes(source.shape, value.shape)  # type: ignore[union-attr]
        return step.args[1] if same else None  # type: ignore[return-value]
    return viewed_arg(step)


def _inner_way(write: Node, place: torch.Tensor) -> _Way | None:
    """The way from what ``write`` writes a view of to what it writes there, if that is such a view, written in part or
    as it was: ``x[1:] -= 1`` puts what it has written where it has written it."""
    source, base = argument(write, "src"), write.args[0]
    if not isinstance(source, Node):
        return None
    try:
        way = _way(source, base, place)
        part = _written_part(write, place)
    except _Refused:
        return None
    return way if _same_place(way.places[-1], part) else None


def _written_part(write: Node, place: torch.Tensor) -> torch.Tensor:
    """The view of ``place`` that ``write`` fills."""
    view, names = _THROUGH_VIEW[write.target]
    with torch.no_grad():
        return view(place, *(argument(write, name) for name in names))


def _view_of(step: Node, place: Any) -> Any:
    """The value of a view where what it views is ``place``. Raises _Refused where it isn't one."""
    source = viewed_arg(step)
    args, kwargs = torch.fx.map_arg((step.args, step.kwargs), lambda n: place if n is source else n.meta["val"])
    try:
        with torch.no_grad():
            value = step.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, ValueError, TypeError) as error:
        raise _Refused(f"{step.name} can't be a view: {error}") from error
    tensors = [t for t in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(t, torch.Tensor)]
    first = place[0] if isinstance(place, (list, tuple)) else place
    if not all(torch._C._is_alias_of(t, first) for t in tensors):
        raise _Refused(f"{step.name} is a copy")
    return value


def _same_place(a: Any, b: torch.Tensor) -> bool:
    """Whether two views of the same memory have each element at the same address."""
    return (isinstance(a, torch.Tensor) and a.dtype == b.dtype and same_sizes(a.shape, b.shape)
            and a.storage_offset() == b.storage_offset()
            and all(s == t for n, s, t in zip(a.shape, a.stride(), b.stride()) if n != 1))


def _is_injective(value: Any) -> bool:
    """Whether no two elements of a strided value are known to share an address."""
    if not isinstance(value, torch.Tensor):
        return False
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(value.stride(), value.shape) if n != 1):
        if stride <= reach:
            return False
        reach += (size - 1) * stride
    return True


def _check_hazards(copy: Node, way: _Way, uses: _Uses) -> None:
    """Raises _Refused where the old value must outlive the first write, what one has written the next one or ``copy``,
    or where a written value must be a tensor of its own."""
    target, inside = way.base, frozenset(way.all_steps())
    written = _values(way)
    before = way.steps[-1] is not copy.args[1]  # than what is copied
    times = sorted(uses.position[n] for one in way.all_ways() for n in one.writes if n not in one.inner)
    for writer in uses.writers.get(target, ()):
        if writer is not copy:
            raise _Refused(f"{writer.name} mutates {target.name} too")
    for value in (target, *written):
        end = uses.position[copy] if before else len(uses.position)
        until = next((t for t in times if value is target or t > uses.position[value]), end)
        for reader, item in uses.readers.get(value, ()):
            if value is not target and reader in uses.writers.get(value, ()):
                raise _Refused(f"{reader.name} mutates {item.name}")
            if reader is copy and before and value is not target:
                raise _Refused(f"{copy.name} has the elements of {item.name} at other places")
            if reader.op == "output":
                if item not in (target, copy):
                    raise _Refused(f"{item.name}, which shares the storage of {value.name}, is returned")
            elif reader is not copy and reader not in inside and uses.position[reader] > until:
                raise _Refused(f"{reader.name} reads the old value, through {item.name}, after the write")


def _values(way: _Way) -> list[Node]:
    """Steps whose results are tensors of their own in the graph as it came in."""
    return [n for n in way.all_steps() if n.target in _PARTIAL_WRITES or n.target is aten.copy.default]


def _check_sources(way: _Way, uses: _Uses) -> None:
    """Raises _Refused where an index or a source of the writes may change under them: a view of what they write."""
    memory = {way.base, *_values(way)}
    for one in way.all_ways():
        for write in one.writes:
            if reads_first_again(write):
                raise _Refused(f"{write.name} reads what it writes into as an index or a source, too")
            expected = {write.args[0], argument(write, "src") if write in one.inner else None}
            for item in write.all_input_nodes:
                if item not in expected and uses.roots[item] in memory:
                    raise _Refused(f"{write.name} reads {item.name}, a view of {way.base.name}, while writing it")


def _emit(graph: Graph, way: _Way, base: Node, uses: _Uses, views: Views = (), written: bool = False
          ) -> dict[Node, Node]:
    """Emit nodes that leave in ``base``, or in ``views`` of it, what the last of ``way`` computes from it, each before
    the one that it stands for. Returns what stands for the steps from the first write on: views that are taken after
    it; ``written`` says that there was one before."""
    stands: dict[Node, Node] = {}
    for step, value in zip(way.steps, way.places):
        with graph.inserting_before(step):
            if step in way.inner:
                stands |= _emit(graph, way.inner[step], base, uses, views, written)
            elif step.target in _PARTIAL_WRITES:
                _emit_write(graph, step, _viewed(graph, base, views, uses), uses)
            elif step.target is not aten.copy.default:
                views = (*views, (step, value))
            written = written or step.target in _PARTIAL_WRITES
            if written:
                stands[step] = _viewed(graph, base, views, uses)
    return stands


def _emit_write(graph: Graph, write: Node, place: Node, uses: _Uses) -> None:
    if write.target in _IN_PLACE:
        node = graph.call_function(_IN_PLACE[write.target], (place, *write.args[1:]), dict(write.kwargs))
    else:
        view, names = _THROUGH_VIEW[write.target]
        part = graph.call_function(view, (place, *(argument(write, name) for name in names)))
        part.meta = {**write.meta, "val": _written_part(write, place.meta["val"])}
        uses.roots[part] = uses.roots[place]
        node = graph.call_function(aten.copy_.default, (part, argument(write, "src")))
        place = part
    node.meta = {**write.meta, "val": place.meta["val"]}


def _viewed(graph: Graph, base: Node, views: Views, uses: _Uses) -> Node:
    """New nodes that take ``views`` of ``base``, one of the other; the last one, or ``base``."""
    node = base
    for step, value in views:
        stands = {viewed_arg(step): node}
        args, kwargs = torch.fx.map_arg((step.args, step.kwargs), functools.partial(_in_place_of, stands))
        node = graph.call_function(step.target, args, kwargs)  # type: ignore[arg-type]
        node.meta = {**step.meta, "val": value}
        uses.roots[node] = uses.roots[base]
    return node


def _in_place_of(stands: dict[Node | None, Node], node: Node) -> Node:
    return stands.get(node, node)
