from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rooffuse.passes import PIPELINE, aot_decompositions, grouped_heads, run_passes
from torch.fx.experimental.proxy_tensor import make_fx

ATTENTION = "aten._scaled_dot_product_flash_attention_for_cpu.default"


def repeated(x, count):
    batch, heads, length, width = x.shape
    return x[:, :, None].expand(batch, heads, count, length, width).reshape(batch, heads * count, length, width)


def inputs(heads=2, count=4):
    torch.manual_seed(0)
    return torch.randn(3, heads * count, 5, 16), torch.randn(3, heads, 9, 16), torch.randn(3, heads, 9, 16)


def optimised(fn, *args):
    with torch.no_grad():
        return run_passes(make_fx(fn, tracing_mode="fake", decomposition_table=aot_decompositions())(*args), PIPELINE)


def attention_heads(gm):
    (node,) = (n for n in gm.graph.nodes if str(n.target) == ATTENTION)
    return [a.meta["val"].shape[1] for a in node.args[1:3]]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_gets_the_heads_that_there_are(masked):
    def fn(q, k, v, *mask):
        return F.scaled_dot_product_attention(q, repeated(k, 4), repeated(v, 4), *mask)

    mask = torch.zeros(3, 1, 5, 9).masked_fill(torch.rand(3, 1, 5, 9) < 0.3, float("-inf"))
    args = (*inputs(), mask) if masked else inputs()
    gm = optimised(fn, *args)
    assert attention_heads(gm) == [2, 2]
    assert not any("clone" in str(n.target) or "expand" in str(n.target) for n in gm.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(gm(*args), fn(*args))


def test_copies_that_something_else_reads_stay():
    def fn(q, k, v):
        wide = repeated(k, 4)
        return F.scaled_dot_product_attention(q, wide, repeated(v, 4)), wide

    assert attention_heads(optimised(fn, *inputs())) == [8, 8]


def test_groups_that_differ_stay():
    def fn(q, k, v):
        return F.scaled_dot_product_attention(q, repeated(k, 4), repeated(v[:, :1], 8))

    assert attention_heads(optimised(fn, *inputs())) == [8, 8]


def test_heads_repeated_in_another_order_stay():
    # Head h of the copy is head h % 2, not h // 4, of the original: that isn't what grouped attention means.
    def fn(q, k, v):
        def tiled(x):
            return x[:, None].expand(3, 4, 2, 9, 16).reshape(3, 8, 9, 16)

        return F.scaled_dot_product_attention(q, tiled(k), tiled(v))

    assert attention_heads(optimised(fn, *inputs())) == [8, 8]


def test_it_changes_nothing_else():
    gm = make_fx(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), tracing_mode="fake")(*inputs(8, 1))
    before = str(gm.graph)
    assert str(grouped_heads(gm).graph) == before
