"""Lazy negations become negations."""

from __future__ import annotations

import pytest
import torch
from conftest import targets, trace
from rooffuse.passes import run_passes
from rooffuse.passes.pipeline import PIPELINE
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
NEGATED = [p for p in PIPELINE if p.name == "negated_views"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: aten._neg_view(x) * 2,
        lambda x: aten._neg_view(aten._neg_view(x))[1:] + 1,
        lambda x: aten._neg_view(x).t()[1:].exp().clone(),
        lambda x: (aten._neg_view(x), aten._neg_view(x * 2).view(-1)),
    ],
)
def test_values_stay_and_nothing_is_lazy(function) -> None:
    x = torch.randn(4, 5)
    gm = run_passes(trace(function, x), NEGATED)
    assert "aten._neg_view.default" not in targets(gm)
    assert not any(node.meta["val"].is_neg() for node in gm.graph.nodes if node.op == "call_function")
    for ours, theirs in zip(tree_leaves(gm(x)), tree_leaves(function(x)), strict=True):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()


def test_strides_that_a_negation_does_not_make_stay() -> None:
    x = torch.randn(4, 6)
    before = trace(lambda x: aten._neg_view(x[:, ::2])[1:] + 1, x)
    assert targets(run_passes(before, NEGATED)) == targets(before)


def test_a_copy_of_what_the_caller_negated_lazily_stays() -> None:
    x = torch._neg_view(torch.randn(4, 5))
    gm = run_passes(trace(lambda x: x.clone()[1:] + 1, x))
    assert gm.graph.find_nodes(op="placeholder")[0].meta["val"].is_neg()
    assert targets(gm) == ["aten.clone.default", "aten.slice.Tensor", "aten.add.Tensor"]
    assert torch.equal(gm(x), x[1:] + 1)
