"""Whole numbers that are made of a place along an axis by floating-point arithmetic, as index expressions.

Where an upsampled image takes its elements from is computed as ``int(position * scale)``. As a division of the position
it is an address that is known without looking, and neighbours in memory are seen to be neighbours.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from sympy import Expr, Symbol

from .index import Ranges, floordiv
from .ir import Compute, Const, Index, Stmt, Store

#: Most places that are tried one by one.
MOST_PLACES = 1 << 16
_OPS = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "max": torch.maximum,
        "min": torch.minimum}


def quotient(value: str, body: Sequence[Stmt], ranges: Ranges) -> Expr | None:
    """``axis // n`` or ``n * axis + k`` if that is what the float ``value`` is at every place along a single axis,
    rounded towards zero; None where it is neither, or is made of anything else."""
    made = {s.name: s for s in body if not isinstance(s, Store)}
    axis = _axis(value, made)
    if axis is None or axis not in ranges or not 1 < ranges[axis] <= MOST_PLACES:
        return None
    places = torch.arange(ranges[axis])
    whole = _at(value, made, places).trunc().long()
    first, step = int(whole[0]), int(whole[1] - whole[0])
    if step and torch.equal(whole, places * step + first):
        return axis * step + first
    steps = (whole > 0).nonzero()
    n = int(steps[0]) if len(steps) else 0
    return floordiv(axis, n, ranges) if n and torch.equal(whole, places // n) else None


def _axis(value: str, made: Mapping[str, Stmt]) -> Symbol | None:
    """The one axis that ``value`` is made of, and constants."""
    found: set[Symbol] = set()
    work = [value]
    while work:
        stmt = made[work.pop()]
        if isinstance(stmt, Index) and isinstance(stmt.expr, Symbol):
            found.add(stmt.expr)
        elif isinstance(stmt, Compute) and (stmt.op in _OPS or stmt.op == "cast"):
            work.extend(stmt.args)
        elif not isinstance(stmt, Const):
            return None
    return found.pop() if len(found) == 1 else None


def _at(name: str, made: Mapping[str, Stmt], places: torch.Tensor) -> torch.Tensor:
    stmt = made[name]
    if isinstance(stmt, Index):
        return places.to(stmt.dtype)
    if isinstance(stmt, Const):
        return torch.tensor(stmt.value, dtype=stmt.dtype)
    assert isinstance(stmt, Compute)
    operands = [_at(a, made, places) for a in stmt.args]
    return operands[0].to(stmt.dtype) if stmt.op == "cast" else _OPS[stmt.op](*operands)
