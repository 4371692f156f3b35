"""When Python's collector of cycles runs."""
from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Keep the collector of cycles from running inside; also a decorator.

    Planning makes hundreds of thousands of objects and hardly a cycle among them, in a process whose heap holds all of
    torch: the collector, which looks at the heap each time that it has grown by some, was a fifth of the time. What
    does become garbage meanwhile is collected afterwards.
    """
    if not gc.isenabled():  # somebody else's choice, or an outer one of these
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
