"""Top-k: short ones become primitives that take each place once, long ones stay the library's."""

from __future__ import annotations

import pytest
import torch
from conftest import single_call, targets, trace
from rooffuse.passes.decompose import decompose
from rooffuse.passes.pipeline import copy_graph

aten = torch.ops.aten


@pytest.mark.parametrize("values", [
    [3.0, float("nan"), 1.0, float("nan"), 5.0], [float("-inf")] * 5, [2.0, float("-inf"), 2.0, float("-inf"), 2.0],
    [float("inf"), 1.0, float("inf"), float("nan"), 0.0]], ids=["nan", "nothing", "equals", "infinite"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_selection_takes_each_place_once_and_nan_first(values, k):
    x = torch.tensor([values, values[::-1]])
    after = decompose(copy_graph(single_call(aten.topk.default, x, k)))
    after.recompile()
    chosen, places = after(x)
    assert all(len(set(row)) == k for row in places.tolist())
    torch.testing.assert_close(chosen, torch.topk(x, k).values, equal_nan=True)
    torch.testing.assert_close(x.gather(1, places), chosen, equal_nan=True)


@pytest.mark.parametrize("shape, k", [((4, 4096), 8), ((4, 64), 9), ((4, 20000), 1)])
def test_long_selections_are_the_librarys(shape, k):
    gm = trace(lambda x: torch.topk(x, k), torch.randn(shape))
    assert targets(decompose(copy_graph(gm))) == targets(gm)
