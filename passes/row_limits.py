"""When rows that are needed twice are better gone through whole than in parts.

A reduction of few rows is cut into parts so that enough programs run. That costs a second stage, and where what was
reduced is needed again afterwards, as a softmax's exponents are, each part is read from memory once more: a program
that has a whole row finds it on chip.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from math import prod

import torch
from rooffuse.passes.graph import is_concrete, packet_name, tensor_meta
from rooffuse.passes.op_sets import GATHERS, VIEWS
from torch.fx import GraphModule, Node

#: Shortest rows whose reduction is cut into parts: a shorter one takes less time than a second launch.
LONG_ROW = 32768
#: Shortest reductions down columns that are split: one program has a strip of columns and so more bytes for each
#: reduced element than along rows.
LONG_COLUMN = 2048
#: Reductions that are cut into parts, and those of them that are sums.
REDUCED = frozenset({"aten.sum", "aten.mean", "aten.amax", "aten.amin"})
SUMS = frozenset({"aten.sum", "aten.mean"})
#: How many times fewer elements a value has than the reduced one for it to count as a part of that.
SMALLER = 16
#: Operators between what lies in memory and what is reduced, at most.
MOST_STEPS = 4
#: Numbers of rows and how many elements each has.
Rows = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class RowLimits:
    """What keeps a device busy, and what it keeps on chip.

    ``programs`` keep a device busy, of which ``at_once`` run side by side and others wait for their turn (0: all run);
    ``saturating`` ones, each on a processor of its own, already stream as fast as memory goes. Of a row that is reduced
    twice, ``elements`` of float32 stay on chip for any program, 0 where one sweep is enough however long the row is,
    and in a cache of ``cache`` bytes one row for each of ``processors``. Memory moves ``launch_bytes`` in the time of a
    launch. ``strip_elements`` are those of a row, of what is computed of it and of its columns' results that stay on
    chip; 0 sets no limit.
    """

    programs: int
    elements: int = 0
    cache: int = 0
    processors: int = 1
    saturating: int = 0
    launch_bytes: int = 0
    strip_elements: int = 0
    at_once: int = 0

    def keeps_strips(self, columns: int, sums: bool) -> bool:
        """Whether columns are reduced on the way along rows: beside their results, a row and, where these are sums as
        in a norm's gradient, what it is multiplied by."""
        return not self.strip_elements or padded(columns) * (4 if sums else 2) <= self.strip_elements

    def held(self, rows: int) -> int:
        """Bytes of a row that stay in the cache where there are so many rows."""
        return self.cache // min(rows, self.processors)

    def whole(self, rows: int, row_bytes: int, sweeps: int = 2) -> bool:
        """Whether rows of ``row_bytes`` are gone through by one program each, where they are read in so many sweeps and
        written in equal size.

        Whole, a row moves ``m = 2 row_bytes``, or more if it isn't held from one sweep to the next, and a program moves
        its share of ``1 / saturating`` of the bandwidth, one program after another in as many ``turns`` as it takes;
        in parts ``rows · 3 row_bytes`` move at full bandwidth, in two launches more. The first is the shorter time from

            rows ≥ turns · saturating · m / (3 row_bytes) − 2 launch_bytes / (3 row_bytes)

        on.
        """
        if not self.saturating:
            return rows >= self.programs
        moved = 2 if row_bytes <= self.held(rows) else 1 + sweeps
        turns = -(-rows // self.at_once) if self.at_once else 1
        return 3 * rows * row_bytes >= turns * self.saturating * moved * row_bytes - 2 * self.launch_bytes


def padded(size: int) -> int:
    """The power of two that a program's tile has for ``size`` elements."""
    return 1 << max(size - 1, 0).bit_length()


def whole_rows(gm: GraphModule, limits: RowLimits) -> Rows:
    """The long rows of which a reduction is needed again with all of them, and that are enough for a program each: what
    else is reduced of such rows is had on the way."""
    found = set()
    for node in gm.graph.nodes:
        source = tensor_meta(node.args[0]) if packet_name(node.target) in REDUCED else None
        if source is None or not is_concrete((*source.shape, *source.stride())) or source.is_complex():
            continue
        dims = reduced_dims(node, source.dim())
        row = prod(source.shape[d] for d in dims)
        if row < LONG_ROW or not source.numel() or innermost(source) not in dims:
            continue
        count = source.numel() // row
        fit = count < limits.programs and limits.whole(count, row * width_in_memory(node.args[0]))
        if fit and _needed_again(node, _had_with(node)):
            found.add((count, row))
    return frozenset(found)


def _had_with(first: Node) -> frozenset[Node]:
    """Sums of exponentials of distances from a maximum, and of squares of those from a mean: where rows are cut into
    parts, each part has both."""
    steps: list[Node] = [first]
    for names in (("aten.sub",), ("aten.exp", "aten.mul", "aten.pow"), ("aten.sum", "aten.mean")):
        steps = [u for n in steps for u in n.users if packet_name(u.target) in names]
    return frozenset(steps)


def _needed_again(total: Node, known: Set[Node]) -> bool:
    """Whether something of about the size of what ``total`` reduces is computed from ``total`` and needed whole: by the
    caller, or by a reduction that isn't ``known``."""
    least = total.args[0].meta["val"].numel() // SMALLER  # type: ignore[union-attr]
    work, seen = [total, *known], {total, *known}
    while work:
        node = work.pop()
        large = node not in known and node is not total and _elements(node) > least
        for user in node.users:
            if large and user not in known and (
                    user.op == "output" or (_elements(user) <= least and not _looks_up(user))):
                return True
            if user not in seen:
                seen.add(user)
                work.append(user)
    return False


def reduced_dims(node: Node, rank: int) -> tuple[int, ...]:
    """The dimensions that a reduction of a tensor of ``rank`` goes along, in order."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if dims is None or dims == []:
        return tuple(range(rank))
    return tuple(sorted({d % rank for d in ([dims] if isinstance(dims, int) else dims)})) if rank else ()


def innermost(value: torch.Tensor) -> int:
    """The dimension along which neighbours lie next to each other in memory."""
    return min((d for d in range(value.dim()) if value.shape[d] > 1), key=value.stride, default=value.dim() - 1)


def width_in_memory(x: Node) -> int:
    """Bytes of an element as it lies in memory: of the narrowest value of as many elements from which ``x`` is computed
    in a few steps."""
    narrowest = x
    for _ in range(MOST_STEPS):
        before = [n for n in narrowest.all_input_nodes if _elements(n) == _elements(x)]
        if not before:
            break
        narrowest = min(before, key=lambda n: n.meta["val"].dtype.itemsize)
    return min(x.meta["val"].dtype.itemsize, narrowest.meta["val"].dtype.itemsize)


def _elements(node: Node) -> int:
    value = tensor_meta(node)
    return value.numel() if value is not None else 0


def _looks_up(node: Node) -> bool:
    """Whether a node takes a few elements of another as they are."""
    return packet_name(node.target) in VIEWS | GATHERS
