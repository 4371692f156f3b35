"""C++ functions of kernels, and the translation unit with the kernels of a graph and its calls of them."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from .cpp import NestPrinter
from .cpp_schedule import DEFAULT_SCHEDULE, Schedule
from .cpp_spelling import PRELUDE, STORAGE
from .ir import Kernel


def print_function(kernel: Kernel, symbol: str, schedule: Schedule = DEFAULT_SCHEDULE) -> str:
    """A C++ function ``static void symbol(pointers...)`` that computes ``kernel``."""
    written = kernel.written
    parameters = ", ".join(
        f"{'' if b.name in written else 'const '}{STORAGE[b.dtype]}* {b.name}" for b in kernel.buffers)
    lines = [f"static void {symbol}({parameters}) {{"]
    for nest in kernel.nests:
        lines += NestPrinter(kernel, nest, schedule).print()
    return "\n".join([*lines, "}"])


def print_unit(kernels: Sequence[Kernel], calls: Sequence[tuple[int, tuple[int, ...]]],
               schedules: Mapping[int, Schedule] | None = None) -> str:
    """A translation unit with each kernel once and ``rooffuse_run(first, last, table)``.

    ``calls[k]`` is ``(kernel number, slots)``: step ``k`` runs that kernel on the pointers in those slots of ``table``.
    ``rooffuse_run`` runs the steps ``first`` to ``last - 1`` and returns 1 if a gather's index was out of range.
    ``schedules`` has those of kernels, by number, that don't have the default.
    """
    parts = [PRELUDE]
    parts += [print_function(kernel, f"kernel_{k}", (schedules or {}).get(k, DEFAULT_SCHEDULE))
              for k, kernel in enumerate(kernels)]
    run = ['extern "C" int rooffuse_run(int64_t first, int64_t last, void* const* table) {',
           "  rf_status = 0;", "  for (int64_t step = first; step < last; ++step) switch (step) {"]
    for k, (number, slots) in enumerate(calls):
        kernel = kernels[number]
        arguments = ", ".join(f"({'' if b.name in kernel.written else 'const '}{STORAGE[b.dtype]}*)table[{slot}]"
                              for b, slot in zip(kernel.buffers, slots))
        run.append(f"    case {k}: kernel_{number}({arguments}); break;")
    run += ["  }", "  return rf_status;", "}"]
    return "\n\n".join([*parts, "\n".join(run)]) + "\n"
