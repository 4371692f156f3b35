"""C++ functions of kernels, and the translation unit with the kernels of a graph and its calls of them."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .cpp import NestPrinter
from .cpp_prelude import PRELUDE
from .cpp_schedule import DEFAULT_SCHEDULE, Schedule
from .cpp_spelling import STORAGE
from .ir import Kernel

#: What makes a unit's text the whole of it or a part; it comes first.
PARTS = """\
// All of this is one translation unit, or with RF_FROM and RF_TO the part of it with the kernels of those numbers.
#ifdef RF_FROM
#define RF_HERE(k) (RF_FROM <= (k) && (k) < RF_TO)
#define RF_SHARED __attribute__((visibility("hidden")))
#else
#define RF_HERE(k) 1
#define RF_SHARED static
#endif
#if RF_HERE(0)
RF_SHARED int rf_status;  // becomes 1 when a gather's index is out of range
#else
extern RF_SHARED int rf_status;
#endif
"""


def print_function(kernel: Kernel, symbol: str, schedule: Schedule = DEFAULT_SCHEDULE) -> str:
    """A C++ function ``static void symbol(pointers...)`` that computes ``kernel``."""
    return f"static {_head(kernel, symbol)} {_body(kernel, schedule)}"


def _head(kernel: Kernel, symbol: str) -> str:
    written = kernel.written
    parameters = ", ".join(
        f"{'' if b.name in written else 'const '}{STORAGE[b.dtype]}* {b.name}" for b in kernel.buffers)
    return f"void {symbol}({parameters})"


def _body(kernel: Kernel, schedule: Schedule) -> str:
    lines = ["{"]
    for nest in kernel.nests:
        lines += NestPrinter(kernel, nest, schedule).print()
    return "\n".join([*lines, "}"])


def _in_its_part(kernel: Kernel, number: int, schedule: Schedule) -> str:
    """The function in the part of the unit that has it (see ``RF_HERE`` in `PARTS`), its declaration elsewhere."""
    head = f"RF_SHARED {_head(kernel, f'kernel_{number}')}"
    return f"#if RF_HERE({number})\n{head} {_body(kernel, schedule)}\n#else\n{head};\n#endif"


def kernel_loops(unit: str) -> list[int]:
    """Loops of each kernel in a unit that `print_unit` made, by number."""
    _, *kernels = re.split(r"^#if RF_HERE\(\d+\)\nRF_SHARED void", unit, flags=re.MULTILINE)
    return [text.count("for (") for text in kernels]


def print_unit(kernels: Sequence[Kernel], calls: Sequence[tuple[int, tuple[int, ...]]],
               schedules: Mapping[int, Schedule] | None = None) -> str:
    """A translation unit with each kernel once and ``rooffuse_run(first, last, table)``; with ``RF_FROM`` and ``RF_TO``
    defined, the part of it with the kernels of those numbers, and with number 0 ``rooffuse_run``.

    ``calls[k]`` is ``(kernel number, slots)``: step ``k`` runs that kernel on the pointers in those slots of ``table``.
    ``rooffuse_run`` runs the steps ``first`` to ``last - 1`` and returns 1 if a gather's index was out of range.
    ``schedules`` has those of kernels, by number, that don't have the default.
    """
    parts = [PARTS + PRELUDE]
    parts += [_in_its_part(kernel, k, (schedules or {}).get(k, DEFAULT_SCHEDULE)) for k, kernel in enumerate(kernels)]
    run = ["#if RF_HERE(0)", 'extern "C" int rooffuse_run(int64_t first, int64_t last, void* const* table) {',
           "  rf_status = 0;", "  for (int64_t step = first; step < last; ++step) switch (step) {"]
    for k, (number, slots) in enumerate(calls):
        kernel = kernels[number]
        arguments = ", ".join(f"({'' if b.name in kernel.written else 'const '}{STORAGE[b.dtype]}*)table[{slot}]"
                              for b, slot in zip(kernel.buffers, slots))
        run.append(f"    case {k}: kernel_{number}({arguments}); break;")
    run += ["  }", "  return rf_status;", "}", "#endif"]
    return "\n\n".join([*parts, "\n".join(run)]) + "\n"
