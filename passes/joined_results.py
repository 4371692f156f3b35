"""Parts of a concatenation that a library makes, written where the concatenation has them.

A library call gives its result memory of its own, from which it is copied to where the concatenation has it. Told
where to write, the call writes there; and what a library call is going to read is stored there, and read from there.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from rooffuse.passes.dce import dce
from rooffuse.passes.graph import (
    aten,
    call_like,
    is_concrete,
    mutated_roots,
    permutation,
    returned_nodes,
    storage_roots,
    tensor_meta,
    viewed_arg,
)
from rooffuse.passes.pipeline import Pass
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

#: Library calls that can be told where to write, and their form that is.
_TOLD = {aten.mm.default: aten.mm.out, aten.addmm.default: aten.addmm.out,
         aten.bmm.default: aten.bmm.out, aten.baddbmm.default: aten.baddbmm.out}
_JOINS = (aten.cat.default, aten.stack.default)
_RESHAPES = frozenset({aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default,
                       aten.squeeze.dim, aten.squeeze.dims})
_TURNS = frozenset({aten.permute.default, aten.transpose.int, aten.t.default})
#: Bytes of the widest access: a library writes rows that begin elsewhere more slowly.
_ALIGNMENT = 16

#: A view's operator and its arguments but the first.
_View = tuple[Any, tuple[Any, ...]]


def joined_results_pass(kernels: Mapping[str, int], stored: Collection[str]) -> Pass:
    """The pass for a graph of which calls are in the kernels ``kernels``, by name, and all others are library calls; of
    what is in kernels only what is called ``stored`` is stored."""
    return Pass("joined_results", functools.partial(joined_results, kernels=kernels, stored=stored),
                joined_results.__doc__ or "")


def joined_results(gm: GraphModule, kernels: Mapping[str, int], stored: Collection[str]) -> GraphModule:
    """Let what is stored before a concatenation of it is stored, too, be written where that has it.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone); comes after every pass that
    needs a functional graph. Ensures: equal sizes, dtype and strides of every value that is left; the order of reads
    and writes of a storage is that of the nodes.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    joins = [n for n in gm.graph.nodes if n.target in _JOINS and n.name in stored] if mode is not None else []
    if joins:
        roots = storage_roots(gm.graph)
        shared = {roots[n] for n in returned_nodes(gm.graph)} | set(mutated_roots(gm.graph))
        for node in joins:
            _Join(node, mode, kernels, stored, shared).run()
    return dce(gm)


@dataclass(frozen=True)
class _Part:
    """A part of a concatenation: the argument ``node``, and the view of the result that is its place. Where ``maker``,
    whose value ``node`` is, can write there itself, ``views`` are of that place in the shape of its result."""

    node: Node
    start: int
    end: int
    maker: Node | None = None
    views: tuple[_View, ...] = ()


class _Join:
    """Replaces one concatenation by memory that its parts are written into, where that moves fewer bytes."""

    def __init__(self, node: Node, mode: Any, kernels: Mapping[str, int], stored: Collection[str],
                 shared: Collection[Node]) -> None:
        """``shared`` are owners of storage that the caller gets or that is written."""
        self.node, self.mode, self.kernels, self.stored, self.shared = node, mode, kernels, stored, shared
        self.call = functools.partial(call_like, node, mode)

    def run(self) -> None:
        parts = self._parts()
        makers = [p.maker for p in parts if p.maker is not None]
        if not makers or not self._pays(parts):
            return
        graph, value = self.node.graph, self.node.meta["val"]
        order = {node: k for k, node in enumerate(graph.nodes)}
        with graph.inserting_before(min(makers, key=order.__getitem__)):
            memory = self.call(aten.empty_strided.default, list(value.shape), list(value.stride()),
                               dtype=value.dtype, device=value.device)
        for part in parts:
            if part.maker is not None:
                self._write(part, part.maker, memory)
        with graph.inserting_before(self.node):
            for run in _left(parts):
                joined = run[0].node if len(run) == 1 and self.node.target is aten.cat.default else self.call(
                    self.node.target, [p.node for p in run], *self.node.args[1:], **self.node.kwargs)
                place = self._view(memory, (aten.slice.Tensor, (self._dim(), run[0].start, run[-1].end)))
                self.call(aten.copy_.default, place, joined)
        self.node.replace_all_uses_with(memory)
        graph.erase_node(self.node)
        log.debug("%d of %d parts of %s are written where it has them", len(makers), len(parts), self.node.name)

    def _dim(self) -> int:
        dim = self.node.args[1] if len(self.node.args) > 1 else self.node.kwargs.get("dim", 0)
        return dim % self.node.meta["val"].dim()

    def _pays(self, parts: Sequence[_Part]) -> bool:
        """Whether what isn't copied any more is no less than what kernels read instead that might have made the result
        for themselves. One kernel copies the parts that are left, as it did all of them."""
        spared = 2 * sum(_nbytes(p.node) for p in parts if p.maker is not None)
        read = any(u.name in self.kernels for u in _readers(self.node))
        return len(_left(parts)) < 2 and (not read or spared >= _nbytes(self.node))

    # -- parts ----------------------------------------------------------------------------------------------------

    def _parts(self) -> list[_Part]:
        """The parts in order; none where the result isn't a dense tensor of its parts' type."""
        value = tensor_meta(self.node)
        values = [tensor_meta(n) for n in self.node.args[0]]
        if value is None or not is_concrete((*value.shape, *value.stride())) or not value.numel() or any(
                v is None or not is_concrete((*v.shape, *v.stride())) or v.dtype != value.dtype or v.dim() == 0
                or not v.numel() for v in values):
            return []
        stacks = self.node.target is aten.stack.default
        sizes = [1 if stacks else n.meta["val"].shape[self._dim()] for n in self.node.args[0]]
        return [self._part(n, end - size, end) for n, size, end in zip(self.node.args[0], sizes, accumulate(sizes))]

    def _part(self, node: Node, start: int, end: int) -> _Part:
        """The part with its maker if that can write where the concatenation has it."""
        maker, seen = node, []
        if self.node.args[0].count(node) > 1:
            return _Part(node, start, end)
        while (source := viewed_arg(maker)) is not None and len(maker.users) == 1:
            seen.append(maker)
            maker = source
        if maker in self.shared or viewed_arg(maker) is not None or not (self._told(maker) or self._read(maker)):
            return _Part(node, start, end)
        views: list[_View] = [(aten.slice.Tensor, (self._dim(), start, end))]
        if self.node.target is aten.stack.default:
            views = [(aten.select.int, (self._dim(), start))]
        for view in seen:
            back = _inverse(view)
            if back is None:
                return _Part(node, start, end)
            views.append(back)
        place = _seen(self.node.meta["val"], views)
        return _Part(node, start, end, *((maker, tuple(views)) if _takes_rows(place) else ()))

    def _told(self, maker: Node) -> bool:
        """Whether it is a library call that can be told where to write, and whose result is for this alone."""
        return (maker.target in _TOLD and maker.name not in self.kernels and len(maker.users) == 1
                and maker.meta["val"].is_contiguous())

    def _read(self, maker: Node) -> bool:
        """Whether a kernel stores it for matrix products of the library, which read rows that lie apart as well."""
        number = self.kernels.get(maker.name)
        elsewhere = self._elsewhere(maker)
        return bool(elsewhere) and maker.name in self.stored and number != self.kernels.get(self.node.name) and sum(
            viewed_arg(u) is maker or u is self.node for u in maker.users) == 1 and all(
            u.name not in self.kernels and u.target in _TOLD for u in elsewhere)

    def _elsewhere(self, maker: Node) -> list[Node]:
        """Those that read what the kernel of ``maker`` stores, without those that a view of it leads to."""
        number = self.kernels.get(maker.name)
        return [u for u in maker.users if u is not self.node and viewed_arg(u) is not maker
                and self.kernels.get(u.name) != number]

    # -- writes ---------------------------------------------------------------------------------------------------

    def _view(self, memory: Node, *views: _View) -> Node:
        for target, args in views:
            memory = self.call(target, memory, *args)
        return memory

    def _write(self, part: _Part, maker: Node, memory: Node) -> None:
        """Make ``maker`` write where the concatenation has it."""
        if maker.name not in self.kernels:
            with maker.graph.inserting_before(maker):
                place = self._view(memory, *part.views)
                call_like(maker, self.mode, _TOLD[maker.target], *maker.args, **maker.kwargs, out=place)
            return
        elsewhere = self._elsewhere(maker)
        with maker.graph.inserting_before(maker.next):
            place = self._view(memory, *part.views)
            call_like(maker, self.mode, aten.copy_.default, place, maker)
        for user in elsewhere:
            with user.graph.inserting_before(user):
                user.replace_input_with(maker, self._view(memory, *part.views))


def _readers(node: Node) -> Iterator[Node]:
    """Those that read ``node``, through views too."""
    for user in node.users:
        if viewed_arg(user) is node:
            yield from _readers(user)
        else:
            yield user


def _left(parts: Sequence[_Part]) -> list[list[_Part]]:
    """The parts that still are copied, as runs of neighbours."""
    return [list(run) for copied, run in groupby(parts, lambda p: p.maker is None) if copied]


def _inverse(view: Node) -> _View | None:
    """The view that makes of what ``view`` gives what it was given; None if there is none."""
    if view.target in _RESHAPES:
        return aten.view.default, (list(view.args[0].meta["val"].shape),)
    if view.target in _TURNS:
        order = permutation(view)
        return aten.permute.default, (sorted(range(len(order)), key=order.__getitem__),)
    return None


def _seen(value: torch.Tensor, views: Sequence[_View]) -> torch.Tensor | None:
    """Views of a tensor of the layout of ``value``, each of the one before; None where one can't be without a copy."""
    found = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    try:
        for target, args in views:
            found = target(found, *args)
    except (RuntimeError, ValueError):
        return None
    return found


def _takes_rows(place: torch.Tensor | None) -> bool:
    """Whether a matrix product can write rows there, and as wide accesses as to memory of its own."""
    if place is None or place.dim() < 2 or place.stride(-1) != 1 or place.stride(-2) < place.shape[-1]:
        return False
    size = place.dtype.itemsize
    begins = [place.storage_offset(), *place.stride()[:-1]]
    return place.shape[-1] * size % _ALIGNMENT != 0 or all(b * size % _ALIGNMENT == 0 for b in begins)


def _nbytes(node: Node) -> int:
    value = node.meta["val"]
    return value.numel() * value.dtype.itemsize
