"""Conditions on positions, and where along an axis they change: loops are cut there, and no piece tests them."""
from __future__ import annotations

from .index import affine
from .ir import Axis, Compute, Const, Index, Nest, Stmt, Store

#: Most places at which an axis is cut.
MAX_CUTS = 4

_CONDITIONS = frozenset("lt le gt ge eq ne and or not".split())


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


def decided(nest: Nest) -> frozenset[str]:
    """Conditions on positions that the innermost loop needn't test: those that are known before it, that change once
    along it, where it is cut, and what is made of such."""
    if not nest.axes:
        return frozenset()
    lane, made = nest.axes[-1], values_of(nest)
    once = thresholds(nest, lane)
    cut = len({at for at, _ in once.values() if 0 < at < lane.size}) <= MAX_CUTS
    found: set[str] = set()
    for stmt in nest.body:
        if not isinstance(stmt, Compute) or stmt.op not in _CONDITIONS:
            continue
        if stmt.op in ("and", "or", "not"):
            known = all(a in found for a in stmt.args)
        else:
            known = all(isinstance(made[a], Index | Const) for a in stmt.args) and (
                lane.symbol not in nest.scopes[stmt.name] or (cut and stmt.name in once))
        if known:
            found.add(stmt.name)
    return frozenset(found)
