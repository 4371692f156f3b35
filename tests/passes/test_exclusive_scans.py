"""Scans behind which a neutral element was put become scans of what it is put in front of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import targets, trace
from rooffuse.passes import PIPELINE, exclusive_scans, run_passes
from rooffuse.passes.running import running_max


def _parts(x):
    total = x.cumsum(1)
    return total, F.pad(total[:, :-1], (1, 0))


def _first(x, value):
    return torch.full_like(x[:, :1], value)


MOVED = {
    "padded": lambda x: F.pad(x.cumsum(1), (1, 0)),
    "padded prefix": lambda x: F.pad(x.cumsum(1)[:, :-1], (1, 0)) * 2,
    "rows": lambda x: F.pad(x.cumsum(0), (0, 0, 2, 0)),
    "ones": lambda x: torch.cat([_first(x, 1), x.cumprod(1)[:, :-1]], 1),
    "zeros": lambda x: torch.cat([x.new_zeros(5, 3), x.cumsum(-1)], -1),
    "largest": lambda x: torch.cat([_first(x, float("-inf")), running_max(x, 1)], 1),
    "logarithms": lambda x: F.pad(x.logcumsumexp(1), (1, 0), value=float("-inf")),
    "truth": lambda x: F.pad((x > 0).cumsum(1), (1, 0)),
    "both": _parts,
    "transposed": lambda x: F.pad(x.t().cumsum(1), (1, 0)),
}
KEPT = {
    "another constant": lambda x: torch.cat([_first(x, 2), x.cumsum(1)], 1),
    "behind": lambda x: F.pad(x.cumsum(1), (0, 1)),
    "another dimension": lambda x: F.pad(x.cumsum(0), (1, 0)),
    "the end": lambda x: F.pad(x.cumsum(1)[:, 1:], (1, 0)),
    "cut": lambda x: F.pad(x.cumsum(1), (-1, 0)),
}


def _ends_with_a_scan(gm):
    names = [n for n in targets(gm) if "pad" in n or "cat" in n or "cum" in n or "running" in n]
    return "cum" in names[-1] or "running" in names[-1]


@pytest.mark.parametrize("name", MOVED)
def test_the_neutral_element_moves_before_the_scan(name):
    x = torch.rand(5, 7) + 0.5
    gm = run_passes(trace(MOVED[name], x), PIPELINE)
    assert _ends_with_a_scan(gm)
    expected = MOVED[name](x)
    for ours, eager in zip(torch.utils._pytree.tree_leaves(gm(x)), torch.utils._pytree.tree_leaves(expected)):
        assert ours.stride() == eager.stride() and ours.dtype == eager.dtype
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_no_beginning_stays(name):
    x = torch.rand(5, 7) + 0.5
    gm = trace(KEPT[name], x)
    before = targets(gm)
    assert targets(exclusive_scans(gm)) == before


def test_long_rows_are_not_scanned_twice():
    gm = run_passes(trace(_parts, torch.empty(2, 40_000)), PIPELINE)
    assert sum("cumsum" in n for n in targets(gm)) == 1
