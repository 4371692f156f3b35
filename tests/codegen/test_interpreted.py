"""Triton's interpreter reduces and scans whole blocks here: what comes is what each element in turn would give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rooffuse.codegen.build_triton import load_launcher
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.triton_kernel import TritonSource
from rooffuse.codegen.triton_spelling import PRELUDE
from torch import Tensor

ROWS, COLUMNS = 4, 16
#: ``chained`` is a linear function after another: associative, but not commutative.
BODY = """

@triton.jit
def chained(a, b, c, d):
    return a * c, b * c + d


@triton.jit
def kernel(x, out, at):
    i, j = tl.arange(0, {rows})[:, None], tl.arange(0, {columns})[None, :]
    places = i * {columns} + j
    values = tl.load(x + places)
    {lines}
"""


def run(lines: list[str], x: Tensor, out: Tensor, at: Tensor, folder: Path) -> None:
    text = PRELUDE + BODY.format(rows=ROWS, columns=COLUMNS, lines="\n    ".join(lines))
    source = TritonSource(text, "kernel", {"x": "*fp32", "out": "*fp32", "at": "*i32"}, 1, 4, True)
    load_launcher(source, DiskCache(folder), torch.device("cpu"), interpreted=True)(x, out, at)


def block() -> Tensor:
    """Many equal numbers, and a row and a column with two NaNs."""
    x = torch.randint(-2, 3, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0)).float()
    x[2, 5], x[2, 11], x[3, 5] = (float("nan"),) * 3
    return x


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("keep", [True, False])
def test_the_first_of_the_largest(axis: int, keep: bool, tmp_path: Path) -> None:
    x = block()
    size = x.shape[1 - axis]
    out, at = torch.zeros(size), torch.zeros(size, dtype=torch.int32)
    place = ("j", "i")[axis] if keep else f"tl.arange(0, {size})"
    run([f"v, p = tl.reduce((values, places), {axis}, rf_argmax, keep_dims={keep})",
         f"tl.store(out + {place}, v)", f"tl.store(at + {place}, p)"], x, out, at, tmp_path)
    values, places = x.max(axis)
    where = places + torch.arange(ROWS) * COLUMNS if axis else places * COLUMNS + torch.arange(COLUMNS)
    torch.testing.assert_close(out, values, equal_nan=True)
    assert torch.equal(at, where.int())


def test_of_the_whole_block(tmp_path: Path) -> None:
    x = block()
    out, at = torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    run(["tl.store(out, tl.reduce(values, None, rf_max))",
         "tl.store(at, tl.reduce(places, None, rf_imax))"], x, out, at, tmp_path)
    assert out.isnan().all() and at.item() == ROWS * COLUMNS - 1


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_scans_keep_the_order(axis: int, reverse: bool, tmp_path: Path) -> None:
    x = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    out, at = torch.zeros(ROWS, COLUMNS), torch.zeros(1, dtype=torch.int32)
    run([f"_, v = tl.associative_scan((values, values), {axis}, chained, reverse={reverse})",
         "tl.store(out + places, v)"], x, out, at, tmp_path)
    expected = x.flip(axis).clone() if reverse else x.clone()
    for k in range(1, x.shape[axis]):
        this, last = expected.select(axis, k), expected.select(axis, k - 1)
        this += last * this
    torch.testing.assert_close(out, expected.flip(axis) if reverse else expected)
