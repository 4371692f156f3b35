"""Places that are kept within an image or mirrored at its edge: known to be inside, and straight in pieces of a row."""
from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.conditions import bent_places
from rooffuse.codegen.index import extent_of, symbol
from rooffuse.codegen.ir import Axis, Compute, Const, Index, Nest, Stmt, Store
from sympy import Integer
from torch import Tensor

from .kernels import assert_same, checked, lower, printed, run_interpreter, run_triton

P = symbol("p0")
WHOLE: dict[str, Callable[..., int]] = {
    "cast": lambda a: a, "neg": lambda a: -a, "abs": abs, "add": lambda a, b: a + b, "sub": lambda a, b: a - b,
    "max": max, "min": min}


def random_body(chosen: random.Random) -> list[Stmt]:
    exprs = [chosen.choice([P, P - 1, 2 * P - 3, 4 - P, P + 2]) for _ in range(chosen.randint(1, 3))]
    body: list[Stmt] = [Index(f"v{k}", torch.int64, e) for k, e in enumerate(exprs)]
    body += [Const(f"c{k}", torch.int64, chosen.randint(-5, 9)) for k in range(2)]
    for k in range(chosen.randint(1, 5)):
        op = chosen.choice(list(WHOLE))
        args = [chosen.choice(body).name for _ in range(1 if op in ("cast", "neg", "abs") else 2)]  # type: ignore[union-attr]
        body.append(Compute(f"w{k}", torch.int64, op, tuple(args)))
    return body


def values(body: list[Stmt], at: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for stmt in body:
        if isinstance(stmt, Index):
            found[stmt.name] = int(stmt.expr.xreplace({P: Integer(at)}))
        elif isinstance(stmt, Const):
            found[stmt.name] = int(stmt.value)
        elif isinstance(stmt, Compute):
            found[stmt.name] = WHOLE[stmt.op](*[found[a] for a in stmt.args])
    return found


@pytest.mark.parametrize("size", [1, 2, 5, 9, 17])
def test_pieces_are_what_the_operations_come_to(size: int) -> None:
    chosen, seen = random.Random(size), 0
    for _ in range(300):
        body = random_body(chosen)
        axis = Axis(P, size, False)
        bent = bent_places(Nest((axis,), (*body, Store("o", P, body[-1].name))), axis)
        seen += len(bent)
        for name, pieces in bent.items():
            assert [k for low, high, _ in pieces for k in range(low, high)] == list(range(size))
            for low, high, place in pieces:
                assert all(int(place.xreplace({P: Integer(k)})) == values(body, k)[name] for k in range(low, high))
    assert seen > 20 or size == 1


@pytest.mark.parametrize("op", WHOLE)
def test_bounds_are_those_of_all_values(op: str) -> None:
    chosen = random.Random(0)
    for _ in range(200):
        a, b = (tuple(sorted(chosen.randint(-4, 4) for _ in range(2))) for _ in range(2))
        pairs = [(x, y) for x in range(a[0], a[1] + 1) for y in range(b[0], b[1] + 1)]
        found = [WHOLE[op](x) if op in ("cast", "neg", "abs") else WHOLE[op](x, y) for x, y in pairs]
        args = [a] if op in ("cast", "neg", "abs") else [a, b]
        assert extent_of(op, args) == (min(found), max(found))  # type: ignore[arg-type]


def neighbours(x: Tensor) -> Tensor:
    at = torch.arange(x.shape[-1])
    before, after = (at - 1).clamp(min=0), (at + 1).clamp(max=x.shape[-1] - 1)
    return x[..., before] + x[..., after] - 2 * x


def mirrored(x: Tensor) -> Tensor:
    n = x.shape[-1] - 1
    return x[..., n - (n - (torch.arange(n + 7) - 3).abs()).abs()] * 2


def windows_at_edges(x: Tensor) -> Tensor:
    """Sums over what is near, of which the ends are taken again."""
    at = (torch.arange(x.shape[-1])[:, None] + torch.arange(-2, 3)).clamp(0, x.shape[-1] - 1)
    return x[:, at].sum(-1)


def from_the_end(x: Tensor) -> Tensor:
    return x[:, torch.arange(x.shape[-1]) - 3] + 1


def edges_of_a_border(x: Tensor) -> Tensor:
    y = F.pad(F.pad(x, (1, 2)), (1, 3, 2, 0), mode="replicate")
    return y.floor() + y


@pytest.mark.parametrize("sizes", [(7, 6), (33, 65)])
def test_channels_side_by_side_are_each_read_under_the_condition(sizes: tuple[int, int]) -> None:
    """Of a border, of which the edge is repeated: g++ 12 would give all vectors the condition of the first channel."""
    x = torch.randn(3, 3, *sizes).to(memory_format=torch.channels_last)
    found = torch.compile(edges_of_a_border, backend="rooffuse", dynamic=False, options={"strict": True})(x)
    torch.testing.assert_close(found, edges_of_a_border(x))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> DiskCache:
    return DiskCache(tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("fn", [neighbours, mirrored, windows_at_edges, from_the_end])
@pytest.mark.parametrize("size", [8, 33, 300])
def test_results_are_those_of_eager_execution(fn: Callable[..., Tensor], size: int, cache: DiskCache,
                                              tmp_path: Path) -> None:
    x = torch.randn(5, size)
    checked(fn, x, cache=cache)
    lowered = lower(fn, x)
    assert_same(run_interpreter(lowered, [x]), (fn(x),))
    assert_same(run_triton(lowered, [x], DiskCache(tmp_path)), (fn(x),))


@pytest.mark.parametrize("fn", [neighbours, mirrored])
def test_places_known_to_be_inside_are_neither_checked_nor_looked_up(fn: Callable[..., Tensor]) -> None:
    text = printed(fn, torch.randn(5, 300))
    assert "rf_bounded" not in text and "rf_within" not in text
    middle = max(text.split("for (int64_t "), key=lambda loop: "< 299" in loop)
    assert "i0[(-3 + (300 * p0) + p1)]" in text if fn is mirrored else "i0[(-1 + (300 * p0) + p1)]" in middle
