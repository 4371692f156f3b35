"""float16 in C++: conversions by arithmetic on bits, of every number, and as vectors."""
from __future__ import annotations

from pathlib import Path

import torch
from rooffuse.codegen.cache import DiskCache
from torch import Tensor

from .kernels import CppUnit, lower
from .test_cpp_lanes import assembly_of


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Whether all are equal to the bit, but for which NaN it is."""
    kind = torch.int16 if expected.dtype == torch.float16 else torch.int32
    return bool(((found.view(kind) == expected.view(kind)) | (found.isnan() & expected.isnan())).all())


def test_every_number_is_read_as_it_is(tmp_path: Path) -> None:
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    lowered = lower(lambda x: x.float() * 1.0, x)
    assert same_bits(CppUnit({"fn": lowered}, DiskCache(tmp_path)).run("fn", lowered, (x,))[0], x.float())


def test_numbers_are_rounded_to_nearest_even(tmp_path: Path) -> None:
    """Any bits, and those next to each number of float16 and between two of them."""
    new = torch.Generator().manual_seed(0)
    some = torch.randint(-(1 << 31), (1 << 31) - 1, (1 << 18,), generator=new, dtype=torch.int64).to(torch.int32)
    each = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16).float().view(torch.int32)
    near = torch.cat([each + k for k in (-1, 0, 1, 0xfff, 0x1000, 0x1001)])
    x = torch.cat([some, near]).view(torch.float32)
    x = torch.cat([x, -x])
    lowered = lower(lambda x: x.half(), x)
    assert same_bits(CppUnit({"fn": lowered}, DiskCache(tmp_path)).run("fn", lowered, (x,))[0], x.half())


def test_conversions_are_vectors(tmp_path: Path) -> None:
    """One number after the other they took twenty times as long as everything else of a norm."""
    loop = assembly_of(lambda x: (x.float() * 2 + 1).half(), (torch.randn(64, 4096).half(),), tmp_path)
    assert "vcvtph2ps" not in loop and "vcvtps2ph" not in loop
    assert sum("psrld" in line or "psrad" in line for line in loop.splitlines()) >= 1
