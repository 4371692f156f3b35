"""Whole functions through ``torch.compile``: layouts, empty tensors, scalars, indexing, constants, random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .eager import LAYOUTS, STRICT, randn, same_as_eager


def everything(x: Tensor) -> list[Any]:
    return [
        x * 2 + x.sum(-1, keepdim=True),
        x.softmax(-1),
        x.softmax(0),
        x.sum(0),
        x.sum(),
        x.flip(0) + 1,
        x.reshape(-1) * 2,
        x.var(0),
        x.std(-1, correction=0),
        torch.var_mean(x, -1, correction=2),
        x.argmax(0),
        x.argmax(),
        x.max(0),
        torch.cat([x, x * 2], -1),
        x.cumsum(0) + 1,
        F.layer_norm(x, x.shape[-1:]),
        x.roll(1, 0) + x,
        x.repeat_interleave(2, 0) + 1,
        (x > 0).any(-1),
        x.logsumexp(-1),
        torch.amax(x, 0, keepdim=True) - x,
        x.tril() + x.triu(1),
        torch.stack([x, x + 1], 1),
        x.prod(0),
        x.mean((0, 1)),
        x.clone() + 1,
        torch.zeros_like(x),
        x.norm(),
        F.pad(x, (1, 2, -1, 3)),
        F.pad(x, (-1, -2), value=3.0),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    same_as_eager(everything, lambda: [LAYOUTS[layout]()])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)], ids=str)
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    def fn(x: Tensor) -> list[Any]:
        return [
            x + 1,
            x.sum(),
            x.sum(0),
            x.sum(-1, keepdim=True),
            torch.cat([x, x]),
            x.softmax(-1),
            x.mean(),
            x.any(),
            x.all(0),
            x.prod(),
            torch.relu(x) * 2,
            F.pad(x, (1, 1)),
            x.reshape(-1) + 1,
            torch.cat([x, torch.ones((*x.shape[:-1], 2))], -1),
        ]

    same_as_eager(fn, randn(shape))


def test_sums_over_an_empty_dimension_and_another() -> None:
    same_as_eager(lambda x: x.sum((1, 2)), randn((2, 0, 3)))


def test_scalars() -> None:
    def fn(x: Tensor) -> list[Any]:
        return [
            x + 1,
            x.sum(),
            x.softmax(0),
            x.mean(0),
            x.argmax(),
            x.argmax(0),
            x.amax(0),
            x.max(0),
            x.any(),
            x.var(correction=0),
            x.unsqueeze(0) * torch.arange(3),
            x.expand(3, 4) + 1,
            torch.stack([x, x]),
            x.reshape(1, 1) * 2,
            x.to(torch.int32),
            torch.where(x > 0, x, 0.0),
            x.cumsum(0),
            x.norm(),
            x.prod(0),
            torch.cat([x[None], x[None]]),
            x.all(0),
            x.log_softmax(0),
        ]

    same_as_eager(fn, randn(()))


def test_indexing() -> None:
    def fn(x: Tensor, y: Tensor, i: Tensor) -> list[Any]:
        return [
            x[i],
            y[:, i],
            y[i, :, i],
            y[:, i % 5, i],
            x[None, i, ..., None],
            x[i[:, :1], i],
            x[..., i],
            x[i, None],
            x[[0, 2, -1]],
            x[1],
            x[-1, ::2] + 1,
            x[3:1] + 1,
            x[-100:100] + 1,
            x[2:-1, 1::3] * 2,
            x[i.int()],
            x.gather(1, i.abs()),
            x[:2].take_along_dim(i.abs(), 1),
            x.index_select(1, i.abs().flatten()),
            x.scatter(1, i.abs(), 2.0),
            x.scatter_add(1, i.abs(), x[:2, :3]),
            x.index_add(0, i.abs()[0], x[:3] * 2),
            x.index_put((i[0],), x[:3] + 1, accumulate=True),
            F.one_hot(i.abs(), 5).float() * 2,
        ]

    same_as_eager(fn, lambda: [torch.randn(5, 6), torch.randn(5, 5, 6), torch.tensor([[0, -1, 2], [3, 1, -4]])])


def test_losses() -> None:
    def fn(x: Tensor, i: Tensor) -> list[Any]:
        return [
            F.cross_entropy(x, i),
            F.nll_loss(x.log_softmax(-1), i, ignore_index=2),
            F.cross_entropy(x, i, label_smoothing=0.1, reduction="sum"),
            F.mse_loss(x, x.flip(0)),
            F.binary_cross_entropy_with_logits(x, x.sigmoid()),
            F.embedding(i, x, padding_idx=2) * 2,
        ]

    same_as_eager(fn, lambda: [torch.randn(9, 9), torch.randint(0, 9, (9,))])


def test_constants_and_shapes() -> None:
    def fn(x: Tensor) -> list[Any]:
        total = x.sum()
        return [
            torch.arange(10) + total,
            torch.arange(0, 1, 0.1) * total,
            torch.arange(5.0, 0, -1)[:, None] + x,
            torch.linspace(0, 1, 7) + total,
            torch.linspace(-3, 5, 6) * x,
            torch.eye(5) @ x + torch.eye(5, 6),
            torch.arange(300, dtype=torch.uint8) + torch.zeros(300).long(),
            torch.arange(10, 2, -3) + total,
            torch.hann_window(6) * x,
            torch.arange(16777210.0, 16777230.0) + total * 0,
            torch.cat([x, torch.empty(0), x]),
            torch.cat([x, x.long()]),
            torch.cat([x, x.double()]),
            torch.cat([x > 0, x < 1]).sum(0),
            torch.cat([x, x]).softmax(0),
            torch.cat([x.sum(0, keepdim=True), x]),
            torch.cat([x[..., 3:] * -1, x[..., :3]], -1) * x.cos(),
            x.chunk(4, 1)[2] * 2,
            [t + 1 for t in x.split([1, 2, 3], 1)],
            x.unbind(0)[3] * 2,
            x.unfold(1, 3, 2).sum(-1),
            x.diagonal(1) * 2,
            torch.diag_embed(x),
            x.repeat(2, 3) * 2,
            torch.rot90(x) + 1,
            x.view(torch.int32) + 1,
            x.as_strided((3, 3), (1, 2), 1) * 2,
            x.expand(4, 5, 6).reshape(20, 6).sum(0),
            x.view(6, 5).t().reshape(3, 10).sum(1),
            x.unflatten(1, (2, 3)).sum(1).flip(-1),
            x.masked_fill(x > 0, torch.tensor(3)),
            torch.where(x > 0, torch.tensor(1.0, dtype=torch.float64), x),
        ]

    same_as_eager(fn, randn((5, 6)))


def test_channels_last_is_kept() -> None:
    same_as_eager(
        lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3)).relu() + 1,
        lambda: [torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)],
    )


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: F.dropout(x, 0.5),
        lambda x: F.dropout(x.softmax(-1), 0.3) @ x.t() + torch.rand(50, 50),
        lambda x: (
            torch.rand_like(x),
            torch.randn(3),
            torch.randint(0, 9, (4,)),
            torch.bernoulli(x.sigmoid()),
            torch.randperm(5),
        ),
        lambda x: F.gumbel_softmax(x, hard=True),
        lambda x: torch.multinomial(x.softmax(-1), 3),
        lambda x: torch.normal(x, 1.0) + x.bernoulli_(0.5),
    ],
    ids=["dropout", "two draws", "many", "gumbel", "multinomial", "in place"],
)
def test_random_numbers_are_eagers(fn: Callable[..., Any]) -> None:
    same_as_eager(fn, randn((50, 60)))


def test_dropout_gradient_uses_the_forward_mask() -> None:
    def loss(x: Tensor) -> Tensor:
        return (F.dropout(x * 2, 0.4) ** 2).sum()

    x = torch.randn(40, 50, requires_grad=True)
    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.manual_seed(1)
    (ours,) = torch.autograd.grad(torch.compile(loss, backend="rooffuse", options=STRICT)(x), x)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("indices", [[0, 10], [-1, 2]], ids=str)
def test_embedding_out_of_range_raises(indices: list[int]) -> None:
    compiled = torch.compile(lambda w, i: F.embedding(i, w) * 2, backend="rooffuse")
    with pytest.raises(IndexError):
        compiled(torch.randn(10, 4), torch.tensor(indices))
    assert compiled(torch.randn(10, 4), torch.tensor([1, 2])).shape == (2, 4)


def test_eager_casts_keep_eagers_bits() -> None:
    def fn(x: Tensor, y: Tensor) -> Tensor:
        return ((x + y) * x - y).relu() * 3 + x

    x, y = torch.randn(33, 65).bfloat16(), torch.randn(33, 65).bfloat16()
    ours = torch.compile(fn, backend="rooffuse", options={**STRICT, "eager_casts": True})(x, y)
    assert torch.equal(ours, fn(x, y))


def test_groups_are_never_cyclic() -> None:
    """A group that begins late can hold what an earlier one waits for: original positions don't order groups."""

    def fn(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, g: Tensor) -> Any:
        return torch.xlogy(a, b), torch.logaddexp(c, d), torch.heaviside(e, g)

    same_as_eager(fn, lambda: [torch.rand(22, 22) + 0.1 for _ in range(6)])


def test_operands_of_other_types_are_computed_in_the_type_of_the_result() -> None:
    def fn(x: Tensor, y: Tensor) -> Any:
        return torch.addcmul(x, y, x, value=0.1), torch.addcdiv(x, y, x.exp(), value=0.1), torch.add(x, y, alpha=0.1)

    x, y = torch.randn(5, 7).double(), torch.randn(5, 7)
    torch._dynamo.reset()
    for ours, eager in zip(torch.compile(fn, backend="rooffuse", options=STRICT)(x, y), fn(x, y)):
        torch.testing.assert_close(ours, eager, rtol=1e-14, atol=1e-14)


def test_constants_of_a_graph_with_symbolic_sizes() -> None:
    run = torch.compile(lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.7])) + 1, backend="rooffuse",
                        options=STRICT, dynamic=True)
    for size in (5, 9):
        x = torch.randn(size)
        assert torch.equal(run(x), torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.7])) + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_of_a_maximum_finds_it_again(dtype: torch.dtype) -> None:
    """It goes where the value equals its maximum: nowhere, if the value has been computed again otherwise."""
    def gradient(call: Callable[..., Tensor]) -> Tensor:
        x = torch.linspace(0.1, 4, 620).view(20, 31).roll(7, 0).to(dtype).requires_grad_()
        (found,) = torch.autograd.grad(call(x).float().sum(), x)
        return found

    def fn(x: Tensor) -> Tensor:
        return (x.sin() * x.exp() + x.log1p()).amax(0)

    ours, eager = gradient(torch.compile(fn, backend="rooffuse", options=STRICT)), gradient(fn)
    assert bool(torch.isfinite(ours).all()) and torch.equal(ours != 0, eager != 0)


def test_a_selection_finds_what_is_the_largest() -> None:
    """The largest is looked for in a second sweep, by its value: that of a library function, which may be another one
    where a loop isn't vectorised."""
    same_as_eager(lambda x: (x * torch.sigmoid(x)).topk(3, 1).values, lambda: [torch.randn(4, 7, 31, 1).double() * 9])
    same_as_eager(lambda x: (x.exp() + x.exp() * x.sin()).topk(2, 1).values, randn((4, 7, 31)))


def test_columns_of_equal_rows_are_summed() -> None:
    """Rows of a constant don't vary along themselves, and their strips have no columns."""
    def fn(x: Tensor) -> Tensor:
        x[:] = 1.0
        normed = F.rms_norm(x, [3])
        return normed.sum([0], keepdim=True) + normed.norm()

    same_as_eager(fn, randn((15, 16, 3)))


def test_columns_of_rows_that_repeat_themselves_are_summed() -> None:
    """Such a row is cut where it repeats, and then its columns don't vary along the repetitions."""
    def fn(x: Tensor) -> Tensor:
        y = x.tile(2)
        return (y - y.mean(-1, keepdim=True)).sum(-2)

    same_as_eager(fn, randn((6, 5, 4)))


def test_rows_that_are_all_equal_are_reduced_before_the_first() -> None:
    """Once for all of them, where no row's place is known to ask memory for."""
    def fn(x: Tensor) -> Tensor:
        return F.rms_norm(x.expand(9, 64) * 2, [64])

    same_as_eager(fn, randn((1,)))


def test_gradient_through_a_transposed_number() -> None:
    def fn(x: Tensor) -> Any:
        y = (x * x.norm().transpose(0, 0)).sum()
        return y.detach(), *torch.autograd.grad(y, x)

    same_as_eager(fn, lambda: [torch.randn(3, 5, requires_grad=True)])


def test_gradient_through_a_library_call_that_checks_itself() -> None:
    """The forward graph returns a token that orders the check, before what it saves for the backward."""
    def loss(x: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(x @ x.t() + 5 * torch.eye(5))
        return factor.diagonal().log().sum() + torch.linalg.solve(factor, x).square().sum()

    x = torch.randn(5, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(x), x)
    (ours,) = torch.autograd.grad(torch.compile(loss, backend="rooffuse", options=STRICT)(x), x)
    torch.testing.assert_close(ours, expected)


def test_a_result_in_the_memory_of_its_input_waits_until_that_was_read() -> None:
    def fn(x: Tensor, w: Tensor) -> Tensor:
        y = x @ w
        share = y.exp()
        return (share / share.sum(-1, keepdim=True) + y.sigmoid() * y) @ w.t()

    same_as_eager(fn, randn((64, 32), (32, 512)))


def test_what_a_row_shares_is_overwritten_after_all_its_points_have_read_it() -> None:
    """Under a condition each point of the row reads it for itself, after the row's own read."""
    def padded(x: Tensor, y: Tensor) -> Tensor:
        z = F.pad((y - x)[:, :-1], (1, 0)).sum(1, keepdim=True) + x
        x.clamp_(max=0.1)
        return z

    def joined(x: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([x.expand(-1, 9) * 2, y], 1).amax(1, keepdim=True) + x
        x.mul_(2)
        return z

    def scanned(x: Tensor, y: Tensor) -> Tensor:
        z = x + y * 0.5
        x.clamp_(max=0.1)
        return F.pad(z.cumsum(1)[:, :-1], (1, 0)) + z

    for fn in (padded, joined, scanned):
        same_as_eager(fn, lambda: [torch.randn(31, 1).double(), torch.randn(31, 129).double()])


def test_what_is_added_to_computed_places_again_is_added_again() -> None:
    """Places that repeat themselves cut their axis, and the additions don't vary over the repetitions."""
    def fn(x: Tensor) -> Tensor:
        places = torch.arange(8).mul(2).remainder(8)
        return torch.zeros_like(x).index_add(0, places, x.index_select(0, places) * 2)

    same_as_eager(fn, randn((8, 32)))


def test_bits_of_a_constant_are_another_number() -> None:
    def fn(x: Tensor) -> Any:
        bits = torch.full((7,), 1.5).view(torch.int32) >> 23
        tiny = torch.ones(5, 1, dtype=torch.int32).view(torch.float32)
        return x * bits, torch.cat([tiny, x.cumprod(1)], 1) + 1

    same_as_eager(fn, randn((5, 7)))
