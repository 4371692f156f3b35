"""Sums over almost the same space: filled up with what they don't notice, they are loops over the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rooffuse.compile import kernel_steps
from rooffuse.passes import EQUAL_EXTENTS_PASS, run_passes
from rooffuse.passes.graph import packet_name
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.fuser.graphs import planned

Case = tuple[Callable[..., Any], tuple[int, ...]]


def total_variation(x: Tensor) -> Tensor:
    return (x[:, 1:] - x[:, :-1]).abs().sum() + (x[:, :, 1:] - x[:, :, :-1]).abs().sum()


def of_each_image(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means with kept dimensions, and a second difference that misses two elements."""
    return (x[:, 1:] - x[:, :-1]).pow(2).mean((1, 2), keepdim=True), (x[:, 2:] - x[:, :-2]).mean((1, 2))


def smooth(x: Tensor) -> tuple[Tensor, Tensor]:
    return (x[:, 1:] - x[:, :-1]).pow(2).mean(), x.pow(2).mean()


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :, 1:].exp().amin((1, 2)), (-x.exp()).amax((1, 2))


CASES: dict[str, Case] = {
    "total_variation": (total_variation, (3, 129, 257)), "of_each_image": (of_each_image, (3, 131, 257)),
    "smooth": (smooth, (130, 1025)), "largest": (largest, (3, 129, 257))}


def filled(fn: Callable[..., Any], *inputs: Tensor) -> tuple[Any, int]:
    gm = run_passes(make_fx(fn, tracing_mode="fake")(*inputs), [EQUAL_EXTENTS_PASS])
    return gm, sum(packet_name(n.target) == "aten.constant_pad_nd" for n in gm.graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_results_stay_the_same(name: str, dtype: torch.dtype) -> None:
    fn, shape = CASES[name]
    x = torch.randn(shape).to(dtype)
    gm, count = filled(fn, x)
    assert count >= 1
    found, wanted = ((y,) if isinstance(y, Tensor) else y for y in (gm(x), fn(x)))
    for mine, theirs in zip(found, wanted):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_filled_in_is_no_difference(value: float) -> None:
    x = torch.randn(3, 129, 257)
    x[:, -1, -1] = value
    gm, _ = filled(total_variation, x)
    torch.testing.assert_close(gm(x), total_variation(x), equal_nan=True)


@pytest.mark.parametrize("device", ["cpu", "h100"])
@pytest.mark.parametrize("name", ["total_variation", "smooth"])
def test_one_loop_reads_the_tensor(name: str, device: str) -> None:
    fn, shape = CASES[name]
    large = torch.empty(*shape[:-2], 1024, 1024)
    first, *_ = kernel_steps(planned(fn, large, device=device).program)
    assert first.group.lowered is not None
    assert len([n for n in first.group.lowered.kernel.nests if n.reduction]) == 1


@pytest.mark.parametrize(("fn", "shape"), [
    (lambda x: (x[:64].sum(), x.sum()), (128, 1024)),  # twice as many elements
    (lambda x: (x[:, 1:].sum(1), x.sum(0)), (256, 1024)),  # other dimensions
    (lambda x: (x[1:].sum(1), x.sum(1)), (256, 1024)),  # other rows
    (lambda x: (x[:, 1:].sum(), torch.ones(256, 1024).sum()), (256, 1024)),  # another tensor
    (lambda x: (x[1:].sum(), x.sum()), (1000,)),  # little
], ids=["parts", "dimensions", "rows", "tensors", "short"])
def test_others_are_left_alone(fn: Callable[[Tensor], Any], shape: tuple[int, ...]) -> None:
    assert filled(fn, torch.randn(shape))[1] == 0
