"""Index arithmetic against brute force: every simplification holds at every point of the axes."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from rooffuse.codegen.index import (
    FloorDiv,
    Mod,
    affine,
    bounds,
    dot,
    floordiv,
    joined,
    mod,
    ravel,
    rewrite,
    symbol,
    unravel,
)
from sympy import Expr, Integer

X, Y, Z = symbol("p0"), symbol("p1"), symbol("r0")
SYMBOLS = (X, Y, Z)


def evaluate(expr: Expr, point: dict[sympy.Symbol, int]) -> int:
    """The integer that ``expr`` is, by definition and without any simplification."""
    if expr.is_Integer:
        return int(expr)
    if isinstance(expr, sympy.Symbol):
        return point[expr]
    args = [evaluate(a, point) for a in expr.args]
    if isinstance(expr, FloorDiv):
        return args[0] // args[1]
    if isinstance(expr, Mod):
        return args[0] % args[1]
    return sum(args) if isinstance(expr, sympy.Add) else prod(args)


def points(ranges: dict[sympy.Symbol, int]) -> list[dict[sympy.Symbol, int]]:
    return [dict(zip(ranges, values)) for values in product(*[range(n) for n in ranges.values()])]


sizes = st.integers(1, 6)
all_ranges = st.fixed_dictionaries(dict.fromkeys(SYMBOLS, sizes))
coefficients = st.integers(-12, 12)


@st.composite
def affine_expressions(draw) -> Expr:
    return sum((draw(coefficients) * s for s in SYMBOLS), Integer(draw(st.integers(-40, 40))))


@st.composite
def expressions(draw, depth: int = 2) -> Expr:
    """Sums of affine terms with divisions and remainders nested in them, as views of views give them."""
    expr = draw(affine_expressions())
    for _ in range(draw(st.integers(0, depth))):
        inner = draw(affine_expressions()) + draw(coefficients) * expr
        n = Integer(draw(st.integers(1, 12)))
        expr = draw(affine_expressions()) + draw(coefficients) * draw(st.sampled_from([FloorDiv, Mod]))(inner, n)
    return expr


@settings(max_examples=120, deadline=None)
@given(expressions(), st.integers(1, 24), all_ranges)
def test_floordiv_and_mod(expr: Expr, n: int, ranges: dict) -> None:
    quotient, remainder = floordiv(expr, n, ranges), mod(expr, n, ranges)
    for point in points(ranges):
        value = evaluate(expr, point)
        assert evaluate(quotient, point) == value // n
        assert evaluate(remainder, point) == value % n


@settings(max_examples=120, deadline=None)
@given(expressions(), all_ranges)
def test_bounds_hold(expr: Expr, ranges: dict) -> None:
    extent = bounds(expr, ranges)
    assert extent is not None
    values = [evaluate(expr, p) for p in points(ranges)]
    assert extent[0] <= min(values) and max(values) <= extent[1]


@settings(max_examples=120, deadline=None)
@given(expressions(), all_ranges, st.integers(2, 5))
def test_rewrite_after_a_split(expr: Expr, ranges: dict, part: int) -> None:
    """``p0 = part * h + l`` gives the same value at the same place."""
    high, low = symbol("p0h"), symbol("p0l")
    wide = {**ranges, X: ranges[X] * part}
    split = {high: ranges[X], low: part, Y: ranges[Y], Z: ranges[Z]}
    changed = rewrite(expr, {X: part * high + low}, split)
    assert X not in changed.free_symbols
    for point in points(split):
        whole = {X: part * point[high] + point[low], Y: point[Y], Z: point[Z]}
        assert whole[X] < wide[X]
        assert evaluate(changed, point) == evaluate(expr, whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_ravel_and_unravel_are_inverse(shape: list[int]) -> None:
    symbols = [symbol(f"p{k}") for k in range(len(shape))]
    ranges = dict(zip(symbols, shape))
    coords = unravel(ravel(symbols, shape), shape, ranges)
    for point in points(ranges):
        assert [evaluate(c, point) for c in coords] == [point[s] for s in symbols]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_unravel_of_a_flat_axis(shape: list[int], data) -> None:
    flat = symbol("p0")
    total = prod(shape)
    for k, coords in enumerate([unravel(flat, shape, {flat: total})]):
        seen = [tuple(evaluate(c, {flat: position}) for c in coords) for position in range(total)]
        assert seen == list(product(*[range(n) for n in shape])), k


@settings(max_examples=100, deadline=None)
@given(expressions(), all_ranges)
def test_affine_parts_add_up(expr: Expr, ranges: dict) -> None:
    parts, constant, others = affine(expr)
    for point in points(ranges):
        total = constant + sum(c * point[s] for s, c in parts.items()) + sum(evaluate(o, point) for o in others)
        assert total == evaluate(expr, point)


@pytest.mark.parametrize(
    "expr, n, expected", [(4 * X + Y, 4, X), (4 * X + Y + 8, 4, X + 2), (12 * X + 3 * Y, 12, X), (Y, 4, Integer(0))]
)
def test_divisions_that_vanish(expr: Expr, n: int, expected: Expr) -> None:
    """With ``p1 < 4`` nothing of the division is left."""
    assert floordiv(expr, n, {X: 100, Y: 4}) == expected


def test_remainder_that_vanishes() -> None:
    assert mod(4 * X + Y, 4, {X: 100, Y: 4}) == Y
    assert mod(12 * X + 3 * Y, 12, {X: 100, Y: 4}) == 3 * Y
    assert mod(X, 4, {X: 100}) == Mod(X, Integer(4))


def test_dot_is_a_storage_offset() -> None:
    assert dot((X, Y), (10, 1), 3) == 10 * X + Y + 3


def parts_of(expr: Expr, sizes: list[int], nested: bool) -> Expr:
    """``expr`` taken apart in mixed radix and put together again, with nothing simplified."""
    total, stride, rest = Integer(0), 1, expr
    for size in sizes:
        total += stride * Mod(rest if nested else FloorDiv(expr, Integer(stride)), Integer(size))
        stride *= size
        rest = FloorDiv(rest, Integer(size))
    return total + stride * FloorDiv(expr, Integer(stride))


radices = st.lists(st.integers(2, 8), min_size=1, max_size=3)


@settings(max_examples=120, deadline=None)
@given(affine_expressions(), radices, all_ranges, coefficients, affine_expressions(), st.booleans())
def test_mixed_radix_keeps_values(expr: Expr, sizes: list[int], ranges: dict, c: int, other: Expr, nested) -> None:
    apart = sympy.expand_mul(c * parts_of(expr, sizes, nested)) + other
    whole = joined(rewrite(apart, {}, ranges), ranges)
    for p in points(ranges):
        assert evaluate(whole, p) == c * evaluate(expr, p) + evaluate(other, p)


@settings(max_examples=60, deadline=None)
@given(st.integers(-40, 40), radices, st.integers(-3, 3).filter(bool), st.booleans())
def test_mixed_radix_is_joined(offset: int, sizes: list[int], c: int, nested: bool) -> None:
    ranges = {X: 2000, Y: 5}
    apart = sympy.expand_mul(c * parts_of(X + offset, sizes, nested)) + 3 * Y
    assert joined(rewrite(apart, {}, ranges), ranges) == sympy.expand(c * (X + offset)) + 3 * Y


@settings(max_examples=150, deadline=None)
@given(expressions(), expressions(), st.integers(1, 12), st.integers(1, 4), coefficients, all_ranges)
def test_joined_and_unwrapped_keep_values(expr: Expr, other: Expr, n: int, times: int, c: int, ranges: dict) -> None:
    """A division and the remainder of the same, whole or scaled, and a remainder inside of another."""
    sums = c * n * FloorDiv(expr, Integer(n)) + c * Mod(expr, Integer(n)) + other
    inside = times * Mod(expr, Integer(n)) + other
    result, wrapped = joined(sympy.expand_mul(sums), ranges), mod(inside, n, ranges)
    for p in points(ranges):
        assert evaluate(result, p) == evaluate(sums, p)
        assert evaluate(wrapped, p) == evaluate(inside, p) % n


def test_windows_of_a_rolled_image_are_places_of_it() -> None:
    """Swin's: rows rolled by three, cut into windows of seven, and looked for in the image before the roll."""
    ranges = {X: 8, Y: 7}
    place = Mod(7 * X + Y + 53, Integer(56))
    windows = 7 * floordiv(place, 7, ranges) + mod(place, 7, ranges)
    assert joined(windows, ranges) == place
    assert mod(windows + 3, 56, ranges) == 7 * X + Y


def test_remainder_of_a_remainder() -> None:
    ranges = {X: 100}
    assert mod(Mod(X, Integer(12)) + 5, 4, ranges) == mod(X + 1, 4, ranges)
    assert mod(2 * Mod(X, Integer(6)) + 1, 4, ranges) == mod(2 * X + 1, 4, ranges)
    assert mod(Mod(X, Integer(6)) + 1, 4, ranges).count(Mod) == 2


def test_places_in_a_row_are_small_beside_its_number() -> None:
    """Volumes of 31 × 63 × 63, flat, in seven parts of 279 rows."""
    row, place, part, ranges = symbol("row"), symbol("place"), X, {X: 7, symbol("row"): 279, symbol("place"): 63}
    flat = 17577 * part + 63 * row + place
    assert mod(flat, 3969, ranges) == 63 * mod(279 * part + row, 63, ranges) + place
    assert floordiv(flat, 3969, ranges) == floordiv(279 * part + row, 63, ranges)
    assert joined(3969 * floordiv(flat, 3969, ranges) + mod(flat, 3969, ranges), ranges) == flat
