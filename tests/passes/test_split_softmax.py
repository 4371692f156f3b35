"""Softmax denominators in parts: the same numbers, whatever the parts hold, and one read of each part."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from rooffuse.passes import RowLimits, split_softmax, verify
from rooffuse.passes.decompose import decompose
from rooffuse.passes.graph import packet_name
from rooffuse.passes.redundant import redundant
from torch.fx.experimental.proxy_tensor import make_fx


def split(fn, x, programs=264):
    gm = redundant(decompose(make_fx(fn, tracing_mode="fake")(x)))
    before = sum(packet_name(n.target) == "aten.amax" for n in gm.graph.nodes)
    gm = split_softmax(gm, RowLimits(programs))
    gm.recompile()
    verify(gm)
    return gm, sum(packet_name(n.target) == "aten.amax" for n in gm.graph.nodes) - before


def everything(x):
    return F.softmax(x, -1), F.log_softmax(x, -1)


@pytest.mark.parametrize("shape", [(2, 65536), (1, 50257), (3, 40009), (70001,)])
def test_parts_give_the_whole(shape):
    x = torch.randn(shape) * 5 - 200
    gm, added = split(everything, x)
    assert added == 2
    for ours, exact in zip(gm(x), everything(x.double())):
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours.double(), exact, rtol=2e-5, atol=1e-30)


def test_columns_and_several_dimensions():
    def fn(x):
        return torch.exp(x - x.amax((0, 2), keepdim=True)).sum((0, 2))

    x = torch.randn(5000, 3, 20)
    gm, added = split(fn, x)
    assert added == 1
    torch.testing.assert_close(gm(x).double(), fn(x.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [slice(0, 10), slice(0, 30000), slice(0, None)], ids=["few", "parts", "all"])
def test_what_is_not_finite_comes_out_as_it_did(value, where):
    x = torch.randn(2, 65536)
    x[0, where] = value
    gm, _ = split(everything, x)
    for ours, exact in zip(gm(x), everything(x)):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("shape", [(512, 65536), (2, 1000), ()], ids=["many", "short", "scalar"])
def test_other_rows_are_left_alone(shape):
    assert split(everything, torch.empty(shape))[1] == 0


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e30, -1000.0])
@pytest.mark.parametrize("where", [slice(0, 10), slice(0, 30000), slice(0, None)], ids=["few", "parts", "all"])
def test_logarithms_of_sums(value, where):
    """Their maximum is taken to be zero where it is infinite, of a part as of the whole."""
    x = torch.randn(2, 65536) - 500
    x[0, where] = value
    x[1, :20000] = -math.inf
    gm, added = split(lambda x: torch.logsumexp(x, -1), x)
    assert added == 1
    torch.testing.assert_close(gm(x), torch.logsumexp(x, -1), rtol=1e-5, atol=1e-6, equal_nan=True)
