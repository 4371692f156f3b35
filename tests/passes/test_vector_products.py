"""Products with a vector as sums: the same numbers, and in narrow types the same roundings."""
from __future__ import annotations

import pytest
import torch
from rooffuse.passes import run_passes, vector_products_pass
from rooffuse.passes.vector_products import MOST_TERMS
from torch.fx.experimental.proxy_tensor import make_fx

SHAPES = {
    "column": (torch.mm, (7, 33), (33, 1)), "vector": (torch.mv, (7, 33), (33,)),
    "with bias": (torch.addmm, (1,), (7, 33), (33, 1)), "outer": (torch.mm, (7, 1), (1, 5)),
    "outer with bias": (torch.addmm, (5,), (7, 1), (1, 5)), "batch of columns": (torch.bmm, (3, 7, 33), (3, 33, 1)),
    "batch of rows": (torch.bmm, (3, 1, 33), (3, 33, 7)), "batch of outer": (torch.bmm, (3, 7, 1), (3, 1, 5)),
    "batch of dots": (torch.bmm, (7, 1, 33), (7, 33, 1)),
    "two terms": (torch.mm, (7, 2), (2, 5)), "four terms with bias": (torch.addmm, (5,), (7, 4), (4, 5)),
    "batch of three terms": (torch.bmm, (6, 3, 3), (6, 3, 40)), "a row of three terms": (torch.mm, (1, 3), (3, 5)),
}


def rewritten(fn, *inputs, along_memory=False):
    gm = run_passes(make_fx(fn, tracing_mode="fake")(*inputs), [vector_products_pass(along_memory)])
    return gm, not any(str(n.target).split(".")[1] in ("mm", "mv", "addmm", "bmm") for n in gm.graph.nodes
                       if n.op == "call_function")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SHAPES)
def test_sums_are_the_products(name, dtype):
    fn, *shapes = SHAPES[name]
    inputs = [torch.randn(s).to(dtype) for s in shapes]
    gm, all_of_them = rewritten(fn, *inputs)
    ours, exact = gm(*inputs), fn(*[x.double() for x in inputs])
    assert all_of_them and ours.dtype == dtype and ours.stride() == fn(*inputs).stride()
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 2**-20)
    torch.testing.assert_close(ours.double(), exact, rtol=rounding, atol=2e-5)  # 33 products and a sum, in float32


@pytest.mark.parametrize("turn", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0)])
def test_any_layout(turn):
    order = [turn.index(d) for d in range(3)]
    def laid_out(*shape):
        return torch.randn([shape[d] for d in turn]).permute(order)

    for a, b in ((laid_out(3, 7, 33), laid_out(3, 33, 1)), (laid_out(3, 1, 33), laid_out(3, 33, 7))):
        gm, all_of_them = rewritten(torch.bmm, a, b)
        assert all_of_them and gm(a, b).stride() == torch.bmm(a, b).stride()
        torch.testing.assert_close(gm(a, b), torch.bmm(a, b), rtol=1e-5, atol=1e-5)


def test_what_stays_with_the_library():
    a, b = torch.randn(7, 33), torch.randn(33, 1)
    assert not rewritten(torch.mm, a, torch.randn(33, 2))[1]
    assert not rewritten(torch.mm, torch.randn(1, 33), torch.randn(33, 5))[1]  # a reduction already
    assert not rewritten(lambda c, a, b: torch.addmm(c, a, b, beta=0.5), torch.randn(1), a, b)[1]
    assert not rewritten(torch.mm, a.int(), b.int())[1]
    assert not rewritten(torch.mm, torch.randn(7, MOST_TERMS + 1), torch.randn(MOST_TERMS + 1, 5))[1]
    assert not rewritten(torch.mm, torch.randn(33, 7).t(), b, along_memory=True)[1]
    assert rewritten(torch.mm, a, b, along_memory=True)[1]
    assert not rewritten(torch.mm, torch.empty(7, 0), torch.empty(0, 1))[1]
