"""Short runs of neighbours that rows are made of, taken as lanes on a CPU: the channels of groups, image by image.

Where channels lie next to each other, a group's ten are a short run at each pixel: a loop over it fills no vector. The
runs of neighbouring groups are one long run. Rewritten, its elements are lanes, each of which goes down the pixels, and
what lanes of one group have come to is joined at the end (``Reduce.fold``).
"""
from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from .index import FloorDiv, Mod, affine, symbol
from .ir import Axis, Kernel, Load, Nest, Reduce, Scan, Store
from .scatter import is_scatter
from .simplify import merge_axes, order_axes, rename_axes, substitute_axes

#: Longest run that is taken so: a longer one fills vectors by itself.
LONGEST_RUN = 24
#: Reductions whose results of neighbouring lanes are joined.
JOINED = ("sum", "max", "min")
#: Fewest lanes.
FEWEST_LANES = 32


def take_groups_as_lanes(kernel: Kernel) -> Kernel:
    """``kernel`` with runs of neighbours that several rows have side by side as lanes."""
    updated = kernel.read & kernel.written
    nests = tuple(_rewritten(nest, updated) for nest in kernel.nests)
    return kernel if nests == kernel.nests else replace(kernel, nests=nests)


def _rewritten(nest: Nest, updated: Set[str]) -> Nest:
    found = _side_by_side(nest, updated)
    if found is None:
        return nest
    group, run = found
    lane = Axis(symbol("lane"), group.size * run.size)
    others = [a for a in nest.axes if a not in (group, run)]
    axes = (*[a for a in others if not a.reduction], lane, *[a for a in others if a.reduction])
    size = run.size
    changed = substitute_axes(nest, axes, {group.symbol: FloorDiv(lane.symbol, size),
                                           run.symbol: Mod(lane.symbol, size)})
    body = tuple(replace(s, fold=size) if isinstance(s, Reduce) else s for s in changed.body)
    return rename_axes(merge_axes(order_axes(Nest(axes, body))))


def _side_by_side(nest: Nest, updated: Set[str]) -> tuple[Axis, Axis] | None:
    """The parallel axis of groups and the reduction axis of their runs; None where memory has no such runs, a row
    needs more than sums and extremes of whole rows, or each lane would update what there is one of for each group."""
    if len(nest.reduction) < 2 or not nest.parallel or nest.strip or nest.segmented:
        return None
    if any(isinstance(s, Scan) or (isinstance(s, Store) and is_scatter(s)) for s in nest.body):
        return None
    run = nest.reduction[-1]
    row = {a.symbol for a in nest.reduction}
    if run.size > LONGEST_RUN or not all(
            s.op in JOINED and nest.scopes[s.value] >= row for s in nest.body if isinstance(s, Reduce)):
        return None
    stored = [s for s in nest.body if isinstance(s, Store) and s.buffer in updated]
    if any(run.symbol not in s.index.free_symbols for s in stored):
        return None
    accesses = [affine(s.index)[0] for s in nest.body if isinstance(s, Load | Store)]
    for group in nest.parallel:
        runs = [strides for strides in accesses if run.symbol in strides]
        together = all(s[run.symbol] == 1 and s.get(group.symbol) == run.size for s in runs)
        if runs and together and group.size * run.size >= FEWEST_LANES and all(
                nest.scopes[s.value] >= {group.symbol} for s in nest.body if isinstance(s, Reduce)):
            return group, run
    return None
