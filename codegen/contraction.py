"""Recognises nests that are matrix products: sums of products whose factors share nothing but the summed axes."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from sympy import Symbol

from .ir import Axis, Compute, Nest, Reduce, Scan, Stmt, Store, operands


@dataclass(frozen=True)
class Contraction:
    """``reduces[k]`` sums the products of ``factors[k]``: a value over ``rows`` and the summed axes, and one over
    ``columns`` and the summed axes. What comes after them varies over rows and columns."""

    reduces: tuple[Reduce, ...]
    factors: tuple[tuple[str, str], ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]

    @property
    def row_count(self) -> int:
        return prod(a.size for a in self.rows)

    @property
    def column_count(self) -> int:
        return prod(a.size for a in self.columns)


def contraction_of(nest: Nest) -> Contraction | None:
    """The matrix products that ``nest`` consists of, with what is done to their factors and results; None for any other
    nest, and for products with a single row, which use each element of a matrix once."""
    reduces = tuple(s for s in nest.body if isinstance(s, Reduce))
    parallel = {a.symbol for a in nest.parallel}
    summed = {a.symbol for a in nest.reduction}
    if not reduces or not parallel or nest.strip or nest.segmented or any(isinstance(s, Scan) for s in nest.body):
        return None
    made = {s.name: s for s in nest.body if not isinstance(s, Store)}
    last = nest.parallel[-1].symbol
    factors: list[tuple[str, str]] = []
    sides: set[tuple[frozenset[Symbol], frozenset[Symbol]]] = set()
    for reduce in reduces:
        product = made[reduce.value]
        if reduce.op != "sum" or not (isinstance(product, Compute) and product.op == "mul"):
            return None
        first, second = sorted(product.args, key=lambda v: last in nest.scopes[v])
        a, b = nest.scopes[first], nest.scopes[second]
        if _rounding(made[first]) is None or _rounding(made[first]) != _rounding(made[second]):
            return None
        if not (a >= summed and b >= summed and a - summed and b - summed) or (a & b) - summed:
            return None
        if (a | b) - summed != parallel:
            return None
        factors.append((first, second))
        sides.add((a - summed, b - summed))
    if len(sides) != 1 or _mixes_sums(nest, reduces, summed):
        return None
    rows, _ = next(iter(sides))
    return Contraction(reduces, tuple(factors), tuple(a for a in nest.parallel if a.symbol in rows),
                       tuple(a for a in nest.parallel if a.symbol not in rows))


def _mixes_sums(nest: Nest, reduces: tuple[Reduce, ...], summed: set[Symbol]) -> bool:
    """Whether something varies over the summed axes after a sum, or is stored for each of their points."""
    known = {r.name for r in reduces}
    for stmt in nest.body:
        scope = nest.store_scope(stmt) if isinstance(stmt, Store) else nest.scopes[stmt.name]
        after = any(n in known for n in operands(stmt))
        if isinstance(stmt, Store) and scope & summed:
            return True
        if after and (isinstance(stmt, Reduce) or scope & summed):
            return True
        if after and not isinstance(stmt, Store):
            known.add(stmt.name)
    return False


def has_stray_product(nest: Nest) -> bool:
    """Whether ``nest`` sums a matrix product among other things, so that it isn't a `Contraction`: each of its results
    would be summed by itself."""
    if contraction_of(nest) is not None:
        return False
    made = {s.name: s for s in nest.body if not isinstance(s, Store)}
    summed = {a.symbol for a in nest.reduction}
    for stmt in nest.body:
        product = made[stmt.value] if isinstance(stmt, Reduce) else None
        if isinstance(product, Compute) and product.op == "mul" and all(_rounding(made[a]) for a in product.args):
            a, b = (nest.scopes[v] - summed for v in product.args)
            if a and b and not a & b:
                return True
    return False


def _rounding(stmt: Stmt) -> torch.dtype | None:
    """The type that matrix units get a factor in: the one that it was rounded to."""
    return stmt.rounding if isinstance(stmt, Compute) and stmt.op == "round_to" else None


def factor_type(name: str, made: Mapping[str, Stmt]) -> torch.dtype:
    """The type of a factor of a `Contraction`."""
    found = _rounding(made[name])
    assert found is not None
    return found
