"""Constant folding, common subexpressions, dead code and redundant copies: before and expected."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_same_results, targets, trace
from rooffuse.passes.constant_fold import constant_fold
from rooffuse.passes.cse import cse
from rooffuse.passes.dce import dce
from rooffuse.passes.graph import INNER_PRODUCT
from rooffuse.passes.pipeline import copy_graph
from rooffuse.passes.redundant import redundant
from rooffuse.passes.verify import verify

aten = torch.ops.aten
X = torch.randn(4, 6)
HALF = X.bfloat16()


def apply(step, function, *inputs):
    """The calls after ``step`` and a clean-up of what it left dead, results checked against the traced graph."""
    before = trace(function, *inputs)
    after = dce(step(copy_graph(before)))
    after.graph.lint()
    after.recompile()
    verify(after)
    assert_same_results(before, after, inputs)
    return [name.removeprefix("aten.").split(".")[0] for name in targets(after)]


# ---- common subexpressions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", (X, HALF), ids=("float32", "bfloat16"))
def test_equal_calls_are_one(x):
    assert apply(cse, lambda x: torch.exp(x + 1) * torch.exp(x + 1), x) == ["add", "exp", "mul"]


def test_calls_that_differ_in_a_constant_stay():
    assert apply(cse, lambda x: (x + 1) * (x + 2), X) == ["add", "add", "mul"]
    assert apply(cse, lambda x: aten.add(x, 0.0) * aten.add(x, -0.0), X) == ["add", "add", "mul"]


def test_a_product_that_needs_no_rounding_stays_apart_from_one_that_does():
    before = trace(lambda x: (x * x + 1) * (x * x), X)
    inner = next(node for node in before.graph.nodes if node.target is aten.mul.Tensor)
    inner.meta[INNER_PRODUCT] = True
    assert sum(node.target is aten.mul.Tensor for node in cse(before).graph.nodes) == 3
    assert apply(cse, lambda x: (x * x + 1) * (x * x), X) == ["mul", "add", "mul"]


def test_random_draws_are_never_merged():
    assert apply(cse, lambda x: torch.rand_like(x) + torch.rand_like(x), X) == ["rand_like", "rand_like", "add"]


def test_two_results_are_never_merged_into_one_tensor():
    assert apply(cse, lambda x: (x + 1, x + 1), X) == ["add", "add"]
    assert apply(cse, lambda x: (x + 1, (x + 1).view(6, 4)), X) == ["add", "add", "view"]


def test_a_temporary_is_merged_into_a_result():
    assert apply(cse, lambda x: (x + 1, (x + 1) * 2), X) == ["add", "mul"]


def test_reads_around_a_mutation_are_not_merged():
    def function(x):
        before = x + 1
        aten.copy_.default(x, before)
        return before * (x + 1)

    assert apply(cse, function, X) == ["add", "copy_", "add", "mul"]


def test_a_view_before_a_mutation_is_not_merged_with_one_after():
    def function(x):
        before = x.view(6, 4).exp()
        aten.copy_.default(x, x * 2)
        return before + x.view(6, 4).exp()

    assert apply(cse, function, X).count("exp") == 2


def test_a_tensor_made_to_be_written_is_not_merged():
    def function(x):
        left, right = aten.zeros_like(x), aten.zeros_like(x)
        aten.copy_.default(left, x)
        return left + right

    assert apply(cse, function, X).count("zeros_like") == 2


# ---- dead code ---------------------------------------------------------------------------------------------------


def test_dead_code_goes_and_effects_stay():
    def function(x):
        torch.exp(x).sum()
        torch.rand(3)
        aten.copy_.default(x, x + 1)
        return x * 2

    assert apply(lambda gm: gm, function, X) == ["rand", "add", "copy_", "mul"]


# ---- redundant ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    (
        (lambda x: aten._to_copy(x, dtype=x.dtype).exp(), ["exp"]),
        (lambda x: x.exp().clone().exp(), ["exp", "exp"]),
        (lambda x: x.view(24).view(2, 12).exp(), ["view", "exp"]),
        (lambda x: x.view(24).view(4, 6).exp(), ["exp"]),
        (lambda x: x.t().t().exp(), ["exp"]),
        (lambda x: x.view(2, 2, 6).permute(1, 2, 0).permute(1, 2, 0).exp(), ["view", "permute", "exp"]),
        (lambda x: x.view(2, 2, 6).permute(1, 2, 0).permute(2, 0, 1).exp(), ["view", "exp"]),
        (lambda x: x.unsqueeze(0).squeeze(0).exp(), ["exp"]),
        (lambda x: x.expand(4, 6).exp(), ["exp"]),
        (lambda x: aten.slice(x, 0, 0, 9223372036854775807).exp(), ["exp"]),
        (lambda x: aten.slice_scatter(x, x.exp(), 0, 0, 4).exp(), ["exp", "exp"]),
        (lambda x: x.detach().exp(), ["exp"]),
        (lambda x: torch.cat([x[:0], x, x[:, :0].reshape(0, 6)]).exp(), ["exp"]),
        (lambda x: torch.cat([x, x[:0], x]).exp(), ["repeat", "exp"]),
        (lambda x: torch.cat([x.sin(), x.cos(), x.sin()], 1), ["sin", "cos", "sin", "cat"]),
    ),
)
def test_what_changes_nothing_goes(function, expected):
    assert apply(redundant, function, X) == expected


def test_a_cast_there_and_back_goes():
    assert apply(redundant, lambda x: x.float().bfloat16().exp(), HALF) == ["exp"]


@pytest.mark.parametrize(
    ("function", "x"),
    (
        (lambda x: x.bfloat16().float().exp(), X),  # narrowing loses bits
        (lambda x: x.clone(), X),  # a result must not be an input
        (lambda x: (lambda y: (y, y.clone()))(x.exp()), X),  # two results must not be one tensor
        (lambda x: x.t().clone(memory_format=torch.contiguous_format).exp(), X),  # the strides change
        (lambda x: aten.slice(x, 0, 1, 3).exp(), X),
        (lambda x: x.view(6, 4).exp(), X),
        (lambda x: x.t().exp(), torch.randn(3, 3)),
        (lambda x: x.unsqueeze(0).expand(2, 4, 6).exp(), X),
        (lambda x: torch.cat([x]), X),  # a result must not be an input
        (lambda x: torch.cat([x, torch.empty(0, 6, dtype=torch.float64)]).exp(), X),  # the type is a wider one's
        (lambda x: torch.cat([x[:0], x[:0]]), X),
    ),
)
def test_what_changes_something_stays(function, x):
    before = [name.removeprefix("aten.").split(".")[0] for name in targets(trace(function, x))]
    assert apply(redundant, function, x) == before


def test_a_copy_of_a_mutated_tensor_stays():
    def function(x):
        old = x.clone()
        aten.copy_.default(x, x.exp())
        return old + x

    assert apply(redundant, function, X) == ["clone", "exp", "copy_", "add"]


def test_a_write_back_is_not_taken_for_an_alias():
    def function(x):
        aten.copy_.default(x, x.exp())
        return x * 2

    assert apply(redundant, function, X) == ["exp", "copy_", "mul"]


# ---- constants ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    (
        (lambda x: x.exp() * 1, ["exp"]),
        (lambda x: 1 * x.exp(), ["exp"]),
        (lambda x: x.exp() / 1, ["exp"]),
        (lambda x: x.exp() - 0, ["exp"]),
        (lambda x: x.exp() + -0.0, ["exp"]),
        (lambda x: x.exp() ** 1, ["exp"]),
        (lambda x: x.exp() * torch.ones(4, 6), ["exp"]),
        (lambda x: x * (torch.full((4, 6), 2.0) * 3 + 1), ["full", "mul"]),
        (lambda x: x + torch.full_like(x, 3.0), ["full", "add"]),
        (lambda x: x * (torch.ones(4).detach().expand(6, 4).t() / 4), ["full", "mul"]),
        (lambda x: torch.where(torch.full((4, 6), True), x.exp(), x), ["exp"]),
        # What is not neutral:
        (lambda x: x.exp() * 1.5, ["exp", "mul"]),
        (lambda x: x.exp() + 0.0, ["exp", "add"]),  # turns -0.0 into 0.0
        (lambda x: x * 1, ["mul"]),  # the result would be the input
        (lambda x: x.exp() * torch.ones(3, 4, 6), ["exp", "full", "mul"]),  # broadcasts
        (lambda x: aten.div(x.exp(), 1, rounding_mode="floor"), ["exp", "div"]),
        (lambda x: x + torch.rand(4, 6) * 0 + 0.5, ["rand", "mul", "add", "add"]),
    ),
)
def test_constants(function, expected):
    assert apply(constant_fold, function, X) == expected


def test_signed_zero_and_nan_survive():
    x = torch.tensor([-0.0, 0.0, torch.nan, torch.inf])
    before = trace(lambda x: (x.neg() * 1 - 0, x.neg() + 0.0), x)
    after = dce(constant_fold(copy_graph(before)))
    after.recompile()
    assert [bool(item.signbit()[0]) for item in after(x)] == [bool(item.signbit()[0]) for item in before(x)]
    assert_same_results(before, after, (x,))


def test_an_integer_plus_zero_is_itself_and_a_widening_product_is_not():
    ids = torch.arange(6)
    assert apply(constant_fold, lambda x: x.neg() + 0, ids) == ["neg"]
    assert apply(constant_fold, lambda x: x.neg() * 1.0, ids) == ["neg", "mul"]


def graph_with_constant(size):
    gm = trace(lambda x, c: x + torch.cumsum(c, 0), torch.randn(size), torch.ones(size))
    constant = list(gm.graph.find_nodes(op="placeholder"))[1]
    gm.register_buffer("table", torch.arange(size, dtype=torch.float32))
    with gm.graph.inserting_before(constant):
        attribute = gm.graph.get_attr("table")
    attribute.meta = dict(constant.meta)
    constant.replace_all_uses_with(attribute)
    gm.graph.erase_node(constant)
    gm.recompile()
    return gm


@pytest.mark.parametrize(("size", "expected"), ((16, ["aten.add.Tensor"]), (1000, None)))
def test_a_stored_constant_is_computed_ahead_while_it_is_small(size, expected):
    before = graph_with_constant(size)
    after = dce(constant_fold(copy_graph(before)))
    after.recompile()
    verify(after)
    assert targets(after) == (expected or targets(before))
    assert_same_results(before, after, (torch.randn(size),))


def test_a_range_stays_symbolic():
    assert apply(constant_fold, lambda x: x + torch.arange(6), X) == ["arange", "add"]


def test_a_constant_that_is_written_is_not_folded():
    def function(x):
        buffer = aten.zeros_like(x)
        aten.copy_.default(buffer, x)
        return x * (buffer + 1)

    assert "zeros_like" in apply(constant_fold, function, X)
