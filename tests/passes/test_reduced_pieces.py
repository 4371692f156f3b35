"""Reductions of concatenations that kernels compute are reductions of their pieces."""

from __future__ import annotations

import pytest
import torch
from conftest import targets, trace
from rooffuse.passes import PIPELINE, reduced_pieces, run_passes
from torch.utils._pytree import tree_leaves


def _both(x, dim):
    return torch.cat([x.sin(), x.cos()[:, :3], x], dim)


PIECES = {
    "rows": lambda x: (c := _both(x, 1), c.sum(0))[1],
    "and the whole": lambda x: (c := _both(x, 1), c.sum(0, keepdim=True)),
    "before": lambda x: torch.cat([x.sin(), x]).amax(1),
    "kept": lambda x: torch.cat([x.sin(), x]).mean(1, keepdim=True),
    "inner": lambda x: torch.cat([x[None].sin(), x[None]], 1).sum((0, 2)),
    "widened": lambda x: _both(x, 1).sum(0, dtype=torch.float64),
    "truth": lambda x: torch.cat([x > 0, x < 0], 1).sum(0),
    "types": lambda x: torch.cat([x.sin().bfloat16(), x], 1).amin(0),
    "seen through views": lambda x: torch.cat([x.sin().unsqueeze(1), x.unsqueeze(1)], 1).sum(0),
}
WHOLE = {
    "along": lambda x: _both(x, 1).sum(1),
    "all": lambda x: _both(x, 1).sum(),
    "from memory": lambda x: torch.cat([x, x[:, :3]], 1).sum(0),
    "by the library": lambda x: torch.cat([x.t() @ x, x[:, :7].t() @ x], 1).sum(0),
    "many": lambda x: torch.cat([x * k for k in range(9)], 1).sum(0),
    "not a sum": lambda x: _both(x, 1).prod(0),
}


def _sums_of_concatenations(gm):
    return [n for n in gm.graph.nodes if n.op == "call_function" and n.args and isinstance(n.args[0], torch.fx.Node)
            and "cat" in str(n.args[0].target) and any(s in str(n.target) for s in ("sum", "mean", "amax", "amin"))]


@pytest.mark.parametrize("name", PIECES)
def test_each_piece_is_reduced(name):
    x = torch.rand(5, 7) - 0.5
    gm = run_passes(trace(PIECES[name], x), PIPELINE)
    assert not _sums_of_concatenations(gm)
    for ours, eager in zip(tree_leaves(gm(x)), tree_leaves(PIECES[name](x)), strict=True):
        assert ours.stride() == eager.stride() and ours.dtype == eager.dtype
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("name", WHOLE)
def test_what_gains_nothing_stays(name):
    gm = trace(WHOLE[name], torch.rand(5, 7))
    assert targets(reduced_pieces(gm)) == targets(trace(WHOLE[name], torch.rand(5, 7)))
