"""Products in float32 where a processor has no instructions for the narrow type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rooffuse.cost_model import Device, get_device
from rooffuse.passes import quick_types_pass, run_passes
from rooffuse.passes.graph import same_strides, tensor_meta
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
HALF, BRAIN, WIDE = torch.float16, torch.bfloat16, torch.float32


def device(fp16: float) -> Device:
    """A CPU of 2e11 FLOP/s in fp32 and bf16, and so many in fp16."""
    cpu = get_device("cpu")
    return replace(cpu, peaks={**cpu.peaks, "fp32": 2e11, "bf16": 2e11, "fp16": fp16}, bandwidth=4e10, launch_s=1e-6)


SLOW = device(3e9)


def rewritten(fn: Callable[..., Any], *inputs: torch.Tensor, on: Device = SLOW) -> GraphModule:
    return run_passes(make_fx(fn, tracing_mode="fake")(*inputs), [quick_types_pass(on)])


def product_types(gm: GraphModule) -> set[torch.dtype]:
    """The types of what products, convolutions and attention take."""
    names = ("mm", "bmm", "convolution", "attention")
    calls = [n for n in gm.graph.nodes if n.op == "call_function" and any(name in str(n.target) for name in names)]
    assert calls
    found = {tensor_meta(i) for n in calls for i in n.all_input_nodes}
    return {v.dtype for v in found if v is not None}


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def gradients(fn: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = tuple(x.detach().requires_grad_() for x in inputs)
        return torch.autograd.grad(fn(*inputs).float().pow(2).mean(), inputs)

    return run


def halves(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(s).div(4).half() for s in shapes]


FORMS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "matrices": (torch.mm, [(65, 96), (96, 80)]),
    "linear": (lambda x, w, b: F.linear(x, w, b), [(4, 33, 64), (96, 64), (96,)]),
    "batches": (torch.bmm, [(3, 40, 64), (3, 64, 72)]),
    "transposed": (lambda x, y: x.t() @ y.t(), [(96, 65), (80, 96)]),
    "convolution": (lambda x, w: F.conv2d(x, w, padding=1), [(2, 16, 14, 15), (24, 16, 3, 3)]),
    "attention": (attention, [(1, 4, 64, 32)] * 3),
    "linear_backward": (gradients(F.linear), [(65, 96), (80, 96)]),
    "convolution_backward": (gradients(lambda x, w: F.conv2d(x, w, stride=2)), [(2, 16, 14, 15), (24, 16, 3, 3)]),
    "attention_backward": (gradients(attention), [(1, 4, 64, 32)] * 3),
}


@pytest.mark.parametrize("name", FORMS)
def test_slow_products_are_computed_in_float32(name: str) -> None:
    fn, shapes = FORMS[name]
    torch.manual_seed(len(name))
    inputs = halves(*shapes)
    gm = rewritten(fn, *inputs)
    assert product_types(gm) == {WIDE}
    found, wanted, exact = gm(*inputs), fn(*inputs), fn(*[x.double() for x in inputs])
    for mine, eager, reference in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (found, wanted, exact))):
        assert mine.dtype == HALF and same_strides(mine, eager)
        error, eagers = ((x.double() - reference).abs().max() for x in (mine, eager))
        assert error <= 1.1 * eagers + 2e-3 * reference.abs().max()  # an fp16 result is rounded to 11 bits


def test_only_what_gains() -> None:
    matrices = halves((65, 96), (96, 80))
    assert product_types(rewritten(torch.mm, *matrices, on=device(2e11))) == {HALF}
    assert product_types(rewritten(torch.mm, *halves((4, 8), (8, 4)))) == {HALF}  # next to the casts it is nothing
    assert product_types(rewritten(torch.mm, *[x.bfloat16() for x in matrices])) == {BRAIN}
    assert product_types(rewritten(torch.mm, *matrices, on=get_device("h100"))) == {HALF}


def test_bfloat16_where_it_is_the_slow_one() -> None:
    slow = replace(SLOW, peaks={**SLOW.peaks, "bf16": 3e9})
    matrices = [x.bfloat16() for x in halves((65, 96), (96, 80))]
    gm = rewritten(torch.mm, *matrices, on=slow)
    assert product_types(gm) == {WIDE} and gm(*matrices).dtype == BRAIN


def test_what_is_no_product_stays() -> None:
    gm = rewritten(lambda x: x.softmax(-1) * 2, *halves((64, 512)))
    assert not any(n.target is aten._to_copy.default for n in gm.graph.nodes)
