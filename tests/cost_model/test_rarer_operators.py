"""Exact prices of operators that few models call, and that no operator which torch's own samples call goes unpriced."""

import pytest
import torch
from rooffuse.cost_model import Cost, price
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten, F32, I64 = torch.ops.aten, 4, 8


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def cost(op, *args, result, **kwargs):
    priced = price(op, args, kwargs, result)
    assert priced.known, op
    return priced.cost


def test_solves_scale_with_right_hand_sides():
    matrix, sides, out = meta(2, 16, 16), meta(2, 16, 5), meta(2, 16, 5)
    read = F32 * 2 * (16 * 16 + 16 * 5)
    triangular = cost(aten.linalg_solve_triangular.default, matrix, sides, upper=True, result=out)
    assert triangular == Cost(2 * 16 * 16 * 5, read, F32 * 2 * 16 * 5)
    assert cost(aten.triangular_solve.default, sides, matrix, result=(out, matrix.clone())).flops == 2 * 16 * 16 * 5
    assert cost(aten.cholesky_solve.default, sides, matrix, result=out).flops == 2 * 2 * 16 * 16 * 5
    result = (out, meta(2, 16, 16), meta(2, 16, dtype=torch.int32), meta(2, dtype=torch.int32))
    assert cost(aten._linalg_solve_ex.default, matrix, sides, result=result).flops == 2 * (2 * 16 * 16 // 3 + 160) * 16


def test_recurrent_layers():
    steps, batch, width, hidden = 7, 3, 16, 32
    weights = [meta(4 * hidden, width), meta(4 * hidden, hidden), meta(4 * hidden), meta(4 * hidden)]
    state, data = meta(1, batch, hidden), meta(steps, batch, width)
    out = (meta(steps, batch, hidden), state.clone(), state.clone())
    found = cost(aten.lstm.input, data, [state, state], weights, True, 1, 0.0, False, False, False, result=out)
    assert found.flops == 2 * steps * batch * 4 * hidden * (width + hidden)
    parameters = 4 * hidden * (width + hidden + 2)
    assert found.bytes_read == F32 * (steps * batch * width + batch * hidden + parameters)


def test_rarer_products():
    pairs = ([meta(2, 3), meta(4, 5)], [meta(3, 7), meta(5, 6)])
    if hasattr(aten, "_foreach_mm"):
        found = cost(aten._foreach_mm.default, *pairs, result=[meta(2, 7), meta(4, 6)])
        assert found.flops == 2 * (2 * 3 * 7 + 4 * 5 * 6)
    packed = meta(1000, dtype=torch.uint8)
    four = cost(aten._dyn_quant_matmul_4bit.default, meta(3, 64), packed, 32, 64, 48, result=meta(3, 48))
    assert four == Cost(2 * 3 * 64 * 48, F32 * 3 * 64 + 1000, F32 * 3 * 48)
    x, grad, weight = meta(6, 16), meta(6, 8), meta(8, 16)
    for mask, products in (([True, True, True], 2), ([False, True, True], 1)):
        result = (meta(6, 16) if mask[0] else None, meta(8, 16), meta(8))
        assert cost(aten.linear_backward.default, x, grad, weight, mask, result=result).flops == (
            products * 2 * 6 * 8 * 16 + 6 * 8)


def test_multi_head_attention_and_cudnn():
    x, qkv, out = meta(2, 10, 64), meta(192, 64), meta(64, 64)
    found = cost(aten._native_multi_head_attention.default, x, x, x, 64, 4, qkv, meta(192), out, meta(64), None, False,
                 result=(meta(2, 10, 64), None))
    assert found.flops == 2 * 20 * 64 * 192 + 4 * 2 * 10 * 10 * 64 + 2 * 20 * 64 * 64
    if hasattr(aten, "_cudnn_attention_forward"):
        q = meta(2, 4, 64, 32)
        args = (q, q.clone(), q.clone(), None, None, None, 64, 64, False, 0.0)
        full, causal = (cost(aten._cudnn_attention_forward.default, *args, c, result=(meta(2, 4, 64, 32),))
                        for c in (False, True))
        assert full.flops == 2 * causal.flops == 4 * 2 * 4 * 64 * 64 * 32


def test_sets_histograms_and_primitives():
    elements, tested = meta(10, dtype=torch.int64), meta(6, dtype=torch.int64)
    found = cost(aten.isin.Tensor_Tensor, elements, tested, result=meta(10, dtype=torch.bool))
    assert found == Cost(16 * 4, I64 * 16, 10)
    assert cost(aten.histogram.bin_ct, meta(100), 8, result=(meta(8), meta(9))) == Cost(400, F32 * 100, F32 * 17)
    x = meta(4, 8)
    assert cost(torch.ops.prims.add.default, x, x.clone(), result=meta(4, 8)) == Cost(32, 2 * 128, 128)
    assert cost(torch.ops.prims.sum.default, x, [1], result=meta(4)) == Cost(32, 128, 16)


def test_coalesced_collectives_add_every_tensor():
    import torch.distributed._functional_collectives

    tensors = [meta(100), meta(28)]
    op = torch.ops._c10d_functional.all_reduce_coalesced.default
    assert cost(op, tensors, "sum", "0", result=[meta(100), meta(28)]) == Cost(128, 512, 512)


#: What torch's samples call and nothing here has a formula for: sparse layouts, and rare ones.
FLAGGED = ("sparse", "histogramdd", "_segment_reduce_backward", "torch_nn.")


class Auditor(TorchDispatchMode):
    """Notes operators without a formula, and those that make tensors for nothing."""

    def __init__(self):
        super().__init__()
        self.seen, self.unknown, self.free, self.raised = set(), set(), set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func)
        self.seen.add(name)
        try:
            priced = price(func, args, kwargs, result)
        except Exception as error:
            self.raised[name] = repr(error)
            return result
        if not priced.known:
            self.unknown.add(name)
        given = {t.untyped_storage()._cdata for t in strided((args, kwargs))}
        made = [t for t in strided(result) if t.numel() and t.untyped_storage()._cdata not in given]
        if priced.known and made and priced.cost.bytes == 0 and "empty" not in name:
            self.free.add(name)
        return result


def strided(values):
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor) and t.layout == torch.strided]


@pytest.mark.slow
def test_what_torch_samples_call_is_priced():
    from torch.testing._internal.common_methods_invocations import op_db

    auditor = Auditor()
    for info in op_db:
        dtype = torch.float32 if torch.float32 in info.dtypes else torch.int64
        gradients = info.supports_autograd and dtype in info.supported_backward_dtypes("cpu")
        try:
            samples = [s for _, s in zip(range(4), info.sample_inputs("cpu", dtype, requires_grad=gradients))]
        except Exception:  # samples that need what isn't installed
            continue
        for sample in samples:
            try:
                with auditor:
                    result = info(sample.input, *sample.args, **sample.kwargs)
                    wanted = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.requires_grad]
                    torch.autograd.backward(wanted, [torch.ones_like(t) for t in wanted])
            except Exception:  # operators that this build doesn't run, and refusals that samples are made for
                continue
    assert auditor.raised == {} and auditor.free == set() and len(auditor.seen) > 400
    assert {name for name in auditor.unknown if not any(f in name for f in FLAGGED)} == set()
