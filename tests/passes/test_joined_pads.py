"""Sums of tensors that are zero but for a part are concatenations; pads of reduced rows are stored with these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_results, targets, trace
from rooffuse.passes.joined_pads import joined_pads
from rooffuse.passes.padded_results import padded_results
from rooffuse.passes.pipeline import copy_graph
from rooffuse.passes.verify import verify
from torch import Tensor
from torch.fx import GraphModule

from tests.fuser.graphs import floor_and_steps
from tests.models.eager import randn, same_as_eager

aten = torch.ops.aten
part, row = aten.slice_scatter.default, aten.select_scatter.default
X, Y = torch.randn(4, 7), torch.randn(4, 7)

Function = Callable[..., Any]


def run(gm: GraphModule, rule: Function) -> GraphModule:
    after = rule(copy_graph(gm))
    after.recompile()
    verify(after)
    return after


def zeros() -> Tensor:
    return aten.full.default([4, 7], 0, dtype=torch.float32)


def slices(x: Tensor, y: Tensor) -> Tensor:
    return aten.add(part(zeros(), x[:, :3], 1, 0, 3), part(zeros(), y[:, 3:], 1, 3))


def slices_from_the_end_with_a_gap(x: Tensor, y: Tensor) -> Tensor:
    return aten.add(part(zeros(), x[:, :2], 1, -2), part(zeros(), y[:, :3], 1, 0, -4))


def the_same_slice_twice(x: Tensor, y: Tensor) -> Tensor:
    first = aten.add(part(zeros(), x[:, :3], 1, 0, 3), part(zeros(), y[:, 3:], 1, 3))
    return aten.add(first, part(zeros(), y[:, :3], 1, 0, 3))


def rows(x: Tensor, y: Tensor) -> Tensor:
    return aten.add(aten.add(row(zeros(), x[0], 0, 2), row(zeros(), y[3], 0, -1)), part(zeros(), y[:2], 0, 0, 2))


def even_and_odd(x: Tensor, y: Tensor) -> Tensor:
    """As gates that take turns with what they are for."""
    wide = aten.full.default([4, 14], 0, dtype=torch.float32)
    return aten.add(part(wide, x, 1, 0, None, 2), part(wide, y, 1, 1, 1 << 62, 2))


def every_third(x: Tensor, y: Tensor) -> Tensor:
    wide = aten.full.default([12, 7], 0, dtype=torch.float32)
    return aten.add(part(wide, x, 0, 2, 12, 3), part(wide, y, 0, 0, 10, 3))


def pads_and_another(x: Tensor, y: Tensor) -> Tensor:
    first = aten.add(aten.constant_pad_nd(x[:, 1:4], [0, 4]), y)
    return aten.add(first, aten.constant_pad_nd(x[:, 4:], [4, 0]))


def concatenations(x: Tensor, y: Tensor) -> Tensor:
    some = aten.full.default([4, 2], 0, dtype=torch.float32)
    return aten.add(aten.cat([some, x[:, :5]], 1), aten.cat([y[:, 5:], aten.full.default([4, 5], 0)], 1))


@pytest.mark.parametrize("fn", [slices, slices_from_the_end_with_a_gap, the_same_slice_twice, rows, even_and_odd,
                                every_third, pads_and_another,
                                concatenations], ids=lambda fn: fn.__name__)
def test_sums_of_padded_tensors_are_concatenations(fn: Function) -> None:
    before = trace(fn, X, Y)
    after = run(before, joined_pads)
    left = targets(after)
    assert left.count("aten.cat.default") == 1 and not any("scatter" in t or "pad" in t for t in left)
    assert_same_results(before, after, (X, Y))


def overlapping(x: Tensor, y: Tensor) -> Tensor:
    return aten.add(part(zeros(), x[:, :4], 1, 0, 4), part(zeros(), y[:, 3:], 1, 3))


def along_others(x: Tensor, y: Tensor) -> Tensor:
    return aten.add(part(zeros(), x[:, :4], 1, 0, 4), part(zeros(), y[2:], 0, 2))


def into_ones(x: Tensor, y: Tensor) -> Tensor:
    return aten.add(part(aten.full.default([4, 7], 1.0), x[:, :4], 1, 0, 4), part(zeros(), y[:, 4:], 1, 4))


def other_steps(x: Tensor, y: Tensor) -> Tensor:
    wide = aten.full.default([4, 14], 0, dtype=torch.float32)
    return aten.add(part(wide, x, 1, 0, None, 2), part(wide, y, 1, 7, 14))


def steps_of_a_part(x: Tensor, y: Tensor) -> Tensor:
    return aten.add(part(zeros(), x[:, :4], 1, 0, None, 2), part(zeros(), y[:, :3], 1, 1, None, 2))


def read_by_others(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    first = part(zeros(), x[:, :4], 1, 0, 4)
    return aten.add(first, part(zeros(), y[:, 4:], 1, 4)), first


def beside_two(x: Tensor, y: Tensor) -> Tensor:
    """Added up in another order, they may be rounded to others."""
    return aten.add(aten.add(aten.add(x, part(zeros(), x[:, :4], 1, 0, 4)), y), part(zeros(), y[:, 4:], 1, 4))


def twice_beside_another(x: Tensor, y: Tensor) -> Tensor:
    return aten.add(aten.add(y, part(zeros(), x[:, :4], 1, 0, 4)), part(zeros(), y[:, :4], 1, 0, 4))


@pytest.mark.parametrize("fn", [overlapping, along_others, into_ones, other_steps, steps_of_a_part, read_by_others,
                                beside_two, twice_beside_another],
                         ids=lambda fn: fn.__name__)
def test_other_sums_stay(fn: Function) -> None:
    before = trace(fn, X, Y)
    assert targets(run(before, joined_pads)) == targets(before)


def gates(z: Tensor, c: Tensor) -> Tensor:
    i, f, g, o = (z[:, k * c.shape[1]:(k + 1) * c.shape[1]] for k in range(4))
    return (torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)) * torch.sigmoid(o)


def gate_gradients(z: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    return torch.func.grad(lambda z, c: (gates(z, c) * c).sum(), argnums=(0, 1))(z, c)


def projected(z: Tensor) -> Tensor:
    """Normalised queries and keys of one projection, and its values."""
    q, k, v = z[:, :64], z[:, 64:96], z[:, 96:]
    return (q * torch.rsqrt(q.square().mean(-1, keepdim=True))).sum() * (k * torch.rsqrt(
        k.square().mean(-1, keepdim=True))).square().sum() + v.square().sum()


def test_gradients_of_slices_are_stored_where_they_are_computed() -> None:
    z, c = torch.empty(16384, 4096), torch.empty(16384, 1024)
    moved, launches = floor_and_steps(gate_gradients, z, c, written=z.nbytes + c.nbytes)
    assert moved < 1.01 and launches == 1


@pytest.mark.parametrize("fn,make", [
    (gate_gradients, randn((37, 68), (37, 17))),
    (torch.func.grad(projected), randn((33, 128))),
], ids=["gates", "projection"])
def test_gradients_of_slices_are_those_of_eager_execution(fn: Function, make: Callable[[], list[Any]]) -> None:
    same_as_eager(fn, make)


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def into_zeros(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], x.shape[1] + 9)
    out[:, 4:-5] = rms(x)
    return out


PADDED: dict[str, Function] = {
    "norm": lambda x: F.pad(rms(x), (0, 192)),
    "rows and columns": lambda x: F.pad(rms(x), (3, 5, 2, 0), value=1.5),
    "softmax": lambda x: F.pad(x.softmax(-1), (64, 0), value=float("-inf")),
    "beside sums": lambda x: (F.pad(x, (0, 112)), (x * x).sum(-1)),
    "both": lambda x: (y := rms(x), F.pad(y, (0, 16)).to(torch.bfloat16)),
    "written into zeros": into_zeros,
}


@pytest.mark.parametrize("name", PADDED)
def test_pads_of_reduced_rows_are_stored_with_them(name: str) -> None:
    fn, x = PADDED[name], torch.empty(8192, 2880)
    results = fn(x)
    written = sum(r.nbytes for r in (results if isinstance(results, tuple) else (results,)))
    moved, launches = floor_and_steps(fn, x, written=written)
    assert moved < 1.001 and launches == 1
    same_as_eager(fn, randn((13, 67)))


def lowers(node: Any) -> bool:
    return "mm" not in str(node.target)


@pytest.mark.parametrize("fn,joined", [
    (lambda x, y: F.pad(rms(x), (1, 2)), True),
    (lambda x, y: F.pad(rms(x), (1, 0)) @ F.pad(y, (0, 1)).t(), True),  # the library reads it from memory
    (lambda x, y: F.pad(rms(x), (1, 2)) * 2, False),  # a kernel reads it
    (lambda x, y: F.pad(x * y, (1, 2)), False),  # without rows
    (lambda x, y: F.pad(rms(x), (1, -2)), False),  # cut off
    (lambda x, y: F.pad(rms(x).view(2, 2, 7), (1, 2, 1, 2, 1, 2)), False),  # all around
])
def test_which_pads_are_concatenations(fn: Function, joined: bool) -> None:
    before = trace(fn, X, Y)
    after = run(before, lambda gm: padded_results(gm, lowers))
    assert ("aten.cat.default" in targets(after)) == joined
    assert_same_results(before, after, (X, Y))
