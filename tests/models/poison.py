"""Memory that shows whether anybody reads what nobody wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import rooffuse.runtime
import torch
from torch import Tensor


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Arenas and results are filled before they are written: NaN in floating types, an unlikely number in others."""
    take, empty = rooffuse.runtime.ArenaPool.take, torch.empty_strided
    kept = rooffuse.result_memory.ResultMemory.take

    def poisoned_arena(self: Any) -> Any:
        arena = take(self)
        arena.memory.fill_(0xFF)
        return arena

    def poisoned(made: Tensor) -> Tensor:
        return made.fill_(float("nan") if made.is_floating_point() else 1 if made.dtype == torch.bool else 113)

    with (
        mock.patch.object(rooffuse.runtime.ArenaPool, "take", poisoned_arena),
        mock.patch.object(rooffuse.runtime.torch, "empty_strided", lambda *a, **k: poisoned(empty(*a, **k))),
        mock.patch.object(rooffuse.runtime.RESULTS, "take", lambda *a: poisoned(kept(rooffuse.runtime.RESULTS, *a))),
    ):
        yield
