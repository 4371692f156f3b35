"""What a case of the kernel tests is, and the table that files of cases fill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
#: One, odd, prime, just above a power of two, and beyond the lengths at which rows are summed in blocks or looped.
RAGGED = (1, 2, 7, 31, 65, 129, 1000, 4097, 16385, 20011)


@dataclass(frozen=True)
class Case:
    """``fn(*make())`` is what a kernel has to compute. ``heavy`` ones are left out where each element is slow."""

    name: str
    fn: Callable[..., Any]
    make: Callable[[], list[Tensor]]
    heavy: bool = False

    def inputs(self) -> list[Tensor]:
        torch.manual_seed(7)
        return self.make()


CASES: list[Case] = []


def case(name: str, fn: Callable[..., Any], *shapes: Any, heavy: bool = False) -> None:
    """Inputs are given as shapes of normal numbers, or as functions that make a tensor."""

    def make() -> list[Tensor]:
        return [torch.randn(s) if isinstance(s, tuple) else s() for s in shapes]

    CASES.append(Case(name, fn, make, heavy))


def integers(high: int, *shape: int, low: int = 0, dtype: torch.dtype = torch.int64) -> Callable[[], Tensor]:
    return lambda: torch.randint(low, high, shape, dtype=dtype)
