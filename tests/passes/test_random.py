"""Random numbers made in kernels: known answers of the generator, distributions, seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rooffuse.cost_model import price
from rooffuse.options import OptionError, make_options
from rooffuse.passes.philox import philox, philox_bits, philox_words
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.fuser.graphs import groups_of, planned
from tests.models.eager import STRICT

ROWS, COLUMNS = 500, 400


def compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(fn, backend="rooffuse", options={**STRICT, "random": "kernel", **options})


# Counter, key and result of the known-answer tests that come with the authors' Random123 library.
@pytest.mark.parametrize("counter,key,words", [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    found = philox_words([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert tuple(int(w) for w in found) == words


def test_bits_of_seed_and_position_reach_key_and_counter() -> None:
    seed, position = torch.tensor(-(2**63) + 5), torch.tensor([0, 1, 2**32, 2**32 + 1])
    bits = [philox_bits(seed, position, word) for word in (0, 1)]
    assert len({int(b) for word in bits for b in word}) == 8
    expected = philox_words([torch.tensor(v) for v in (1, 1, 0, 0)], [torch.tensor(5), torch.tensor(2**31)])
    assert [int(b[3]) & 0xFFFFFFFF for b in bits] == [int(w) for w in expected[:2]]


def draws(x: Tensor) -> dict[str, Tensor]:
    shape = tuple(x.shape)
    return {
        "rand": torch.rand(shape), "rand_like": torch.rand_like(x), "rand bfloat16": torch.rand_like(x.bfloat16()),
        "rand float16": torch.rand(shape, dtype=torch.float16), "uniform": torch.empty_like(x).uniform_(-2, 4),
        "randn": torch.randn(shape), "randn_like": torch.randn_like(x.t()), "normal": torch.empty_like(x).normal_(3, 2),
        "exponential": torch.empty_like(x).exponential_(2.0), "bernoulli": torch.bernoulli(torch.full_like(x, 0.3)),
        "bernoulli p": torch.empty_like(x).bernoulli_(0.2), "randint": torch.randint(-3, 9, shape),
        "randint_like": torch.randint_like(x.int(), 5), "dropout": F.dropout(torch.ones_like(x), 0.3),
    }


#: mean, standard deviation, least and largest possible value
MOMENTS = {
    "rand": (0.5, 12**-0.5, 0, 1 - 2**-24), "rand_like": (0.5, 12**-0.5, 0, 1 - 2**-24),
    "rand bfloat16": (0.5 - 2**-9, 12**-0.5, 0, 1 - 2**-8), "rand float16": (0.5 - 2**-12, 12**-0.5, 0, 1 - 2**-11),
    "uniform": (1, 6 * 12**-0.5, -2, 4), "randn": (0, 1, -6, 6), "randn_like": (0, 1, -6, 6),
    "normal": (3, 2, -9, 15), "exponential": (0.5, 0.5, 0, 9), "bernoulli": (0.3, 0.21**0.5, 0, 1),
    "bernoulli p": (0.2, 0.16**0.5, 0, 1), "randint": (2.5, (143 / 12) ** 0.5, -3, 8),
    "randint_like": (2, 2**0.5, 0, 4), "dropout": (1, (3 / 7) ** 0.5, 0, 10 / 7 + 1e-6),
}


@pytest.fixture(scope="module")
def drawn() -> list[dict[str, Tensor]]:
    """Three runs: the first two of one seed, the third after it, and what eager makes of it."""
    fn, x = compiled(draws), torch.zeros(ROWS, COLUMNS)
    torch.manual_seed(11)
    first = fn(x)
    torch.manual_seed(11)
    return [first, fn(x), fn(x), draws(x)]


@pytest.mark.parametrize("name", MOMENTS)
def test_distributions(name: str, drawn: list[dict[str, Tensor]]) -> None:
    first, again, later, eager = (d[name] for d in drawn)
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert (first.dtype, first.shape, first.stride()) == (eager.dtype, eager.shape, eager.stride())
    mean, deviation, low, high = MOMENTS[name]
    values = first.double()
    error = deviation / math.sqrt(values.numel())
    assert abs(values.mean().item() - mean) < 5 * error
    assert abs(values.std().item() / deviation - 1) < 0.02
    assert low <= values.min().item() and values.max().item() <= high
    # Neighbours along rows and down columns have nothing to do with each other.
    centred = values - values.mean()
    for a, b in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
        assert abs((a * b).mean().item()) < 6 * deviation**2 / math.sqrt(values.numel())


def test_operators_of_one_graph_draw_different_numbers(drawn: list[dict[str, Tensor]]) -> None:
    assert not torch.equal(drawn[0]["rand"], drawn[0]["rand_like"])


def test_gradients_go_through_the_mask_of_the_forward_pass() -> None:
    def loss(x: Tensor) -> Any:
        y = F.dropout(x, 0.4)
        return y.detach(), *torch.autograd.grad((y * y).sum(), x)

    x = torch.rand(50, 60, requires_grad=True)
    y, gradient = compiled(loss)(x)
    torch.testing.assert_close(gradient, 2 * y / 0.6)


def test_a_dropped_nan_stays_one_and_probabilities_may_be_tensors() -> None:
    x = torch.full((64,), float("nan"))
    assert compiled(lambda x: F.dropout(x, 0.5))(x).isnan().all()
    p = torch.tensor([0.0, 1.0]).repeat(50)
    assert torch.equal(compiled(torch.bernoulli)(p), p)


def test_dropout_is_one_kernel_on_a_gpu_and_eagers_numbers_on_the_cpu() -> None:
    def fn(x: Tensor, residual: Tensor) -> Tensor:
        return F.dropout(x.relu(), 0.1, True) + residual

    inputs = [torch.empty(64, 64), torch.empty(64, 64)]
    assert [len(g) > 1 for g in groups_of(planned(fn, *inputs).grouping)] == [False, True]
    x = torch.randn(64, 64)
    torch.manual_seed(4)
    ours = compiled(fn, random="auto")(x, x)
    torch.manual_seed(4)
    torch.testing.assert_close(ours, fn(x, x))


def test_bits_are_priced_by_what_they_write() -> None:
    seeds, result = torch.empty(3, dtype=torch.int64), torch.empty(50, 60, dtype=torch.int32)
    found = price(philox, (seeds, 1, [50, 60], 0), {}, result)
    assert found.known and found.kind == "random" and found.cost.bytes_written == 4 * 3000


def test_what_has_no_rule_keeps_drawing_from_the_framework() -> None:
    def fn(x: Tensor) -> Any:
        return torch.randperm(50), torch.rand(5, dtype=torch.float64), torch.randint(0, 2**40, (9,)), torch.rand(0)

    permutation, double, wide, empty = compiled(fn)(torch.zeros(1))
    assert sorted(permutation.tolist()) == list(range(50)) and double.dtype == torch.float64
    assert wide.max() > 2**30 and empty.numel() == 0
    assert all(isinstance(t, Tensor) for t in tree_leaves((permutation, double, wide, empty)))


def test_the_option_is_one_of_three_words() -> None:
    assert make_options(options={"random": "Kernel"}, environ={}).random == "kernel"
    with pytest.raises(OptionError, match="random takes 'auto', 'eager', 'kernel'"):
        make_options(options={"random": "fast"}, environ={})
