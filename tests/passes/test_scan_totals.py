"""The last element of a scan is a reduction of what is scanned."""

from __future__ import annotations

import pytest
import torch
from conftest import targets, trace
from rooffuse.passes import PIPELINE, run_passes, scan_totals
from rooffuse.passes.running import running_max, running_min
from torch.utils._pytree import tree_leaves

REDUCED = {
    "slice": lambda x: x.cumsum(1)[:, -1:] - x,
    "select": lambda x: x.cumsum(1)[:, -1] * 2,
    "by number": lambda x: x.cumsum(0)[4] * 2,
    "and the scan": lambda x: (c := x.cumsum(1), c[:, -1:] - c)[1],
    "seen through views": lambda x: x * x.cumsum(1)[:, -1].unsqueeze(0).t().expand(5, 7),
    "products": lambda x: x.cumprod(-1)[:, -1] + 1,
    "largest": lambda x: running_max(x, 1)[:, -1] + 1,
    "smallest": lambda x: running_min(x, 0)[-1:] + x,
    "logarithms": lambda x: x.logcumsumexp(1)[:, -1:] + x,
    "truth": lambda x: (x > 0.8).cumsum(1)[:, -1] + 1,
    "transposed": lambda x: x.t().cumsum(1)[:, -1:] + 1,
    "widened": lambda x: x.cumsum(1, dtype=torch.float64)[:, -1:] + 1,
}
KEPT = {
    "not the last": lambda x: x.cumsum(1)[:, -2] + 1,
    "the last two": lambda x: x.cumsum(1)[:, -2:] + 1,
    "behind the end": lambda x: x.cumsum(1)[:, 13:] + 1,
    "none": lambda x: x.cumsum(1)[:, -1:-1] + 1,
    "another dimension": lambda x: x.cumsum(1)[-1] + 1,
    "returned": lambda x: x.cumsum(1)[:, -1],
    "returned through a view": lambda x: x.cumsum(1)[:, -1].unsqueeze(0),
    "by strides": lambda x: x.cumsum(1)[:, -1].as_strided((2,), (7,)) + 1,
}


def _scans(gm):
    return [name for name in targets(gm) if "cum" in name or "running" in name]


@pytest.mark.parametrize("name", REDUCED)
def test_the_last_element_is_reduced(name):
    x = torch.rand(5, 7) + 0.5
    gm = run_passes(trace(REDUCED[name], x), PIPELINE)
    assert len(_scans(gm)) == (name == "and the scan")
    for ours, eager in zip(tree_leaves(gm(x)), tree_leaves(REDUCED[name](x)), strict=True):
        assert ours.stride() == eager.stride() and ours.dtype == eager.dtype
        torch.testing.assert_close(ours, eager)
    for node in gm.graph.nodes:
        if node.op == "call_function" and "view" in str(node.target):
            assert node.meta["val"].stride() == node.target(*torch.fx.node.map_arg(
                node.args, lambda n: n.meta["val"])).stride()


@pytest.mark.parametrize("name", KEPT)
def test_other_elements_and_what_the_caller_sees_stay(name):
    gm = trace(KEPT[name], torch.rand(5, 7))
    assert targets(scan_totals(gm)) == targets(trace(KEPT[name], torch.rand(5, 7)))


def test_long_rows_are_not_read_twice():
    def function(x):
        return x.cumsum(1)[:, -1:] + 1

    assert _scans(run_passes(trace(function, torch.rand(2, 40000)), PIPELINE))
