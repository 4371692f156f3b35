"""What is scattered onto zeros and added to a tensor is scattered onto that."""

from __future__ import annotations

import pytest
import torch
from conftest import targets, trace
from rooffuse.passes import PIPELINE, added_scatters, run_passes

IDS = torch.tensor([[1, 4, 4], [0, 4, 2]])
aten = torch.ops.aten


def _table(x, ids, padding=-1):
    return aten.embedding_dense_backward(x.reshape(2, 3, 5), ids, 6, padding, False)


def _product(x):
    return x @ x[:5]


ADDED = {
    "tied embedding": lambda x, i: _product(x) + _table(x, i),
    "the other way round": lambda x, i: _table(x, i) + _product(x),
    "padded": lambda x, i: _product(x) + _table(x, i, padding=4),
    "several": lambda x, i: (_product(x) + _table(x, i)) + _table(x.sin(), i.flip(0)),
    "of two": lambda x, i: _table(x, i) + _table(x.sin(), i.flip(0)),
    "computed": lambda x, i: x.cos() + _table(x, i),
    "put": lambda x, i: _product(x) + torch.zeros(6, 5).index_put((i[0],), x[:3], accumulate=True),
    "rows": lambda x, i: _product(x) + torch.zeros(6, 5).index_add(0, i[1], x[:3], alpha=2),
}
APART = {
    "an input": lambda x, i: x + _table(x, i),
    "read again": lambda x, i: (p := _product(x), p + _table(x, i)),
    "the table read again": lambda x, i: (t := _table(x, i), _product(x) + t),
    "scaled": lambda x, i: torch.add(_product(x), _table(x, i), alpha=3),
    "broadcast": lambda x, i: _product(x)[:1].clone() + _table(x, i),
    "onto ones": lambda x, i: _product(x) + torch.ones(6, 5).index_put((i[0],), x[:3], accumulate=True),
    "overwritten": lambda x, i: _product(x) + torch.zeros(6, 5).index_put((i[0, :2],), x[:2]),
    "narrow": lambda x, i: (_product(x).bfloat16() + _table(x, i).bfloat16()),
    "transposed": lambda x, i: _product(x)[:5].t() + _table(x, i)[:5],
}


def _sums(gm):
    return targets(gm).count("aten.add.Tensor")


@pytest.mark.parametrize("name", ADDED)
def test_it_is_added_where_the_tensor_lies(name):
    x = torch.randn(6, 5)
    gm = run_passes(trace(ADDED[name], x, IDS), PIPELINE)
    assert _sums(gm) == 0
    ours, eager = gm(x, IDS), ADDED[name](x, IDS)
    assert ours.stride() == eager.stride()
    torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("name", APART)
def test_others_stay_sums(name):
    x = torch.randn(6, 5)
    gm = trace(APART[name], x, IDS)
    before = targets(gm)
    assert targets(added_scatters(gm)) == before
    assert "aten.add.Tensor" in before
