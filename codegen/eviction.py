"""What a GPU's caches are asked to keep of a nest's accesses, and what they may let go at once."""
from __future__ import annotations

from collections.abc import Sequence

from .ir import Kernel, Load, Nest, Store
from .sweeps import Phase

#: Largest buffer to keep because rows share it: a part of second-level caches of 32 MiB and more, beside the rows.
KEPT_BYTES = 1 << 23


def eviction(kernel: Kernel, nest: Nest, stmt: Load | Store, phases: Sequence[Phase] = (), at: int = 0) -> str:
    """"evict_last" for what is read again, "evict_first" for what streams past that, "" for the cache's own order.

    ``phases`` are those of a row that is gone through tile by tile, and ``at`` the one of the access; none where a
    program has its rows at once. A row's tiles are read again in later sweeps, and what rows share by other programs.
    Where several sweeps go over a row, the last one to read something and results make room for the others.
    """
    row, places = {a.symbol for a in nest.reduction}, stmt.index.free_symbols
    several = bool(places & row) and sum(p.sweep for p in phases) > 1
    if isinstance(stmt, Store):
        return "evict_first" if several and not stmt.accumulate else ""
    if not places or not places <= nest.ranges.keys():
        return ""  # one number, or looked up: who else reads it isn't known
    buffer = kernel.buffer(stmt.buffer)
    if any(a.size > 1 and a.symbol not in places for a in nest.parallel):
        return "evict_last" if buffer.size * buffer.dtype.itemsize <= KEPT_BYTES else ""
    if not several:
        return ""
    again = any(isinstance(s, Load) and (s.buffer, s.index) == (stmt.buffer, stmt.index)
                for phase in phases[at + 1:] for s in phase.body)
    return "evict_last" if again else "evict_first"
