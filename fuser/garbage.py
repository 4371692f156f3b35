"""Python's search for cyclic garbage while torch.compile works."""
from __future__ import annotations

import gc
from typing import Any

#: Young collections between two full ones that never come about.
_NEVER = 1 << 30
_before: list[tuple[int, int, int]] = []


def postpone_full_collections() -> None:
    """From the next compilation in this process on, full collections wait for its end; younger ones go on.

    Tracing makes enough objects that stay to bring one about, or several, in each of which Python goes through all
    that the process has loaded: a tenth of the time that a small model takes to compile, for next to nothing found.
    Dynamo calls back where a compilation begins and ends; ``torch._dynamo.reset`` forgets that, so this may be called
    again.
    """
    from torch import _dynamo as dynamo

    if _begin not in dynamo.callback_handler.start_callbacks:
        dynamo.on_compile_start(_begin)
        dynamo.on_compile_end(_end)


def _begin(_: Any) -> None:
    _before.append(gc.get_threshold())
    gc.set_threshold(*_before[-1][:2], _NEVER)


def _end(_: Any) -> None:
    if _before:  # else it was asked for in the middle of a compilation
        gc.set_threshold(*_before.pop())
