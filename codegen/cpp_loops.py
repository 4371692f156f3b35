"""Loops and threads of the C++ printer: lines with indentation, shared outer loops, statements by loop depth."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from sympy import Symbol

from .cpp_schedule import DEFAULT_SCHEDULE, Schedule
from .cpp_spelling import CppStatements
from .ir import Axis, Kernel, Nest, Reduce, Stmt, Store
from .scatter import colliding_axes
from .summed_products import summed_products

#: Points times operations below which a second thread costs more than it brings.
SERIAL_WORK = 1 << 15
#: Elements of a contiguous parallel axis that one thread takes at a time.
CHUNK = 4096
#: Fewest of them where every thread goes through all places of a scatter, for its own share of what is written there.
SHARED_LANES = 64
#: Leading parallel iterations wanted, so that threads get even shares.
SHARES = 64
#: Shares of a thread where each goes through all places of a scatter.
CHUNKS_A_THREAD = 2


class LoopWriter(CppStatements):
    """Collects ``lines``; ``_rest`` are the parallel axes that ``_threads`` left for plain loops."""

    schedule: Schedule = DEFAULT_SCHEDULE
    _shared_at: int | None = None  # the line with the pragma of the loop that threads share

    def __init__(self, kernel: Kernel, nest: Nest) -> None:
        super().__init__(kernel, nest)
        self.lines: list[str] = []
        self.depth = 1
        self.work = prod(a.size for a in nest.axes) * max(len(nest.body), 1)
        self.colliding = colliding_axes(nest)
        self._rest: list[Axis] = []
        self._chunk = CHUNK
        self.products = summed_products(nest)

    def add(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def add_all(self, statements: Iterable[Stmt]) -> None:
        for stmt in statements:
            self.put(stmt)

    def put(self, stmt: Stmt) -> None:
        """Add a statement's line; a product that is only summed has none, its sum takes the factors."""
        if isinstance(stmt, Store) or stmt.name not in self.products:
            self.add(self.line(stmt))

    def open(self, text: str) -> None:
        self.add(text + " {")
        self.depth += 1

    def close(self, count: int = 1) -> None:
        for _ in range(count):
            self.depth -= 1
            self.add("}")

    # -- threads ------------------------------------------------------------------------------------------------

    def _threads(self, axes: Sequence[Axis], contiguous: Axis | None = None, step: int = CHUNK) -> tuple[int, bool]:
        """Open the loops that threads share: over as many leading ``axes`` as give every thread a fair share, and over
        chunks of ``contiguous`` if those are too few. Returns how many loops to close and whether chunks are open.

        Axes along which stores collide stay inside of each thread, which goes through them in order."""
        parallel = self.work >= SERIAL_WORK if self.schedule.threads is None else self.schedule.threads
        free = [a for a in axes if a.symbol not in self.colliding]
        shared: list[Axis] = []
        while len(shared) < len(free) and prod(a.size for a in shared) < SHARES:
            shared.append(free[len(shared)])
        rest = [a for a in axes if a not in shared]
        count = prod(a.size for a in shared)
        if contiguous is not None and self.colliding:
            if contiguous.symbol in self.colliding:
                contiguous = None
            elif len(free) < len(axes):
                shares = min(SHARES, CHUNKS_A_THREAD * torch.get_num_threads())
                step = min(step, max(SHARED_LANES, contiguous.size // shares))
        chunked = contiguous is not None and count < SHARES and contiguous.size > step
        self._chunk = step
        opened = 0
        chunks = -(-contiguous.size // step) if chunked and contiguous else 1
        if count * chunks > 1:
            if parallel:
                self._shared_at = len(self.lines)
                self.add("#pragma omp parallel for schedule(static)")
            self.open(f"for (int64_t t = 0; t < {count * chunks}; ++t)")
            opened += 1
            stride = count * chunks
            for axis in shared:
                stride //= axis.size
                position = "t" if stride == 1 else f"t / {stride}"
                wrapped = position if axis is shared[0] else f"({position}) % {axis.size}"
                self.add(f"const int64_t {axis.symbol} = {wrapped};")
            if chunked and contiguous:
                self.add(f"const int64_t begin = (t % {chunks}) * {step};")
                self.add(f"const int64_t end = RF_MIN(begin + {step}, INT64_C({contiguous.size}));")
        else:
            for axis in shared:
                self.add(f"const int64_t {axis.symbol} = 0;")
        self._rest = rest
        return opened, chunked

    def _loop(self, axis: Axis) -> str:
        return f"for (int64_t {axis.symbol} = 0; {axis.symbol} < {axis.size}; ++{axis.symbol})"

    def _scope(self, stmt: Stmt) -> frozenset[Symbol]:
        if isinstance(stmt, Store):
            return self.nest.store_scope(stmt)
        if isinstance(stmt, Reduce) and not stmt.along:
            return frozenset(a.symbol for a in self.nest.axes)
        return self.nest.scopes[stmt.name]

    def _invariant(self, stmt: Stmt) -> bool:
        """Whether a statement gives the same for every row."""
        if isinstance(stmt, Store) or (isinstance(stmt, Reduce) and stmt.strip):
            return False
        parallel = {a.symbol for a in self.nest.parallel}
        return not self.nest.scopes[stmt.value if isinstance(stmt, Reduce) else stmt.name] & parallel

    def _by_depth(self, body: Sequence[Stmt], loops: Sequence[Axis]) -> list[list[Stmt]]:
        """``body`` sorted by the innermost of ``loops`` that each statement varies over; entry 0 is outside of all."""
        result: list[list[Stmt]] = [[] for _ in range(len(loops) + 1)]
        for stmt in body:
            scope = self._scope(stmt)
            result[max((k + 1 for k, a in enumerate(loops) if a.symbol in scope), default=0)].append(stmt)
        return result
