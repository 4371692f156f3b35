"""Values of a row that wait for the next sweep: in memory of their own, or in the row of a result that they become."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_unit import print_function
from torch import Tensor

from .kernels import CppUnit, assert_same, lower


def weighted(x: Tensor, y: Tensor) -> Tensor:
    products = (x * y).exp()
    return products / products.sum(-1, keepdim=True)


def frequent(x: Tensor, y: Tensor) -> Tensor:
    """Truth values, stored as bytes, that take eight operations."""
    chosen = (((x * y + 0.5) * 2 + 0.25) * 3 + 0.5) * 0.5 > 1
    return chosen & (x * y * 200 > chosen.sum(-1, keepdim=True))


@pytest.mark.parametrize("size", [1, 37, 300])
@pytest.mark.parametrize("fn", [weighted, frequent])
def test_what_waits_in_the_row_of_a_result(fn, size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = torch.randn(size), torch.randn(65, 1)
    lowered = lower(fn, *args)
    if size > 1:
        assert "* const held_" in print_function(lowered.group.kernel, "kernel")
    assert_same(CppUnit({"fn": lowered}, DiskCache(tmp_path)).run("fn", lowered, args), (fn(*args),))


def scaled_softmax(x: Tensor, parts: Tensor) -> Tensor:
    """The scale is worth keeping, and so are the exponentials: those need ``x`` again in the second sweep."""
    scale = sum(parts.unbind())
    return (x * torch.rsqrt(scale / 200 + 1e-5)).softmax(-1)


@pytest.mark.parametrize("size", [48, 300])
def test_nothing_waits_in_an_input_that_is_read_again(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = torch.randn(3, size), torch.rand(9, size) * 100
    lowered = lower(scaled_softmax, *args)
    text = print_function(lowered.group.kernel, "kernel")
    held, hosted = (set(re.findall(pattern, text)) for pattern in (r"held_\w+(?=\[)", r"\* const (held_\w+)"))
    assert len(held) == 2 and len(hosted) == 1 and hosted <= held, text
    unit = CppUnit({"fn": lowered}, DiskCache(tmp_path))
    assert_same(unit.run("fn", lowered, args, shared={"o0": "i0"}), (scaled_softmax(*args),))


@pytest.mark.parametrize("size", [48, 300])
def test_what_all_rows_share_is_computed_before_them(size: int, tmp_path: Path) -> None:
    """And what each row has for itself still waits for its next sweep."""
    torch.manual_seed(0)
    args = torch.randn(65, size), torch.rand(9, size) * 100
    lowered = lower(scaled_softmax, *args)
    before, _, rows = print_function(lowered.group.kernel, "kernel").partition("for (int64_t t = 0;")
    assert "sqrt" in before and "sqrt" not in rows and "* const held_" in rows
    unit = CppUnit({"fn": lowered}, DiskCache(tmp_path))
    assert_same(unit.run("fn", lowered, args, shared={"o0": "i0"}), (scaled_softmax(*args),))
