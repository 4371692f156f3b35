"""What lies interleaved in memory: pairs that are rotated together, real and imaginary parts, gates beside inputs.

Neighbouring points of an axis access every second, fourth or eighth element each, and between them all there are. Taken
one by one such accesses are as narrow as an element; together they are one run of memory.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sympy import Expr, Symbol

from .index import affine
from .ir import Load, Nest, Stmt, Store

#: How many places may be interleaved: powers of two, which tiles can be split by.
WIDTHS = (2, 4, 8)


@dataclass(frozen=True)
class Run:
    """``members`` access neighbouring elements, in this order, and at the next point of ``axis`` the elements after
    them. ``index`` is that of the first."""

    members: tuple[Load | Store, ...]
    axis: Symbol

    @property
    def width(self) -> int:
        return len(self.members)

    @property
    def index(self) -> Expr:
        return self.members[0].index


def lane_axis(nest: Nest) -> Symbol | None:
    """The axis along which a tile's elements are neighbours."""
    axes = nest.reduction or nest.parallel
    return axes[-1].symbol if axes else None


def interleaved(nest: Nest, body: Iterable[Stmt]) -> tuple[Run, ...]:
    """The runs of accesses in ``body``, a part of the nest's. What is both read and written isn't taken together, for
    its order counts, nor are accesses under a condition."""
    axis = lane_axis(nest)
    if axis is None or nest.segmented:
        return ()
    body = tuple(body)
    buffers = [{s.buffer for s in body if isinstance(s, kind)} for kind in (Load, Store)]
    found: dict[tuple[type, str, Expr], dict[int, Load | Store]] = {}
    for stmt in body:
        if not isinstance(stmt, Load | Store) or axis not in stmt.index.free_symbols or all(
                stmt.buffer in b for b in buffers):
            continue
        if stmt.mask is None and not (isinstance(stmt, Store) and stmt.accumulate):
            constant, base = stmt.index.as_coeff_Add()
            found.setdefault((type(stmt), stmt.buffer, base), {}).setdefault(int(constant), stmt)
    runs: list[Run] = []
    for (_, _, base), places in found.items():
        width = _width(nest, base, axis)
        for start in sorted(p for p in places if width and p % width == 0):
            if all(start + k in places for k in range(width)):
                runs.append(Run(tuple(places[start + k] for k in range(width)), axis))
    return tuple(runs)


def _width(nest: Nest, base: Expr, axis: Symbol) -> int:
    """How many elements apart neighbours along ``axis`` are; 0 where that isn't a width, or where an address depends on
    a value that tiles have one of for each point."""
    coefficients, _, others = affine(base)
    width = coefficients.get(axis, 0)
    lanes = {a.symbol for a in nest.reduction or nest.parallel}
    values = [s for s in base.free_symbols if s not in nest.ranges]
    if width not in WIDTHS or any(axis in e.free_symbols for e in others) or any(
            nest.scopes[v.name] & lanes for v in values):
        return 0
    return width
