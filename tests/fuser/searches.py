"""What the tests of the measured search share: two functions, a timer that is told what to say, one compilation."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rooffuse.autotune import Search
from rooffuse.compile import Compiled, compile_graph
from rooffuse.cost_model import get_device, local_device
from rooffuse.options import Options
from rooffuse.targets import Target
from torch import Tensor

from .graphs import trace

CPU = Target("cpp", local_device("cpu"), torch.device("cpu"))
INTERPRETED = Target("triton", get_device("h100"), torch.device("cpu"), interpreted=True)


def row_sums(x: Tensor, w: Tensor) -> Tensor:
    return (x * w).sum(-1)


def two_kernels(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """A long kernel, a product that the library computes, and a short kernel."""
    return (x * w).sum(-1), (w.view(-1, 5) @ w.view(5, -1)).relu().sum(0)


INPUTS = (torch.randn(40, 3000), torch.randn(3000))


class FakeTimer:
    """Says what each candidate takes, and remembers what it was asked for."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = seconds
        self.calls: list[int] = []

    def __call__(self, runs: Sequence[Callable[[], None]], restore: Callable[[], None], budget_s: float
                 ) -> list[list[float]]:
        self.calls.append(len(runs))
        for run in runs:
            restore()
            run()
        return [[self.seconds[k] if k < len(self.seconds) else 1.0] * 3 for k in range(len(runs))]


def never(runs: Any, restore: Any, budget_s: float) -> list[list[float]]:
    raise AssertionError("something was measured")


def compiled(fn: Callable[..., Any], inputs: Sequence[Tensor], cache: Path, timer: Any, target: Target = CPU,
             **search: Any) -> Compiled:
    options = Options(autotune=True, strict=target.interpreted or target.language == "cpp", cache_dir=str(cache))
    return compile_graph(trace(fn, *inputs), target, options, search=Search(timer=timer, **search))


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.tuned.json"))
