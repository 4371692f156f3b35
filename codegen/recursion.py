"""Room for recursion along the nodes of a group, of which there may be more than Python has frames."""
from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Frames that the values of the longest chains take: some five for each operator, and as many again of the caller's.
FRAMES = 10_000

_lock = threading.Lock()
_running = 0
_before = 0


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Raise Python's limit while anybody is inside, whichever thread it is; the last one to leave puts it back."""
    global _running, _before
    with _lock:
        if _running == 0:
            _before = sys.getrecursionlimit()
            sys.setrecursionlimit(max(_before, FRAMES))
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0:
                sys.setrecursionlimit(_before)
