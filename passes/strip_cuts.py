"""Reductions cut so that programs that go through strips of rows have them on the way.

A program that goes through a strip and keeps what its columns have come to reads its input once for what is reduced
along each row and down the columns. Down the columns of all rows, that takes as many strips as programs run at once,
and a second stage over what they have found.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from math import prod

from rooffuse.passes.graph import is_concrete, packet_name, tensor_meta
from rooffuse.passes.row_limits import LONG_COLUMN, LONG_ROW, REDUCED, SUMS, RowLimits, Rows, reduced_dims
from torch.fx import GraphModule, Node

#: Programs of two reductions at once that a processor runs side by side, of the number that keep it busy otherwise.
RUNNING = 2
#: Fewest rows of a strip, so that its column sums are small beside what it reads, and most, so that sums keep float32's
#: precision.
SHORTEST_STRIP, LONGEST_STRIP = 8, 512
#: Operators between a mean and the variance that needs it, at most.
MOST_STEPS = 6
#: Fewest short rows whose results are summed together, and how long those are at most: of longer ones what there is one
#: of for each is little beside them.
FEWEST_ROWS, LONGEST_SHORT_ROW = 64, 512
#: Rows of a strip side by side, at least, where they go across memory: 16 bytes of the narrowest type.
ACROSS = 8
#: Programs for each that runs at once, of those that go through such rows: each has but a few elements under way.
MANY = 4


@dataclass(frozen=True)
class Split:
    """Cut dimension ``dim`` (padded to ``parts * share``) of the reduced ``dims`` into ``parts`` pieces; ``together``,
    it and those behind it, which are neighbours, as if they were one, and those before it along with the pieces."""

    dims: tuple[int, ...]
    dim: int
    parts: int
    share: int
    padding: int
    together: bool = False


def strips_of(node: Node, limits: RowLimits, meeting: Rows) -> Split | None:
    """The cut of a reduction down columns whose rows are reduced, too; None for any other, where no number of strips
    near that of programs divides the rows, and where a row and its columns' results don't stay on chip."""
    source, result = tensor_meta(node.args[0]), tensor_meta(node)
    if source is None or result is None or not is_concrete((*source.shape, *source.stride())) or source.dim() < 2:
        return None
    dims, rows = reduced_dims(node, source.dim()), prod(source.shape[:-1])
    if not dims or dims != tuple(range(dims[0], dims[-1] + 1)) or dims[-1] == source.dim() - 1:
        return None
    if (rows, source.shape[-1]) not in meeting or not rows or source.stride(-1) != 1 or (
            dims[0] > 0 and in_two_sweeps(node)):
        return None
    if not limits.keeps_strips(source.shape[-1], packet_name(node.target) in SUMS):
        return None
    dim = max(dims, key=lambda d: source.shape[d])
    size = source.shape[dim]
    programs = limits.programs
    wanted = max(programs // RUNNING, rows // LONGEST_STRIP)
    sums = prod(n for d, n in enumerate(source.shape[:-1]) if d not in dims)
    parts = max((p for p in range(1, min(-(-wanted // sums), size) + 1) if size % p == 0), default=1)
    if parts < 2 or sums * parts < wanted // 2 or rows // (sums * parts) < SHORTEST_STRIP:
        return None
    return Split(dims, dim, parts, size // parts, 0)


def in_two_sweeps(node: Node) -> bool:
    """Whether a sum needs another one of the same shape first, as a variance its mean, or one of what there is one of
    for each row, as attention's sums of values a softmax, or such a one needs it: a strip gives only a part of both."""
    shape, dims = node.args[0].meta["val"].shape, reduced_dims(node, node.args[0].meta["val"].dim())  # type: ignore

    def meets(begin: Node, neighbours: Callable[[Node], Iterable[Node]]) -> bool:
        near, seen = [begin], {begin}
        for _ in range(MOST_STEPS):
            near = [n for m in near for n in neighbours(m) if n not in seen]
            seen.update(near)
            for n in near:
                source = tensor_meta(n.args[0]) if packet_name(n.target) in REDUCED else None
                if source is not None and source.shape in (shape, shape[:-1]) and reduced_dims(
                        n, source.dim()) == dims:
                    return True
        return False

    return meets(node, lambda n: n.users) or meets(node, lambda n: n.all_input_nodes)


def short_rows(gm: GraphModule) -> dict[int, int]:
    """By number of rows, how many elements the longest have that the graph reduces, wherever they lie."""
    found: dict[int, int] = {}
    for node in gm.graph.nodes:
        source = tensor_meta(node.args[0]) if packet_name(node.target) in REDUCED else None
        if source is not None and is_concrete(source.shape) and source.numel():
            row = prod(source.shape[d] for d in reduced_dims(node, source.dim()))
            found[source.numel() // row] = max(row, found.get(source.numel() // row, 1))
    return found


def dims_of_rows_in(gm: GraphModule) -> frozenset[tuple[int, int, int]]:
    """Elements of the values of which the graph reduces single dimensions, and these dimensions' sizes and strides."""
    found = set()
    for node in gm.graph.nodes:
        source = tensor_meta(node.args[0]) if packet_name(node.target) in REDUCED else None
        if source is not None and is_concrete((*source.shape, *source.stride())) and source.dim():
            dims = reduced_dims(node, source.dim())
            if len(dims) == 1:
                found.add((source.numel(), source.shape[dims[0]], source.stride(dims[0])))
    return frozenset(found)


def rows_together(node: Node, limits: RowLimits, short: dict[int, int]) -> Split | None:
    """The cut of a reduction of everything that there is one of for each of many short rows, as a loss has: into strips
    whose rows a program goes through, so that nothing of each row goes to memory. A CPU, whose strips have no limit,
    has few programs: it goes through all rows first."""
    source, result = tensor_meta(node.args[0]), tensor_meta(node)
    if source is None or result is None or not limits.strip_elements or not is_concrete(source.shape):
        return None
    rows = source.numel()
    if result.numel() != 1 or source.is_complex() or rows < LONG_ROW or short.get(rows, 1) == 1:
        return None
    share = LONGEST_STRIP
    while share > FEWEST_ROWS and (rows % share or rows // share < MANY * limits.programs):
        share //= 2
    if rows % share or not limits.programs <= rows // share <= LONG_ROW or short[rows] > LONGEST_SHORT_ROW:
        return None
    return Split(tuple(range(source.dim())), 0, rows // share, share, 0, together=True)


def results_together(node: Node, limits: RowLimits, dims_of_rows: Set[tuple[int, int, int]]) -> Split | None:
    """The same cut of a reduction over all short rows of an image to as many results as they have elements, as each
    class's share of the pixels' probabilities or a channel's weight's gradient: where images are too few for a program
    each, or it goes over all images, too."""
    source = tensor_meta(node.args[0])
    if source is None or not limits.strip_elements or not is_concrete((*source.shape, *source.stride())):
        return None
    if source.is_complex() or in_two_sweeps(node):
        return None
    dims = reduced_dims(node, source.dim())
    first = next((d for d, after in zip(dims[-2::-1], dims[:0:-1]) if after - d > 1), None)
    pixels = tuple(d for d in dims if first is None or d > first)
    size = prod(source.shape[d] for d in pixels)
    rows, row = next(((source.numel() // n, n) for d, n in enumerate(source.shape) if d not in dims
                      and 1 < n <= LONGEST_SHORT_ROW and (source.numel(), n, source.stride(d)) in dims_of_rows), (0, 0))
    least = limits.programs // (RUNNING if row >= FEWEST_ROWS else 1)
    if size < FEWEST_ROWS or prod(source.shape[d] for d in dims) < LONG_COLUMN or (
            not 0 < rows < size * limits.programs):
        return None
    cuts = [p for p in range(1, size // FEWEST_ROWS + 1) if size % p == 0 and size // p <= LONGEST_STRIP
            and size // p % ACROSS == 0 and _whole_axes(size // p, [source.shape[d] for d in pixels])]
    wanted = MANY * limits.programs * size // rows
    parts = next((p for p in cuts if p >= wanted), max(cuts, default=0))
    if parts * rows < least * size:
        return None
    return Split(dims, pixels[0], parts, size // parts, 0, together=True)


def _whole_axes(share: int, sizes: Sequence[int]) -> bool:
    """Whether shares of dimensions of these sizes, as if they were one, are all of the last ones and a part of one."""
    for size in reversed(sizes):
        if share <= size:
            return size % share == 0
        if share % size:
            return False
        share //= size
    return share == 1
