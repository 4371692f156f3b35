"""Matrix products read repeated factors where they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import targets, trace
from rooffuse.passes import PIPELINE, run_passes
from rooffuse.passes.grouped_products import grouped_products_pass
from torch import Tensor


def repeated(x: Tensor, count: int) -> Tensor:
    return x[:, :, None].expand(-1, -1, count, -1, -1).reshape(x.shape[0], -1, *x.shape[2:])


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    count = q.shape[1] // k.shape[1]
    return (q @ repeated(k, count).transpose(-1, -2)).softmax(-1) @ repeated(v, count)


def interleaved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    count = q.shape[1] // k.shape[1]
    return (q @ k.repeat_interleave(count, 1).mT).softmax(-1) @ v.repeat_interleave(count, 1)


def one_after_another(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All heads, and then all of them again: neighbours have different ones."""
    count = q.shape[1] // k.shape[1]
    return (q @ k.repeat(1, count, 1, 1).mT).softmax(-1) @ v.repeat(1, count, 1, 1)


def kept(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    wide = repeated(v, q.shape[1] // v.shape[1])
    return q @ wide.mT, wide


def copies(gm: torch.fx.GraphModule) -> int:
    return sum(name in ("aten.clone.default", "aten.repeat.default") for name in targets(gm))


def grouped(fn: Callable[..., Tensor], *inputs: Tensor, single_rows: bool = True):
    return run_passes(trace(fn, *inputs), [*PIPELINE, grouped_products_pass(single_rows)])


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("cache", [torch.randn(2, 3, 11, 8), torch.randn(2, 11, 3, 8).transpose(1, 2),
                                   torch.randn(2, 3, 20, 8)[:, :, 2:13], torch.randn(1, 3, 11, 8)])
@pytest.mark.parametrize("fn", [attention, interleaved])
def test_repeated_heads_are_not_copied(fn: Callable[..., Tensor], cache: Tensor, rows: int) -> None:
    """Where the heads lie in memory as one dimension with the batch; others' products keep their copies."""
    inputs = (torch.randn(cache.shape[0], 12, rows, 8), cache, cache * 2)
    gm = grouped(fn, *inputs)
    in_one = cache.stride(0) == 3 * cache.stride(1) or cache.shape[0] == 1
    assert copies(gm) == (0 if in_one else 2)
    torch.testing.assert_close(gm(*inputs), fn(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fn", [one_after_another, kept])
def test_other_products_stay(fn: Callable[..., Tensor]) -> None:
    inputs = (torch.randn(2, 12, 5, 8), torch.randn(2, 3, 11, 8), torch.randn(2, 3, 11, 8))
    gm = grouped(fn, *inputs)
    assert copies(gm) > 0
    torch.testing.assert_close(gm(*inputs), fn(*inputs), rtol=1e-5, atol=1e-5)


def test_products_of_one_row_are_left_to_become_sums() -> None:
    inputs = (torch.randn(2, 12, 1, 8), torch.randn(2, 3, 11, 8), torch.randn(2, 3, 11, 8))
    assert copies(grouped(attention, *inputs, single_rows=False)) == 2
