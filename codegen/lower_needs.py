"""Which rows the nodes of a group need to be reduced or scanned, and what that says of the space of a nest for them."""
from __future__ import annotations

from collections.abc import Container, Iterable
from functools import cache
from math import prod

from torch.fx import Graph, Node

from .fxinfo import numel_of, op_name
from .lower_pointwise import RULES
from .lower_reductions import Reduction
from .lower_scans import rows_of, scan_prefix
from .lower_segments import SEGMENTED_ROW
from .lower_slices import MOST_SLICES
from .lower_strips import along_rows


def width(reduction: Reduction) -> tuple[bool, int]:
    """How much a reduction speaks for its space: short ones can be written out in any other."""
    return reduction.count > MOST_SLICES, prod(reduction.shape)


def row_length(reduction: Reduction) -> int:
    """How long the rows are that a nest would have from a reduction; 0 where they are too long to reduce segments of
    them beside."""
    return reduction.count if reduction.count <= SEGMENTED_ROW else 0


class RowNeeds:
    """Of one graph, whose nodes in ``buffers`` are in memory. A group is lowered again and again while it grows, and
    each of its targets asks for the same rows: they are found once. ``strips`` says whether these may be cut into
    strips."""

    def __init__(self, graph: Graph, buffers: Container[Node], strips: bool = True) -> None:
        self._buffers, self.strips = buffers, strips
        self._rows = {n: rows for n in graph.nodes if n.op == "call_function" and n not in buffers
                      and (rows := rows_of(n)) is not None}
        self._prefixes = {n for n in self._rows if scan_prefix(n) is not None}
        self.rows = cache(self._find)

    def _find(self, node: Node) -> tuple[Reduction, ...]:
        """Rows of the reductions and scans that ``node`` needs, of scans no more than is needed, nearest first."""
        if not self._rows:
            return ()
        needed = self._ancestors(node)
        found = [n for n in needed if n in self._rows]
        cut = {n.args[0] for n in found if n in self._prefixes}
        whole = {s for n in needed if n not in self._prefixes for s in n.all_input_nodes} | {node} if cut else set()
        return tuple(self._rows[n] for n in found if n not in cut or n in whole)

    def rows_beside(self, node: Node, others: Iterable[Node]) -> tuple[Reduction, ...]:
        """Rows that ``others`` reduce of the whole of what ``node`` is computed from, fewer elements, without reducing
        more than a few."""
        if any(r.count > MOST_SLICES for r in self.rows(node)):
            return ()
        rows = (r for other in others for r in self.rows(other))
        found = dict.fromkeys(r for r in rows if r.source is not None and r.count > MOST_SLICES)
        read = {s for n in self._ancestors(node) for s in n.all_input_nodes} if found else set()
        return tuple(r for r in found if numel_of(node) < prod(r.shape) and self._origin(r.source) in read)

    def _origin(self, node: Node) -> Node:
        """What ``node`` is a function of, element by element."""
        while node not in self._buffers and op_name(node) in RULES and len(node.all_input_nodes) == 1 and numel_of(
                node) == numel_of(node.all_input_nodes[0]):
            node = node.all_input_nodes[0]
        return node

    def _ancestors(self, node: Node) -> list[Node]:
        """Nodes that ``node`` needs, itself first, buffers left out, nearest first."""
        found, seen = [node], {node}
        for needed in found:
            for source in needed.all_input_nodes:
                if source not in seen and source not in self._buffers:
                    seen.add(source)
                    found.append(source)
        return found

    def elements(self, node: Node) -> int:
        """Elements that go into the widest reduction or scan that ``node`` needs; 0 if it needs none."""
        return max(map(width, self.rows(node)), default=(False, 0))[1]

    def _widest(self, node: Node) -> list[Reduction]:
        most = max(map(width, self.rows(node)), default=None)
        return [r for r in self.rows(node) if width(r) == most]

    def longest(self, node: Node) -> int:
        """`row_length` of the widest reductions that ``node`` needs."""
        return max(map(row_length, self._widest(node)), default=0)

    def across(self, node: Node) -> bool:
        """Whether the widest reductions that ``node`` needs all go down columns."""
        return not any(map(along_rows, self._widest(node)))
