"""In-place operators on inputs and views, inputs that share memory, results that are inputs or each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import rooffuse.backend
import torch
import torch.nn.functional as F
from rooffuse.cost_model import get_device
from rooffuse.targets import Target
from torch import Tensor

from .eager import LAYOUTS, Make, randn, same_as_eager


def _add_in_place(x: Tensor) -> Tensor:
    x.add_(1)
    return x * 2


def _through_a_view(x: Tensor) -> Tensor:
    x[1:].mul_(2)
    return x.sum()


def _slices(x: Tensor) -> Tensor:
    x[:, 1:3] = 5
    x[0] += x[1]
    return x.t()


def _into_itself_reversed(x: Tensor) -> Tensor:
    x.copy_(x.flip(0))
    return x + 1


def _shifted_into_itself(x: Tensor) -> Tensor:
    x[:-1] = x[1:] * 1
    return x


def _normalised_in_place(x: Tensor) -> Tensor:
    x.copy_(x.softmax(-1))
    x.sub_(x.mean())
    return x


def _fresh_then_mutated(x: Tensor) -> Tensor:
    y = x + 1
    y[0] = 0
    return y.relu_()


def _overlapping_views(x: Tensor) -> Any:
    a = x.view(-1)[::2]
    a += 1
    b = x[2]
    b *= a[:6]
    return a, b, x


def _cache_update(x: Tensor) -> Tensor:
    x[:, 2:4] = x[:, :2] * 2
    return F.softmax(x @ x.t(), -1)


def _returned_view_of_mutated(x: Tensor) -> Tensor:
    y = x[1:]
    y.add_(x[0])
    return y


def _metadata(x: Tensor) -> Tensor:
    x.unsqueeze_(0)
    return x * 2


def _filled(x: Tensor) -> Tensor:
    x.zero_()
    return x.fill_(3).exp_()


MUTATIONS = [
    _add_in_place,
    _through_a_view,
    _slices,
    _into_itself_reversed,
    _shifted_into_itself,
    _normalised_in_place,
    _fresh_then_mutated,
    _overlapping_views,
    _cache_update,
    _returned_view_of_mutated,
    _metadata,
    _filled,
]


@pytest.mark.parametrize("fn", MUTATIONS, ids=lambda f: f.__name__[1:])
def test_mutated_inputs(fn: Callable[..., Any]) -> None:
    same_as_eager(fn, randn((5, 6)))


@pytest.mark.parametrize("layout", ["transposed", "stepped", "misaligned"])
def test_mutated_inputs_of_other_layouts(layout: str) -> None:
    def fn(x: Tensor) -> Tensor:
        x.mul_(x.sum(0))
        x[1:].add_(1)
        x.copy_(x.flip(0))
        return x + 1

    same_as_eager(fn, lambda: [LAYOUTS[layout]()])


def _mutate_first(x: Tensor, y: Tensor) -> Tensor:
    x.mul_(2)
    return y + 1


def _overlapping() -> list[Tensor]:
    base = torch.randn(30)
    return [base[:20], base[10:]]


def _twice_the_same() -> list[Tensor]:
    x = torch.randn(5, 6)
    return [x, x]


@pytest.mark.parametrize("make", [_overlapping, _twice_the_same], ids=lambda f: f.__name__[1:])
def test_inputs_that_share_memory(make: Make) -> None:
    same_as_eager(_mutate_first, make)
    same_as_eager(lambda x, y: (x + 1, y * 2, x.sum()), make)


def _aliased_outputs(x: Tensor) -> Any:
    y = x + 1
    return y, y.t(), y[1:], y.view(-1), y


@pytest.mark.parametrize(
    "fn",
    [
        _aliased_outputs,
        lambda x: (x, x.t(), x[0], x + 1, x + 1, 3, None, x.view(-1)),
        lambda x: x,
        lambda x: torch.ones(3),
        lambda x: (torch.ones(3), x.sum(), torch.zeros(2, 2).long()),
        lambda x: (x.sum(0),) * 3,
        lambda x: {"a": x * 2, "b": [x.sum(), x.exp().t()]},
        lambda x: (x + 1).expand(3, 5, 6),
        lambda x: (x * 2).t().contiguous().t(),
        lambda x: torch.fft.ihfft(x),
    ],
    ids=[
        "aliased",
        "inputs",
        "identity",
        "constant",
        "constants",
        "same",
        "nested",
        "expanded",
        "strides",
        "conjugate",
    ],
)
def test_outputs(fn: Callable[..., Any]) -> None:
    same_as_eager(fn, randn((5, 6)))


def test_a_write_waits_for_reads_under_another_name() -> None:
    """Inputs that share memory are views of one base, made by calls: a kernel isn't to read one and write another."""
    def make() -> list[Tensor]:
        x = torch.randn(17, 8)
        return [x, x[::2]]

    def fn(x: Tensor, y: Tensor) -> Tensor:
        result = y.round() + x.var(0, correction=0)
        x.mul_(0.1)
        return result

    same_as_eager(fn, make)


def test_a_write_waits_for_all_rows_of_a_strip() -> None:
    """What is summed over repetitions of an input is read in each of them."""
    def fn(x: Tensor, scale: Tensor) -> Any:
        y = x * scale
        x.mul_(0.9)
        return y.mean(0), (x + y).softmax(-1)

    def without_sum(x: Tensor, scale: Tensor) -> Any:
        y = x.exp() * scale
        x.add_(y.mean(0))
        x.copy_(y[0])  # leaves nothing of the sum, but the rows that it went over
        return y.softmax(-1), x * 2

    same_as_eager(fn, randn((64, 13), (8, 1, 1)))
    same_as_eager(without_sum, randn((64, 13), (8, 1, 1)))


def test_positions_that_are_written_are_not_made_anew() -> None:
    def fn(x: Tensor, index: Tensor, values: Tensor) -> Any:
        place, early = torch.arange(8) * 2, torch.arange(8) < 5
        place[index] = values
        early[index] = False
        other = torch.arange(8) % 3
        before = other + 1
        other[2:5] = values[0]
        return place, x * place, x.where(early, 0), early, before, other * before

    same_as_eager(fn, lambda: [torch.randn(8), torch.tensor([1, 3, 6]), torch.tensor([10, 20, 30])])


def _bytes_of_a_cache(cache: Tensor, rows: Tensor, x: Tensor) -> Any:
    read = cache.view(torch.uint8).view(-1, 8)[rows] ^ 255
    cache.view(torch.uint8).view(-1, 8).index_put_((rows,), x)
    return read, cache.view(torch.uint8) & 15


def _words_of_a_cache(cache: Tensor, rows: Tensor, x: Tensor) -> Any:
    words = cache.view(torch.int16)
    words.view(-1, 8)[rows] = x.to(torch.int16) * 257
    return words + 1, cache.float().nan_to_num()


@pytest.mark.parametrize(("fn", "dtype"), [
    (_bytes_of_a_cache, torch.float8_e4m3fn), (_bytes_of_a_cache, torch.float8_e5m2),
    (_words_of_a_cache, torch.bfloat16), (_words_of_a_cache, torch.float16)],
    ids=lambda x: getattr(x, "__name__", str(x)))
def test_memory_seen_as_another_type_keeps_every_bit(fn: Callable[..., Any], dtype: torch.dtype) -> None:
    """Bits of NaNs, too, which numbers of the type lose on the way."""
    def make() -> list[Any]:
        bits = torch.randint(0, 256, (2, 5, 8 * dtype.itemsize), dtype=torch.uint8)
        x = torch.randint(0, 256, (3, 8), dtype=torch.uint8)
        x[0] = 255
        return [bits.view(dtype), torch.tensor([3, 1, 7]), x]

    def whole(*inputs: Any) -> Any:
        out = fn(*inputs)
        return out, inputs[0].view(torch.uint8).clone()

    same_as_eager(whole, make)


def test_memory_that_lies_apart_is_seen_as_another_type_where_it_is_written() -> None:
    def fn(x: Tensor) -> Tensor:
        x.index_fill_(1, torch.arange(1), 2.0)
        return x.view(torch.int32).bitwise_and(-65536).view(torch.float32) * 1.5

    same_as_eager(fn, lambda: [torch.randn(17, 3)[:, 1::2]])


def _every_other_place(a: Tensor, b: Tensor) -> Any:
    whole = torch.zeros(3, 9, 10)
    whole[:, ::2, ::2] = a
    whole[:, 1::2, 1::2] = b * 2
    return whole


def _places_of_places(a: Tensor, b: Tensor) -> Any:
    whole = b.new_ones(3, 20, 31)
    whole[:, 2:17:3, 3:28:5] = a
    whole[1:, 1:9:2][..., 5:25:5] = b[1:]
    whole[:, :, 1::3][:, 4:6] = 7
    return whole * 2, whole[:, ::3].sum()


def _fewer_than_the_step(a: Tensor, b: Tensor) -> Any:
    whole = a.exp().repeat(1, 2, 2)
    whole[:, 1::7, ::9] = 3.0
    return whole


@pytest.mark.parametrize("target", [Target("cpp", get_device("cpu"), torch.device("cpu")), Target(
    "triton", get_device("h100"), torch.device("cpu"), interpreted=True)], ids=lambda t: t.language)
@pytest.mark.parametrize("fn", [_every_other_place, _places_of_places, _fewer_than_the_step], ids=lambda f: f.__name__)
def test_places_with_gaps_along_several_dimensions(fn: Callable[..., Any], target: Target,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: target)
    same_as_eager(fn, lambda: [torch.randn(3, 5, 5), torch.randn(3, 4, 5 if fn is _every_other_place else 4)])
