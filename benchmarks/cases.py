"""What is measured: a case is a name, a suite, and a function that makes a callable with its inputs."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """``make(device, dtype)`` returns ``(callable, args)``; nothing of the measuring code knows its shapes.

    ``floor_bytes`` of the inputs and outputs is counted from them. ``training`` cases run their own backward.
    """

    name: str
    suite: str
    make: Callable[[str, torch.dtype], tuple[Callable[..., Any], tuple[Any, ...]]]
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    training: bool = False
    tolerance: float | None = None


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_CASES: dict[tuple[str, str], Case] = {}


def case(suite: str, name: str, **options: Any):
    """Register a case under ``suite``. Raises ValueError for a name that is there already."""

    def register(make):
        if (suite, name) in _CASES:
            raise ValueError(f"suite {suite} already has a case {name}")
        _CASES[suite, name] = Case(name, suite, make, **options)
        return make

    return register


def cases_of(suite: str, pattern: str = "") -> list[Case]:
    """Cases of a suite whose names contain ``pattern``. Raises ValueError for a suite that doesn't exist."""
    from . import blocks, workloads  # noqa: F401  (importing them registers their cases)

    suites = {s for s, _ in _CASES}
    if suite not in suites:
        raise ValueError(f"there is no suite {suite!r}; there are {', '.join(sorted(suites))}")
    return [c for (s, n), c in _CASES.items() if s == suite and pattern in n]
