"""Exponentials of what is never above zero: which those are, and that they are the same bits for fewer steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_unit import print_unit
from rooffuse.codegen.ir import Compute
from rooffuse.codegen.signs import never_positive
from torch import Tensor
from torch.nn import functional as F

from .kernels import CppUnit, lower

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(("fn", "below"), [
    (lambda x, y: (x - x.amax(-1, keepdim=True)).exp(), True),
    (lambda x, y: (x * 0.3 - (x * 0.3).amax(-1, keepdim=True)).exp(), True),
    (lambda x, y: (x - y.amax(-1, keepdim=True)).exp(), False),
    (lambda x, y: (x - x.amin(-1, keepdim=True)).exp(), False),
    (lambda x, y: (x - x.mean(-1, keepdim=True)).exp(), False),
    (lambda x, y: (-x.abs()).exp(), True),
    (lambda x, y: (x * x * -0.5).exp(), True),
    (lambda x, y: (x * y * -0.5).exp(), False),
    (lambda x, y: (-x.abs() / (y * y + 1)).exp(), True),
    (lambda x, y: (-x.abs() / (y * y - 1)).exp(), False),
    (lambda x, y: x.clamp(max=0).exp(), True),
    (lambda x, y: x.clamp(max=0.5).exp(), False),
    (lambda x, y: (-y.exp()).exp(), True),
    (lambda x, y: (-(x.relu() + y.abs().sqrt())).exp(), True),
    (lambda x, y: (x.relu() - y.relu()).exp(), False),
    (lambda x, y: x.exp(), False),
])
def test_what_is_never_above_zero(fn: Callable[..., Tensor], below: bool) -> None:
    (nest,) = lower(fn, torch.randn(4, 33), torch.randn(4, 33)).group.kernel.nests
    last = [s for s in nest.body if isinstance(s, Compute) and s.op == "exp"][-1]
    assert (last.args[0] in never_positive(nest)) == below


def test_the_same_bits_as_of_other_exponentials(tmp_path: Path) -> None:
    exact = torch.tensor([0.0, -0.0, -INF, NAN, -87.33, -87.34, -103.97, -104.0, -104.5, -105.0, -105.5, -1e9, -1e38])
    x = torch.cat([exact, torch.linspace(-106, 0, 100003), -torch.rand(5001) * 1e-6])
    kernels = {"any": lower(torch.exp, x), "below": lower(lambda x: (-x.abs()).exp(), x)}
    for name, kernel in kernels.items():
        text = print_unit([kernel.group.kernel], [(0, (0, 1))])
        assert ("rf_exp_below(v" in text[text.index("kernel_0"):]) == (name == "below")
    unit = CppUnit(kernels, DiskCache(tmp_path))
    (usual,), (short,) = (unit.run(name, kernel, [x]) for name, kernel in kernels.items())
    assert torch.equal(usual.nan_to_num(7), short.nan_to_num(7))  # a NaN has the sign that its magnitude was given
    torch.testing.assert_close(short, x.double().exp().float(), rtol=2e-7, atol=1.5e-45, equal_nan=True)


def test_sigmoid_at_both_ends(tmp_path: Path) -> None:
    x = torch.cat([torch.tensor([INF, -INF, NAN, 0.0, -0.0, 1e38, -1e38]), torch.linspace(-110, 110, 50001)])
    kernel = lower(torch.sigmoid, x)
    found, = CppUnit({"it": kernel}, DiskCache(tmp_path)).run("it", kernel, [x])
    torch.testing.assert_close(found, x.double().sigmoid().float(), rtol=3e-7, atol=1.5e-45, equal_nan=True)


def test_masked_rows_are_zero_and_rows_of_minus_infinity_nan(tmp_path: Path) -> None:
    x = torch.randn(3, 257) * 40
    x[0, 5:] = x[1] = -INF
    kernel = lower(lambda x: F.softmax(x, -1), x)
    found, = CppUnit({"it": kernel}, DiskCache(tmp_path)).run("it", kernel, [x])
    torch.testing.assert_close(found, F.softmax(x, -1), rtol=1e-5, atol=1e-30, equal_nan=True)
    assert not found[0, 5:].any() and found[1].isnan().all()
