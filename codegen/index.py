"""Index arithmetic on sympy expressions whose symbols have known ranges.

An index is an integer expression over axis symbols (each in ``[0, size)``) and, for gathers, over symbols that name
SSA values of the kernel. Views turn into floor divisions and remainders; the functions here keep those out of the
result whenever the ranges prove that they vanish.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import gcd, prod

import sympy
from sympy import Add, Expr, Integer, Mul, Symbol

Ranges = Mapping[Symbol, int]  # exclusive upper bound of each axis symbol; a symbol that isn't in it is unbounded
Bounds = tuple[int, int] | None


class FloorDiv(sympy.Function):
    """``floor(a / n)`` for a positive integer ``n``, rounding towards minus infinity."""

    nargs = (2,)
    is_integer = True

    @classmethod
    def eval(cls, a, n):
        if n == 1:
            return a
        if a.is_Integer and n.is_Integer:
            return Integer(int(a) // int(n))
        return None


class Mod(sympy.Function):
    """``a - n * floor(a / n)`` for a positive integer ``n``."""

    nargs = (2,)
    is_integer = True

    @classmethod
    def eval(cls, a, n):
        if n == 1:
            return Integer(0)
        if a.is_Integer and n.is_Integer:
            return Integer(int(a) % int(n))
        return None


def symbol(name: str) -> Symbol:
    """The integer symbol called ``name``; equal names give equal symbols."""
    return Symbol(name, integer=True)


def bounds(expr: Expr, ranges: Ranges) -> Bounds:
    """Inclusive ``(low, high)`` of ``expr``, or None where a symbol has no known range."""
    if expr.is_Integer:
        return int(expr), int(expr)
    if isinstance(expr, Symbol):
        size = ranges.get(expr)
        return None if size is None else (0, size - 1)
    if isinstance(expr, Add):
        low = high = 0
        for term in expr.args:
            part = bounds(term, ranges)
            if part is None:
                return None
            low, high = low + part[0], high + part[1]
        return low, high
    if isinstance(expr, Mul):
        low = high = 1
        for factor in expr.args:
            part = bounds(factor, ranges)
            if part is None:
                return None
            corners = [low * part[0], low * part[1], high * part[0], high * part[1]]
            low, high = min(corners), max(corners)
        return low, high
    if isinstance(expr, FloorDiv):
        part = bounds(expr.args[0], ranges)
        n = int(expr.args[1])
        return None if part is None else (part[0] // n, part[1] // n)
    if isinstance(expr, Mod):
        part, n = bounds(expr.args[0], ranges), int(expr.args[1])
        return (part if part is not None and part[0] >= 0 and part[1] < n else (0, n - 1))
    return None


def extent_of(op: str, args: Sequence[tuple[int, int]]) -> Bounds:
    """The same of an operation on whole numbers within bounds; None for other operations than those of the arithmetic
    of places. A choice by data is none: g++ takes a vector's mask for it where it isn't looked at again."""
    (low, high), (least, most) = args[0], args[-1]
    if op == "abs":
        return max(low, -high, 0), max(-low, high)
    if op in ("cast", "neg"):
        return (low, high) if op == "cast" else (-high, -low)
    if op in ("add", "sub"):
        return (low + least, high + most) if op == "add" else (low - most, high - least)
    if op == "mul":
        corners = [a * b for a in (low, high) for b in (least, most)]
        return min(corners), max(corners)
    if op not in ("max", "min"):
        return None
    choose = max if op == "max" else min
    return choose(low, least), choose(high, most)


def _split(expr: Expr, n: int) -> tuple[Expr, Expr]:
    """``expr = quotient * n + rest`` with every term that ``n`` divides moved into the quotient."""
    quotient, rest = [], []
    for term in Add.make_args(expr):
        coefficient, factor = term.as_coeff_Mul()
        if not coefficient.is_Integer:
            rest.append(term)
        elif factor is sympy.S.One:
            quotient.append(Integer(int(coefficient) // n))
            rest.append(Integer(int(coefficient) % n))
        elif int(coefficient) % n == 0:
            quotient.append(Integer(int(coefficient) // n) * factor)
        else:
            rest.append(term)
    return Add(*quotient), Add(*rest)


def _common_factor(expr: Expr, n: int, ranges: Ranges) -> tuple[int, Expr, Expr]:
    """``expr = g * scaled + small`` with the largest ``g`` that divides ``n`` and for which ``0 <= small < g``: places
    in a row are small beside its number."""
    constant, terms = expr.as_coeff_Add()
    pairs = [term.as_coeff_Mul() for term in Add.make_args(terms)]
    if not constant.is_Integer or not all(c.is_Integer for c, _ in pairs):
        return 1, expr, Integer(0)
    factors = [gcd(n, int(c)) for c, _ in pairs]
    for g in sorted({gcd(*factors), *factors}, reverse=True):
        if g == 1:
            break
        small = Add(*[c * f for c, f in pairs if int(c) % g]) + int(constant) % g
        extent = bounds(small, ranges)
        if extent is not None and extent[0] >= 0 and extent[1] < g:
            return g, Add(*[c // g * f for c, f in pairs if int(c) % g == 0]) + int(constant) // g, small
    return 1, expr, Integer(0)


def _divisions(expr: Expr) -> int:
    """How many divisions and remainders computing ``expr`` takes."""
    return sum(isinstance(e, FloorDiv | Mod) for e in sympy.preorder_traversal(expr))


def joined(expr: Expr, ranges: Ranges) -> Expr:
    """``expr`` with ``n * floor(a / n) + (a mod n)`` written as ``a``, where that leaves fewer divisions: what a view
    takes apart and another puts together again, such as windows of an image."""
    while _divisions(expr) > 1:
        better = next((e for e in _joinings(expr, ranges) if _divisions(e) < _divisions(expr)), None)
        if better is None:
            break
        expr = better
    return expr


def _joinings(expr: Expr, ranges: Ranges) -> Iterator[Expr]:
    """Expressions equal to ``expr`` that have a division of its sum, by itself or with a remainder, replaced."""
    terms = [t.as_coeff_Mul() for t in Add.make_args(expr)]
    for c, division in terms:
        if not isinstance(division, FloorDiv) or not c.is_Integer:
            continue
        a, n = division.args
        if int(c) % int(n) == 0:
            rest = sympy.expand_mul(c // n * mod(a, int(n), ranges))
            if all(t in expr.args for t in Add.make_args(rest) if t.has(FloorDiv, Mod)):
                yield sympy.expand_mul(expr - c * division + c // n * a - rest)
        for d, remainder in terms:
            if isinstance(remainder, Mod) and d * remainder.args[1] == c:
                b, k = remainder.args  # a / (m k) with (a / m) mod k
                more = floordiv(b, int(k), ranges) - division
                if not more.has(FloorDiv, Mod):
                    yield sympy.expand_mul(expr - c * division - d * remainder + d * b - c * more)


def floordiv(expr: Expr, n: int, ranges: Ranges) -> Expr:
    """``floor(expr / n)``, simplified by the ranges of its symbols. ``n`` is a positive integer."""
    expr = joined(expr, ranges)
    quotient, rest = _split(expr, n)
    extent = bounds(rest, ranges)
    if extent is not None and extent[0] // n == extent[1] // n:
        return quotient + extent[0] // n
    g, scaled, _ = _common_factor(rest, n, ranges)
    constant, inner = scaled.as_coeff_Add()
    if isinstance(inner, FloorDiv):
        a, m = inner.args
        return quotient + floordiv(a + constant * m, int(m) * (n // g), ranges)
    return quotient + FloorDiv(scaled, Integer(n // g))


def _without_remainders(expr: Expr, n: int) -> Expr:
    """``expr`` but for multiples of ``n``, without the remainders that only leave out such: ``a + d * (b mod k)`` as
    ``a + d * b`` if ``n`` divides ``d * k``."""
    kept = []
    for term in Add.make_args(expr):
        d, factor = term.as_coeff_Mul()
        drops = isinstance(factor, Mod) and d.is_Integer and int(d * factor.args[1]) % n == 0
        kept.append(sympy.expand_mul(d * factor.args[0]) if drops else term)
    return Add(*kept)


def mod(expr: Expr, n: int, ranges: Ranges) -> Expr:
    """``expr mod n`` in ``[0, n)``, simplified by the ranges of its symbols. ``n`` is a positive integer."""
    _, rest = _split(joined(expr, ranges), n)
    extent = bounds(rest, ranges)
    if extent is not None and extent[0] // n == extent[1] // n:
        return rest - n * (extent[0] // n)
    unwrapped = _without_remainders(rest, n)
    if unwrapped != rest:
        return mod(unwrapped, n, ranges)
    g, scaled, small = _common_factor(rest, n, ranges)
    inner = Mod(scaled.args[0], Integer(n // g)) if (
        isinstance(scaled, Mod) and int(scaled.args[1]) % (n // g) == 0) else Mod(scaled, Integer(n // g))
    return g * inner + small


def rewrite(expr: Expr, replaced: Mapping[Symbol, Expr], ranges: Ranges) -> Expr:
    """``expr`` with symbols replaced, divisions and remainders simplified again under the new ranges."""
    if expr.is_Integer:
        return expr
    if isinstance(expr, Symbol):
        return replaced.get(expr, expr)
    if not expr.has(FloorDiv, Mod):
        return expr.xreplace(dict(replaced))
    args = [rewrite(a, replaced, ranges) for a in expr.args]
    if isinstance(expr, FloorDiv):
        return floordiv(args[0], int(args[1]), ranges)
    if isinstance(expr, Mod):
        return mod(args[0], int(args[1]), ranges)
    if isinstance(expr, Mul):
        return sympy.expand_mul(Mul(*args))
    return joined(expr.func(*args), ranges)


def ravel(coords: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """Row-major position of ``coords`` in a tensor of ``shape``."""
    position: Expr = Integer(0)
    for c, size in zip(coords, shape):
        position = sympy.expand_mul(position * size) + c
    return position


def unravel(position: Expr, shape: Sequence[int], ranges: Ranges) -> tuple[Expr, ...]:
    """Row-major coordinates in ``shape`` of the linear ``position``; size-one dimensions get 0."""
    coords: list[Expr] = []
    stride = prod(shape)
    for dim, size in enumerate(shape):
        stride = stride // size if size else 0
        if size == 1:
            coords.append(Integer(0))
            continue
        c = floordiv(position, stride, ranges)
        coords.append(c if dim == _first_wide(shape) else mod(c, size, ranges))
    return tuple(coords)


def _first_wide(shape: Sequence[int]) -> int:
    """The first dimension whose size isn't one: its coordinate needs no remainder."""
    return next((d for d, s in enumerate(shape) if s != 1), -1)


def affine(expr: Expr) -> tuple[dict[Symbol, int], int, list[Expr]]:
    """``expr`` as ``sum(coefficient * symbol) + constant + sum(others)``, others being what isn't affine."""
    coefficients: dict[Symbol, int] = {}
    constant, others = 0, []
    for term in Add.make_args(expr):
        coefficient, factor = term.as_coeff_Mul()
        if factor is sympy.S.One and coefficient.is_Integer:
            constant += int(coefficient)
        elif isinstance(factor, Symbol) and coefficient.is_Integer:
            coefficients[factor] = coefficients.get(factor, 0) + int(coefficient)
        else:
            others.append(term)
    return coefficients, constant, others


def dot(coords: Iterable[Expr], strides: Iterable[int], offset: int = 0) -> Expr:
    """Storage offset of ``coords`` in a strided tensor, in elements."""
    return Add(*[sympy.expand_mul(c * s) for c, s in zip(coords, strides)], Integer(offset))
