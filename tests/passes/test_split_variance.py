from __future__ import annotations

import pytest
import torch
from rooffuse.passes import RowLimits, split_variance, verify
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten


def normalised(dims):
    def fn(x):
        mean = aten.mean.dim(x, dims, True)
        away = aten.sub.Tensor(x, mean)
        variance = aten.mean.dim(aten.mul.Tensor(away, away), dims, True)
        return aten.mul.Tensor(away, aten.rsqrt.default(variance)), mean, variance

    return fn


def split(fn, x, programs=264, row_elements=1024):
    gm = split_variance(make_fx(fn, tracing_mode="fake")(x), RowLimits(programs, row_elements))
    gm.recompile()
    verify(gm)
    return gm


@pytest.mark.parametrize(
    "shape,dims", [((8, 5, 300), [0, 2]), ((4, 4096), [1]), ((6, 512), [0, 1]), ((96, 7, 8, 8), [0, 2, 3])]
)
def test_parts_give_the_whole_variance(shape, dims):
    x = torch.randn(shape) * 3 + 100  # far from zero: a sum of squares would lose all digits
    gm = split(normalised(dims), x, row_elements=256)
    assert any(n.meta["val"].dim() == len(shape) + 1 for n in gm.graph.nodes if n.op == "call_function")
    for ours, exact in zip(gm(x), normalised(dims)(x.double())):
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours.double(), exact, rtol=2e-5, atol=2e-4)


def test_no_part_is_longer_than_what_stays_on_chip():
    gm = split(normalised([1]), torch.empty(512, 8192), row_elements=1024)
    cut = next(n for n in gm.graph.nodes if str(n.target).startswith("aten.reshape"))
    assert tuple(cut.meta["val"].shape) == (512, 8, 1024)


def test_columns_are_cut_where_a_program_has_several_side_by_side():
    gm = split(normalised([0]), torch.empty(4096, 2048), row_elements=32768)
    cut = next(n for n in gm.graph.nodes if str(n.target).startswith("aten.reshape"))
    assert tuple(cut.meta["val"].shape) == (8, 512, 2048)
    short = make_fx(normalised([0]), tracing_mode="fake")(torch.empty(512, 65536))
    before = str(short.graph)
    assert str(split_variance(short, RowLimits(264, 32768)).graph) == before


@pytest.mark.parametrize("shape,programs", [((512, 1024), 264), ((8, 300), 264), ((512, 8191), 264)])
def test_short_rows_and_those_that_nothing_divides_are_left_alone(shape, programs):
    gm = make_fx(normalised([1]), tracing_mode="fake")(torch.empty(shape))
    before = str(gm.graph)
    assert str(split_variance(gm, RowLimits(programs, 1024)).graph) == before


def test_a_sum_of_other_squares_is_left_alone():
    def fn(x, y):
        away = x - aten.mean.dim(y, [1], True)
        return aten.sum.dim_IntList(away * away, [1])

    gm = make_fx(fn, tracing_mode="fake")(torch.empty(4, 4096), torch.empty(4, 4096))
    before = str(gm.graph)
    assert str(split_variance(gm, RowLimits(264, 1024)).graph) == before


def test_two_variances_may_have_one_mean():
    def fn(x):
        away = x - x.mean(1, keepdim=True)
        squares = away * away
        return squares.mean(1), squares.sum(1), (away**2).sum(1), away

    x = torch.randn(4, 4096)
    for ours, theirs in zip(split(fn, x)(x), fn(x)):
        torch.testing.assert_close(ours, theirs)
