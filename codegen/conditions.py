"""Conditions on positions, and where along an axis they change: loops are cut there, and no piece tests them."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

from sympy import Expr, Integer

from .index import FloorDiv, Mod, affine, bounds
from .ir import Axis, Compute, Const, Index, Nest, Stmt, Store, index_of

#: Most places at which an axis is cut.
MAX_CUTS = 4
#: The part of all places at which a condition holds mostly.
MOSTLY = 0.75
#: Operations on whole numbers of which a place in pieces is made.
_BENDING = frozenset({"cast", "neg", "abs", "add", "sub", "max", "min"})


def values_of(nest: Nest) -> dict[str, Stmt]:
    """The statement that makes each value."""
    return {s.name: s for s in nest.body if not isinstance(s, Store)}


def thresholds(nest: Nest, axis: Axis) -> dict[str, tuple[int, bool]]:
    """Conditions that change once along ``axis`` and depend on no other: name to (position, truth before it)."""
    made = values_of(nest)
    found: dict[str, tuple[int, bool]] = {}
    for stmt in nest.body:
        if not (isinstance(stmt, Compute) and stmt.op in ("lt", "le", "gt", "ge")):
            continue
        position, limit = (made[a] for a in stmt.args)
        if not (isinstance(position, Index) and isinstance(limit, Const)):
            continue
        coefficients, constant, others = affine(position.expr)
        step = coefficients.get(axis.symbol, 0)
        if len(coefficients) == 1 and step > 0 and not others:
            at = -(-(int(limit.value) - constant + (stmt.op in ("le", "gt"))) // step)
            found[stmt.name] = (at, stmt.op in ("lt", "le"))
    return found


def bent_places(nest: Nest, axis: Axis) -> dict[str, list[tuple[int, int, Expr]]]:
    """Whole numbers that are one expression of ``axis`` in each of a few pieces of it, as a place that is kept within
    an image or mirrored at its edge: name to (begin, end, expression)."""
    found: dict[str, list[tuple[int, int, Expr]]] = {}
    for stmt in nest.body:
        if isinstance(stmt, Index) and stmt.expr.free_symbols == {axis.symbol} and not stmt.expr.has(FloorDiv, Mod):
            found[stmt.name] = [(0, axis.size, stmt.expr)]
        elif isinstance(stmt, Const) and type(stmt.value) is int:
            found[stmt.name] = [(0, axis.size, Integer(stmt.value))]
        elif isinstance(stmt, Compute) and stmt.op in _BENDING and all(a in found for a in stmt.args):
            pieces = _bent(stmt.op, [found[a] for a in stmt.args], axis)
            if len(pieces) <= MAX_CUTS + 1:
                found[stmt.name] = pieces
    return {n: pieces for n, pieces in found.items() if len(pieces) > 1}


def _bent(op: str, args: list[list[tuple[int, int, Expr]]], axis: Axis) -> list[tuple[int, int, Expr]]:
    """``op`` of whole numbers in pieces, in as many more as it takes."""
    pieces: list[tuple[int, int, Expr]] = []
    for a, b in product(args[0], args[-1]):
        low, high = max(a[0], b[0]), min(a[1], b[1])
        if low >= high:
            continue
        first, second = (a[2], -a[2]) if op == "abs" else (a[2], b[2])
        if op in ("cast", "neg", "add", "sub"):
            change = {"cast": first, "neg": -first, "add": first + second, "sub": first - second}[op]
            pieces.append((low, high, change))
            continue
        # The first is chosen where it is the larger one, or the smaller one: on one side of where they meet.
        coefficients, constant, _ = affine(first - second if op in ("max", "abs") else second - first)
        step = coefficients.get(axis.symbol, 0)
        at = low if step == 0 else min(max(-(constant // step) if step > 0 else -constant // step + 1, low), high)
        before, after = (second, first) if step > 0 or (step == 0 and constant >= 0) else (first, second)
        pieces += [piece for piece in ((low, at, before), (at, high, after)) if piece[0] < piece[1]]
    return sorted(pieces, key=lambda piece: piece[0])


def wraps(body: Iterable[Stmt], axis: Axis) -> set[int]:
    """Places along ``axis`` at which a quotient or remainder of an index steps, where no other axis decides it and
    there are few: a row that is rolled around has one."""
    found: set[int] = set()
    for atom in {a for stmt in body for a in (index_of(stmt) or Integer(0)).atoms(FloorDiv, Mod)}:
        n, (coefficients, constant, others) = int(atom.args[1]), affine(atom.args[0])
        step = coefficients.pop(axis.symbol, 0)
        if step <= 0 or others or any(c % n for c in coefficients.values()):
            continue
        first, last = constant // n, (constant + step * (axis.size - 1)) // n
        if last - first <= MAX_CUTS:
            found |= {-((constant - k * n) // step) for k in range(first + 1, last + 1)}
    return found


def decided(nest: Nest) -> frozenset[str]:
    """Conditions on positions that the innermost loop nearly never tests: those that change once along it, where it is
    cut, those that are known before it and mostly the same, as they are away from the border of what is padded, and
    what is made of such."""
    if not nest.axes:
        return frozenset()
    lane, made = nest.axes[-1], values_of(nest)
    once = thresholds(nest, lane)
    cut = len({at for at, _ in once.values() if 0 < at < lane.size}) <= MAX_CUTS
    found: set[str] = set()
    for stmt in nest.body:
        if not isinstance(stmt, Compute):
            continue
        if stmt.op == "and":
            known = all(a in found for a in stmt.args)
        elif lane.symbol in nest.scopes[stmt.name]:
            known = cut and stmt.name in once
        else:
            part = holding_part(nest, made, stmt)
            known = part is not None and not 1 - MOSTLY < part < MOSTLY
        if known:
            found.add(stmt.name)
    return frozenset(found)


def holding_part(nest: Nest, made: Mapping[str, Stmt], stmt: Stmt) -> float | None:
    """The part of all places at which a comparison of a position with a number holds, the position's values being about
    equally many; None for what is no such comparison."""
    if not isinstance(stmt, Compute) or stmt.op not in ("lt", "le", "gt", "ge"):
        return None
    position, limit = (made[a] for a in stmt.args)
    extent = bounds(position.expr, nest.ranges) if isinstance(position, Index) else None
    if extent is None or not isinstance(limit, Const):
        return None
    low, high = extent
    below = (int(limit.value) + (stmt.op in ("le", "gt")) - low) / (high - low + 1)
    below = min(max(below, 0.0), 1.0)
    return below if stmt.op in ("lt", "le") else 1.0 - below
