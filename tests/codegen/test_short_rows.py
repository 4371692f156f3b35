"""Rows of a few elements on a CPU: written out, in vectors from row to row, and through arrays where they lie apart."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_prelude import PRELUDE
from rooffuse.codegen.cpp_unit import print_function
from rooffuse.codegen.short_rows import SHORT_ROW, write_out_short_rows
from rooffuse.codegen.verify import verify
from torch import Tensor

from .kernels import CppUnit, assert_same, finished, lower


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def likelihood(x: Tensor, classes: Tensor) -> Tensor:
    return F.log_softmax(x, -1).gather(1, classes[:, None])


def extremes(x: Tensor) -> tuple[Tensor, ...]:
    return x.amax(-1), x.amin(-1), (x > 1).any(-1), x.prod(-1)


def channels(x: Tensor) -> Tensor:
    return torch.softmax(x.view(-1, x.shape[1], 3), 1)


def half(x: Tensor) -> Tensor:
    return torch.softmax(x.bfloat16(), -1)


SIZES = (1, 2, 3, 4, 5, 8, 10, 19, SHORT_ROW, SHORT_ROW + 1)
FUNCTIONS = (softmax, likelihood, extremes, channels, half)


@pytest.fixture(scope="module")
def unit(tmp_path_factory) -> tuple[CppUnit, dict]:
    calls: dict[str, tuple[Callable, tuple[Tensor, ...]]] = {}
    for size in SIZES:
        for rows in (96, 1029):
            new = torch.Generator().manual_seed(size * rows)
            x = torch.randn(rows, size, generator=new)
            odd = x.clone()
            odd[1, 0], odd[2, -1], odd[3], odd[4, 0] = torch.nan, torch.inf, -torch.inf, -torch.inf
            classes = torch.randint(0, size, (rows,), generator=new)
            for fn in FUNCTIONS:
                calls[f"{fn.__name__} {rows} {size}"] = fn, {likelihood: (x, classes), half: (x,)}.get(fn, (odd,))
    lowered = {n: finished(fn, *args) for n, (fn, args) in calls.items()}
    return CppUnit(lowered, DiskCache(tmp_path_factory.mktemp("kernels"))), {n: (*calls[n], lowered[n]) for n in calls}


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_rows_of_any_length(unit: tuple[CppUnit, dict], fn: Callable) -> None:
    library, calls = unit
    for name in (n for n in calls if n.split()[0] == fn.__name__):
        _, args, lowered = calls[name]
        expected = fn(*args)
        assert_same(library.run(name, lowered, args), expected if isinstance(expected, tuple) else (expected,))


def test_a_short_row_is_no_loop() -> None:
    for size, reduced in ((10, False), (SHORT_ROW + 1, True)):
        nest, = finished(softmax, torch.randn(640, size)).group.kernel.nests
        assert bool(nest.reduction) == reduced


def test_a_plain_sum_stays_a_loop() -> None:
    """Which takes less than moving its elements does, but for rows that a few shuffles take apart."""
    for size, reduced in ((10, True), (4, False)):
        nest, = finished(lambda x: x.sum(-1), torch.randn(640, size)).group.kernel.nests
        assert bool(nest.reduction) == reduced


def test_places_and_scans_keep_their_loops() -> None:
    for fn in (lambda x: x.argmax(-1), lambda x: x.cumsum(-1).exp()):
        kernel = lower(fn, torch.randn(640, 5)).group.kernel
        assert write_out_short_rows(kernel) is kernel


def test_rows_apart_go_through_arrays() -> None:
    text = print_function(finished(softmax, torch.randn(640, 10)).group.kernel, "kernel")
    moved_in, computed, moved_out = text.split("for (int64_t l = 0; l < lanes; ++l)")[1:]
    assert "i0[" in moved_in and "o0[" in moved_out
    assert "i0[" not in computed and "o0[" not in computed and "rf_exp_below" in computed


def test_rows_that_are_looked_up_before_the_lanes_move_nothing(tmp_path: Path) -> None:
    """An index that is read among the lanes isn't known where arrays are filled. Two of a row's elements are wanted."""
    def fn(x: Tensor, i: Tensor) -> Tensor:
        shifted = F.pad((x[0].gather(1, i) + x[1].gather(1, i))[:, :-1], (1, 0)) + x[2].gather(1, i)
        return shifted[:, 3] + shifted[:, 4]

    for rows in (3, 200):
        args = torch.randn(3, rows, 6), torch.randint(0, 6, (rows, 7))
        lowered = finished(fn, *args)
        assert_same(CppUnit({"kernel": lowered}, DiskCache(tmp_path)).run("kernel", lowered, args), (fn(*args),))


def test_places_that_are_looked_up_are_checked_in_vectors(unit: tuple[CppUnit, dict]) -> None:
    """A branch for each lane would leave the loop scalar; an index out of range is told of all the same."""
    library, calls = unit
    _, (x, classes), lowered = calls["likelihood 1029 10"]
    text = print_function(lowered.group.kernel, "kernel")
    assert "rf_within" in text and "rf_bounded" not in text and "rf_within" in PRELUDE
    with pytest.raises(IndexError):
        library.run("likelihood 1029 10", lowered, (x, classes.index_fill(0, torch.tensor([1028]), 10)))


def test_rows_that_turn_out_constant_keep_their_buffer() -> None:
    """Written out, a condition on a row's places is decided, and nothing of the input is needed."""
    def hidden(x: Tensor) -> Tensor:
        return x.masked_fill(torch.arange(x.shape[-1]) >= 0, -1e4).softmax(-1)

    kernel = verify(finished(hidden, torch.randn(640, 4)).group.kernel)
    assert [b.name for b in kernel.buffers] == ["i0", "o0"]
