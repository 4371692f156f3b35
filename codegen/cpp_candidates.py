"""Other schedules of a C++ kernel than the default, for a search that measures them: few, and each another source."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from .cpp import NestPrinter
from .cpp_columns import WIDE_LANES
from .cpp_loops import SERIAL_WORK
from .cpp_schedule import COLUMN_LANES, DEFAULT_SCHEDULE, Schedule
from .cpp_unit import print_function
from .ir import Kernel

#: Most candidates of a kernel, the default among them.
MOST_CANDIDATES = 4
#: How far from the choice's threshold, as a factor, it is in doubt whether threads are worth their start.
THREADS_IN_DOUBT = 32


@dataclass(frozen=True)
class CppCandidate:
    """``kernel`` printed by ``schedule``; ``name`` says what is other than the default."""

    name: str
    kernel: Kernel
    schedule: Schedule = DEFAULT_SCHEDULE


def cpp_candidates(kernel: Kernel, jammed: Mapping[int, Kernel], streamed: tuple[str, ...] = ()
                   ) -> tuple[CppCandidate, ...]:
    """At most `MOST_CANDIDATES` candidates whose sources differ, "default" first.

    ``jammed`` has the same kernel with other numbers of rows side by side; ``streamed`` are buffers that the default
    writes past the caches. The other candidates change no order of
    sums, except those that ask ahead along rows: blocks of a row are summed apart there.
    """
    default = Schedule(streamed=streamed)
    found = [CppCandidate("default", kernel, default)]
    seen = {print_function(kernel, "kernel", default)}
    for candidate in _others(kernel, jammed, default):
        text = print_function(candidate.kernel, "kernel", candidate.schedule)
        if text not in seen and len(found) < MOST_CANDIDATES:
            seen.add(text)
            found.append(candidate)
    return tuple(found)


def _others(kernel: Kernel, jammed: Mapping[int, Kernel], default: Schedule) -> Iterator[CppCandidate]:
    for rows, other in sorted(jammed.items()):
        yield CppCandidate("one row at a time" if rows == 1 else f"{rows} rows at once", other, default)
    if default.streamed:
        yield CppCandidate("results through the caches", kernel)
    # One of these prints what the default does, and isn't a candidate.
    yield CppCandidate("memory not asked ahead", kernel, replace(default, ahead=False))
    yield CppCandidate("memory asked ahead", kernel, replace(default, ahead=True))
    work = sum(prod(a.size for a in nest.axes) * len(nest.body) for nest in kernel.nests)
    if work < THREADS_IN_DOUBT * SERIAL_WORK:
        yield CppCandidate("one thread", kernel, replace(default, threads=False))
        if work * THREADS_IN_DOUBT >= SERIAL_WORK:
            yield CppCandidate("several threads", kernel, replace(default, threads=True))
    if any(NestPrinter(kernel, nest, DEFAULT_SCHEDULE).column is not None for nest in kernel.nests):
        for lanes in (WIDE_LANES, COLUMN_LANES, COLUMN_LANES // 2):
            yield CppCandidate(f"{lanes} columns at once", kernel, replace(default, lanes=lanes))
