"""A concatenation that is only stored is stored piece by piece; one that is read keeps its conditions."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rooffuse.codegen.ir import Kernel, Load, Reduce, Store

from .cases import BY_NAME, rope
from .kernels import lower


def kernel_of(fn: Callable, *inputs: torch.Tensor) -> Kernel:
    return lower(fn, *inputs).group.kernel


def count(kernel: Kernel, kind: type) -> int:
    return sum(isinstance(s, kind) for s in kernel.statements())


def conditions(kernel: Kernel) -> int:
    return sum(getattr(s, "mask", None) is not None or getattr(s, "op", "") == "where" for s in kernel.statements())


@pytest.mark.parametrize("name, stores, loads, nests", [
    ("concat", 3, 2, 1),
    ("concat_middle", 3, 2, 2),
    ("concat_with_itself", 3, 1, 1),
    ("concat_own_nests", 3, 3, 2),
    ("concat_permuted", 2, 2, 2),
    ("stack_interleaved", 2, 2, 1),
    ("stack_of_concats", 4, 2, 2),
    ("stack_sums", 3, 2, 1),
    ("stack_of_products", 2, 4, 1),
    ("concat_row_and_products", 3, 4, 1),
    ("stack_of_different_rows", 2, 4, 1),
])
def test_each_piece_is_stored_once_without_conditions(name: str, stores: int, loads: int, nests: int) -> None:
    kernel = kernel_of(BY_NAME[name].fn, *BY_NAME[name].inputs())
    assert (count(kernel, Store), conditions(kernel)) == (stores, 0)
    assert (count(kernel, Load), len(kernel.nests)) == (loads, nests)


def test_a_recurrence_whose_steps_are_stacked_is_linear_work() -> None:
    def steps(n: int) -> Kernel:
        return kernel_of(BY_NAME["stack_of_steps"].fn, *[torch.empty(2, n, 5, 3)] * 2, torch.empty(2, n, 3))

    short, long = steps(6), steps(12)
    assert [len(k.nests) for k in (short, long)] == [1, 1]
    assert count(long, Reduce) == 12 and conditions(long) == 0
    assert len(long.nests[0].body) <= 2 * len(short.nests[0].body) + 2


@pytest.mark.parametrize("fn", [
    lambda x, y: torch.cat([x, y], -1) * 2,
    lambda x, y: (c := torch.cat([x, y], -1), c + 1),
    lambda x, y: rope(x, y, y),
], ids=["read", "stored and read", "rotated halves"])
def test_a_concatenation_that_is_read_is_selected(fn: Callable) -> None:
    kernel = kernel_of(fn, torch.empty(5, 8), torch.empty(5, 8))
    assert conditions(kernel) > 0 and len(kernel.nests) == 1


def test_long_computations_that_share_nothing_stay_apart() -> None:
    def long(x: torch.Tensor) -> torch.Tensor:
        for k in range(40):
            x = (x * (k + 2)).sin()
        return x

    x, y = torch.empty(5, 3), torch.empty(5, 3)
    assert len(kernel_of(lambda x, y: torch.cat([x.exp(), y.exp()]), x, y).nests) == 1
    assert len(kernel_of(lambda x, y: torch.cat([long(x), long(y)]), x, y).nests) == 2


@pytest.mark.parametrize("name", ["rope_part", "rope_quarter", "rope_part_of_odd_rows", "rope_last_part", "rope_halves",
                                  "rope_three_pieces", "rope_interleaved", "rope_turned_groups"])
def test_pieces_of_a_normalised_row_are_stored_where_it_is_normalised(name: str) -> None:
    kernel = kernel_of(BY_NAME[name].fn, *BY_NAME[name].inputs())
    assert len(kernel.nests) == 1 and count(kernel, Reduce) <= 2
