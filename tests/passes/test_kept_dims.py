"""A reduction with and without the reduced dimensions is one."""
from __future__ import annotations

import pytest
import torch
from rooffuse.passes import kept_dims, verify
from torch.fx.experimental.proxy_tensor import make_fx


def merged(fn, *inputs):
    gm = kept_dims(make_fx(fn, tracing_mode="fake")(*inputs))
    gm.graph.eliminate_dead_code()
    gm.recompile()
    verify(gm)
    for ours, theirs in zip(gm(*inputs), fn(*inputs)):
        assert ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    return sum(str(n.target).startswith(("aten.sum", "aten.mean", "aten.amax", "aten.amin")) for n in gm.graph.nodes)


@pytest.mark.parametrize("dims", [[0], [-1], [0, 2], [2, -3]])
@pytest.mark.parametrize("reduce", [torch.mean, torch.sum, torch.amax, torch.amin])
@pytest.mark.parametrize("kept_first", [True, False])
def test_one_reduction_for_both(reduce, dims, kept_first):
    def fn(x):
        pair = [reduce(x, dims, keepdim=k) for k in (kept_first, not kept_first)]
        kept, flat = pair if kept_first else reversed(pair)
        return x - kept, flat * 2, flat

    assert merged(fn, torch.randn(4, 5, 6)) == 1
    assert merged(fn, torch.randn(2, 3, 5, 6).permute(0, 3, 1, 2)[:, 1]) == 1


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum])
def test_a_reduction_of_everything_is_one_along_all_dimensions(reduce):
    def fn(x):
        return x - reduce(x, [0, 1, 2], keepdim=True), reduce(x) * 2

    assert merged(fn, torch.randn(4, 5, 6)) == 1
    assert merged(lambda x: (reduce(x, [0, -2]) + 1, reduce(x) * 2), torch.randn(4, 5, 6)) == 2
    assert merged(lambda x: (reduce(x, [0, -1]) + 1, reduce(x, []) * 2, x), torch.randn(4, 5)) == 1


def test_what_differs_otherwise_or_is_returned_as_two_tensors():
    x = torch.randn(4, 6)
    assert merged(lambda x: (x.sum(0), x.sum(1, keepdim=True) + 1), x) == 2
    assert merged(lambda x: (x.sum(0, dtype=torch.float64), x.sum(0, keepdim=True) + 1), x) == 2
    assert merged(lambda x: (x.mean(0), x.mean(0, keepdim=True)), x) == 2
    assert merged(lambda x: (x.amax(0) + 1, x.amin(0, keepdim=True)), x) == 2


def test_numbers_are_left_alone():
    assert merged(lambda x: (x.sum(-1) + 1, x.sum(-1, keepdim=True)), torch.tensor(2.0)) == 2
