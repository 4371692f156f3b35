"""Symbolic sizes stay symbolic, and evaluate to what numbers give."""

import pytest
import sympy
import torch
from rooffuse.cost_model import Cost, TensorSpec, price

aten = torch.ops.aten
B, S, d = sympy.symbols("B S d", integer=True, positive=True)


def sym(*shape, dtype=torch.float16):
    return TensorSpec(shape, dtype)


def test_formula_is_shown():
    cost = price(aten.relu.default, (sym(B, S, d),), {}, sym(B, S, d)).cost
    assert cost == Cost(B * S * d, 2 * B * S * d, 2 * B * S * d)
    assert str(cost.bytes_read) == "2*B*S*d"
    assert cost.is_symbolic and cost.intensity == sympy.Rational(1, 4)


def test_formula_evaluates_for_many_sizes():
    symbolic = price(aten.mm.default, (sym(B, d), sym(d, S)), {}, sym(B, S)).cost
    for sizes in [(1, 64, 8), (16, 128, 512)]:
        b, s, k = sizes
        numbers = price(aten.mm.default, (sym(b, k), sym(k, s)), {}, sym(b, s)).cost
        assert symbolic.subs({B: b, S: s, d: k}) == numbers
        assert isinstance(symbolic.subs({B: b, S: s, d: k}).flops, int)


CASES = [
    (aten.add.Tensor, lambda b: (sym(b, 32), sym(32)), lambda b: sym(b, 32)),
    (aten.sum.dim_IntList, lambda b: (sym(b, 32), [1]), lambda b: sym(b)),
    (aten.embedding.default, lambda b: (sym(1000, 64), sym(b, 4, dtype=torch.int64)), lambda b: sym(b, 4, 64)),
    (aten.cat.default, lambda b: ([sym(b, 4), sym(b, 4)], 1), lambda b: sym(b, 8)),
    (aten.sort.default, lambda b: (sym(8, b),), lambda b: (sym(8, b), sym(8, b, dtype=torch.int64))),
    (
        aten.scaled_dot_product_attention.default,
        lambda b: (sym(2, 4, b, 64), sym(2, 4, b, 64), sym(2, 4, b, 64), None, 0.0, True),
        lambda b: sym(2, 4, b, 64),
    ),
    (
        aten.scaled_dot_product_attention.default,
        lambda b: (sym(2, 4, 8, 64), sym(2, 4, b, 64), sym(2, 4, b, 64), None, 0.0, True),
        lambda b: sym(2, 4, 8, 64),
    ),
    (
        aten.index_put_.default,
        lambda b: (sym(2, 256, 64), [None, sym(b, dtype=torch.int64)], sym(2, b, 64)),
        lambda b: sym(2, 256, 64),
    ),
]


@pytest.mark.parametrize("op, args, result", CASES, ids=[f"{index}-{case[0]}" for index, case in enumerate(CASES)])
@pytest.mark.parametrize("size", [2, 16, 300])
def test_symbolic_and_numeric_prices_agree(op, args, result, size):
    symbolic = price(op, args(B), {}, result(B)).cost
    assert symbolic.is_symbolic
    assert symbolic.subs({B: size}) == price(op, args(size), {}, result(size)).cost


def test_fake_tensors_with_symbolic_sizes_add_no_guards():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    x = mode.from_tensor(torch.empty(17, 32), symbolic_context=context)
    with mode:
        y = x + 1
    before = len(env.guards)
    cost = price(aten.add.Tensor, (x, 1), {}, y).cost
    assert len(env.guards) == before
    (symbol,) = cost.flops.free_symbols
    assert cost.subs({symbol: 17}) == Cost(17 * 32, 17 * 32 * 4, 17 * 32 * 4)


def test_symbolic_stride_is_not_taken_for_an_expanded_dimension():
    strided = TensorSpec((B, d), torch.float32, (d, 1))
    expanded = TensorSpec((B, d), torch.float32, (0, 1))
    assert strided.nbytes == 4 * B * d and expanded.nbytes == 4 * d


def test_strides_must_match_sizes():
    with pytest.raises(ValueError, match="2 sizes"):
        TensorSpec((2, 3), torch.float32, (1,))
