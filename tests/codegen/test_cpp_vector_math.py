"""Equal numbers have equal values: in a loop's vectors, in what is left of it, and where there is no loop."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rooffuse.codegen import build_cpp
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_vector_math import UNARY_MATH
from torch import Tensor

from .kernels import CppUnit, lower

#: Instruction sets whose widest vectors are of 64 bytes, of 32, and those whose loops take one number after the other.
FLAGS = {"native": (), "without AVX-512": ("-mno-avx512f",), "without AVX2": ("-mno-avx2", "-mno-avx512f")}
#: One more than two of the widest vectors of floats, and nothing that a vector would be made of.
LONG, SHORT = 33, 1


def _function(name: str, x: Tensor) -> Tensor:
    if name in ("pow", "atan2", "fmod"):
        return getattr(torch, name)(x, x + 0.5)
    return getattr(torch, name)(x + 1 if name == "acosh" else x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("flags", FLAGS)
def test_a_number_has_the_same_bits_everywhere(flags: str, dtype: torch.dtype, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cpp, "FLAGS", (*build_cpp.FLAGS, *FLAGS[flags]))
    numbers = torch.linspace(0.011, 0.987, 40, dtype=dtype)[:, None]
    names = [*UNARY_MATH, "pow", "atan2", "fmod"]
    kernels = {f"{name} {n}": lower(lambda x, name=name: _function(name, x), numbers.expand(40, n).contiguous())
               for name in names for n in (LONG, SHORT)}
    unit = CppUnit(kernels, DiskCache(tmp_path))
    for name in names:
        (long,), (short,) = (unit.run(f"{name} {n}", kernels[f"{name} {n}"], [numbers.expand(40, n).contiguous()])
                             for n in (LONG, SHORT))
        assert (long == long[:, :1]).all() and (short == long[:, :1]).all(), name
        torch.testing.assert_close(short, _function(name, numbers), rtol=2e-6 if dtype == torch.float32 else 1e-14,
                                   atol=0)


def test_ends_of_the_range_are_eager_s(tmp_path: Path) -> None:
    ends = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), -1.0, 1e-42, 3e38, -3e38] * 3)
    kernels = {name: lower(lambda x, name=name: _function(name, x), ends) for name in UNARY_MATH}
    unit = CppUnit(kernels, DiskCache(tmp_path))
    for name in UNARY_MATH:
        (ours,) = unit.run(name, kernels[name], [ends])
        expected = _function(name, ends.double()).float()
        assert torch.equal(ours.isnan(), expected.isnan()), name
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-44, equal_nan=True)


@pytest.mark.parametrize("dtype,whole", [(torch.float32, torch.int32), (torch.float64, torch.int64)])
@pytest.mark.parametrize("flags", FLAGS)
def test_remainders_are_exact(flags: str, dtype: torch.dtype, whole: torch.dtype, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any two numbers: random bits, whole numbers whose quotients are whole, too, and the ends of the range."""
    monkeypatch.setattr(build_cpp, "FLAGS", (*build_cpp.FLAGS, *FLAGS[flags]))
    torch.manual_seed(7)
    info = torch.finfo(dtype)
    ends = torch.tensor([0.0, -0.0, 1.0, -3.0, 0.1, float("inf"), -float("inf"), float("nan"), info.max, info.tiny,
                         info.tiny / 8, 2 / info.eps, 2 / info.eps + 2], dtype=dtype)
    x, y = (torch.randint(torch.iinfo(whole).min, torch.iinfo(whole).max, (20000,), dtype=whole).view(dtype).clone()
            for _ in range(2))
    x[:2000], y[:2000] = torch.randint(-99, 99, (2000,)).to(dtype), torch.randint(1, 9, (2000,)).to(dtype)
    x[2000:9000], y[2000:9000] = torch.randn(7000, dtype=dtype) * 1e3, torch.randn(7000, dtype=dtype)
    x[-169:], y[-169:] = ends.repeat_interleave(13), ends.repeat(13)
    kernel = lower(torch.fmod, x, y)
    (ours,) = CppUnit({"fmod": kernel}, DiskCache(tmp_path)).run("fmod", kernel, [x, y])
    with np.errstate(invalid="ignore"):
        exact = torch.from_numpy(np.fmod(x.numpy(), y.numpy()))
    assert ((ours.view(whole) == exact.view(whole)) | (ours.isnan() & exact.isnan())).all()
