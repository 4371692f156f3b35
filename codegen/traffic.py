"""Bytes that a kernel moves between memory and chip, counted on its loop IR."""
from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import prod

import sympy

from .index import affine
from .ir import Kernel, Load, Nest, Store
from .sweeps import plan_phases


def _footprint(kernel: Kernel, nest: Nest, stmt: Load | Store) -> int:
    """Different elements that one access touches over the whole nest, at most the buffer."""
    varying: set[sympy.Symbol] = set()
    for s in stmt.index.free_symbols:
        varying |= {s} if s in nest.ranges else set(nest.scopes[s.name])
    return min(prod(nest.ranges[s] for s in varying), kernel.buffer(stmt.buffer).size)


def _looked_at(kernel: Kernel, nest: Nest, loads: Sequence[Load]) -> int:
    """Different elements that loads of one buffer touch, counting those once that loads at a distance share: the taps
    of a window, or the halves that a rotation swaps."""
    alike: dict[Hashable, list[Load]] = {}
    for load in loads:
        coefficients, _, others = affine(load.index)
        alike.setdefault((frozenset(coefficients.items()), frozenset(others)), []).append(load)
    return sum(_shared(kernel, nest, group) for group in alike.values())


def _shared(kernel: Kernel, nest: Nest, loads: Sequence[Load]) -> int:
    """The same for loads whose indices differ by constants. Those beyond each other's reach are counted apart; one
    under a condition is taken to stay within what the others touch."""
    loads = sorted({load.index: load for load in loads}.values(), key=lambda load: load.mask is not None)
    footprints = [_footprint(kernel, nest, load) for load in loads]
    coefficients, start, others = affine(loads[0].index)
    if len(loads) == 1 or others or not coefficients.keys() <= nest.ranges.keys():
        return sum(footprints)
    extents = {s: [0, nest.ranges[s] - 1] for s in coefficients}
    apart = 0
    for load, footprint in zip(loads[1:], footprints[1:]):
        shift = _shift(affine(load.index)[1] - start, coefficients, nest.ranges)
        if shift is None:
            apart += footprint
        elif load.mask is None:
            for s, steps in shift.items():
                low, high = extents[s]
                extents[s] = [min(low, steps), max(high, nest.ranges[s] - 1 + steps)]
    return min(prod(high - low + 1 for low, high in extents.values()) + apart, sum(footprints))


def _shift(distance: int, coefficients: Mapping[sympy.Symbol, int],
           sizes: Mapping[sympy.Symbol, int]) -> dict[sympy.Symbol, int] | None:
    """Steps along each axis that make up a distance in memory, fewer than the axis has; None if none do."""
    steps = {}
    for s, stride in sorted(coefficients.items(), key=lambda item: -abs(item[1])):
        steps[s] = int(distance / stride)
        distance -= steps[s] * stride
        if abs(steps[s]) >= sizes[s]:
            return None
    return steps if distance == 0 else None


def row_bytes(kernel: Kernel, nest: Nest) -> tuple[int, int]:
    """Bytes of one row of everything that varies along the reduction axes, which is what a second sweep looks at again:
    those that each row has for itself, and those that all rows share."""
    row, parallel = ({a.symbol for a in axes} for axes in (nest.reduction, nest.parallel))
    seen = {(s.buffer, s.index) for s in nest.body if isinstance(s, Load) and s.index.free_symbols & row}
    own = shared = 0
    for buffer, index in seen:
        size = prod(nest.ranges[s] for s in index.free_symbols & row) * kernel.buffer(buffer).dtype.itemsize
        if nest.ranges.keys() >= index.free_symbols and not index.free_symbols & parallel:
            shared += size
        else:
            own += size
    return own, shared


def sweeps(nest: Nest) -> int:
    """How often a row is gone through."""
    return sum(p.sweep for p in plan_phases(nest))


def kernel_traffic(kernel: Kernel, holds: Callable[[Kernel, Nest], bool]) -> tuple[int, int]:
    """``(bytes read, bytes written)``. A later sweep over a row counts again unless the nest ``holds`` rows on chip:
    in registers on a GPU, in cache on a CPU."""
    read = written = 0
    for nest in kernel.nests:
        held = holds(kernel, nest)
        phases = plan_phases(nest)
        groups = [[s for p in phases for s in p.body]] if held else [list(p.body) for p in phases]
        for body in groups:
            touched: dict[str, list[Load]] = {}
            for stmt in body:
                if isinstance(stmt, Load):
                    touched.setdefault(stmt.buffer, []).append(stmt)
            for name, loads in touched.items():
                buffer = kernel.buffer(name)
                read += min(_looked_at(kernel, nest, loads), buffer.size) * buffer.dtype.itemsize
        stores: dict[str, dict[sympy.Expr, int]] = {}
        for stmt in nest.body:
            if isinstance(stmt, Store):
                if stmt.accumulate:
                    read += _footprint(kernel, nest, stmt) * kernel.buffer(stmt.buffer).dtype.itemsize
                stores.setdefault(stmt.buffer, {})[stmt.index] = _footprint(kernel, nest, stmt)
        for name, accesses in stores.items():
            buffer = kernel.buffer(name)
            written += min(sum(accesses.values()), buffer.size) * buffer.dtype.itemsize
    return read, written
