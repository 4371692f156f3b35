"""Casts that a decomposition implies don't round between two operators of a kernel; those that the user wrote do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from rooffuse.codegen.ir import Compute, Kernel
from rooffuse.compile import kernel_of, kernel_steps, plan_graph
from rooffuse.cost_model import get_device
from rooffuse.options import Options
from rooffuse.targets import target_for
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx


def kernels(fn, *inputs: Tensor, **options) -> list[Kernel]:
    graph = make_fx(fn, tracing_mode="fake")(*inputs)
    plan = plan_graph(graph, target_for(get_device("cpu")), Options(**options))
    return [kernel_of(step) for step in kernel_steps(plan.program)]


def roundings(found: list[Kernel]) -> int:
    return sum(isinstance(s, Compute) and s.op == "round_to" for k in found for s in k.statements())


def norm_gelu(x: Tensor) -> Tensor:
    return F.gelu(F.layer_norm(x, x.shape[-1:]))


def cast_between(x: Tensor) -> Tensor:
    return (x.float() * 3).to(torch.bfloat16).float().exp().to(torch.bfloat16)


X = torch.randn(6, 200).bfloat16()


def test_implied_casts_do_not_round() -> None:
    found = kernels(norm_gelu, X)
    assert len(found) == 1 and roundings(found) == 0


def test_eager_casts_round() -> None:
    assert roundings(kernels(norm_gelu, X, eager_casts=True)) > 0


def test_written_casts_round() -> None:
    assert roundings(kernels(cast_between, X)) == 1


def test_equal_structures_of_both_kinds_are_kept_apart() -> None:
    """One graph has the same arithmetic with a written cast and with an implied one."""

    def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        written = torch.sigmoid((F.softmax(x.float(), -1)).to(torch.bfloat16).float())
        implied = torch.sigmoid(F.softmax(y, -1).float())
        return written, implied

    inputs = (X, X.flip(0).contiguous())
    ours = torch.compile(both, backend="rooffuse")(*inputs)
    # A softmax that differs in its last bit may round to the other neighbour in bfloat16: seldom.
    assert (ours[0] != both(*inputs)[0]).float().mean() < 0.01
    exact = torch.sigmoid(F.softmax(inputs[1].double(), -1))
    assert (ours[1] - exact).abs().max() < 1e-6


def test_result_is_closer_to_the_exact_one_than_eager_is() -> None:
    exact = norm_gelu(X.double())
    ours = torch.compile(norm_gelu, backend="rooffuse")(X)
    assert (ours - exact).abs().mean() <= (norm_gelu(X) - exact).abs().mean()
