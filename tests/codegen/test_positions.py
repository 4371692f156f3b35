"""Places computed in floating point: divisions where they are ones at every place, left alone where they aren't."""
from __future__ import annotations

import pytest
import torch
from rooffuse.codegen.builder import NestBuilder
from rooffuse.codegen.index import FloorDiv, symbol
from rooffuse.codegen.ir import Axis, Index
from sympy import Expr


def place_of(size: int, scale: float, offset: float = 0.0, dtype: torch.dtype = torch.float32) -> Expr | None:
    """What ``int((position + offset) * scale)`` is taken for."""
    x = symbol("x")
    b = NestBuilder((Axis(x, size),))
    position = b.cast(b.index(x), dtype)
    value = b.cast(b.compute("mul", b.compute("add", position, b.const(offset, dtype)), b.const(scale, dtype)),
                   torch.int64)
    stmt = next(s for s in b.body if s.name == value)
    return stmt.expr if isinstance(stmt, Index) else None


@pytest.mark.parametrize("size, scale, n", [(112, 0.5, 2), (96, 0.25, 4), (30, 0.2, 5), (9, 1 / 3, 3)])
def test_a_division_is_recognised(size, scale, n):
    assert place_of(size, scale) == FloorDiv(symbol("x"), n)


@pytest.mark.parametrize("size, scale, offset, n, k", [(5, 3.0, 0.5, 3, 1), (8, 2.0, 0.0, 2, 0), (4, 1.0, 7.0, 1, 7)])
def test_steps_are_recognised(size, scale, offset, n, k):
    assert place_of(size, scale, offset) == n * symbol("x") + k


@pytest.mark.parametrize("size, scale, offset", [
    (7, 5 / 7, 0.0), (6, 0.5, 3.0), (112, 0.5, 1.0), (8, 0.0, 0.0), (1 << 17, 0.5, 0.0)])
def test_what_differs_anywhere_is_computed(size, scale, offset):
    assert place_of(size, scale, offset) is None


def test_rounding_is_that_of_the_type():
    """0.1 in float32 is above a tenth: at every place that is tried both agree, or none is taken."""
    for size in (100, 1000, 60000):
        x = torch.arange(size)
        exact = torch.equal((x.float() * 0.1).long(), x // 10)
        assert (place_of(size, 0.1) is not None) == exact
