"""What may differ between two C++ functions of one kernel: how loops are shared, cut and fed, not what they compute."""
from __future__ import annotations

from dataclasses import dataclass

#: Lanes of the column form: accumulator arrays of this length stay in the first-level cache.
COLUMN_LANES = 128


@dataclass(frozen=True)
class Schedule:
    """How the loops of a kernel are printed; the default is what work and sizes suggest.

    threads: whether threads share the outer loops; None for where there is enough work.
    ahead: whether loops ask memory ahead; None for where they compute for long.
    lanes: neighbouring columns that the column form takes at a time; None for as many as there are shares for.
    streamed: buffers that are written past the caches, where that can be done in whole lines.
    """

    threads: bool | None = None
    ahead: bool | None = None
    lanes: int | None = None
    streamed: tuple[str, ...] = ()


DEFAULT_SCHEDULE = Schedule()
