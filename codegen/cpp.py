"""C++ printer: loops, threads and vector lanes around the statements of a kernel.

One axis is the *lane* axis, whose loop the compiler vectorises: the last parallel axis of pointwise work, the last
reduction axis where memory runs along it ("row" form), or a parallel axis that is contiguous where the reduction is
not ("column" form: accumulators are arrays over a block of lanes). Leading parallel axes are shared among threads.
"""
from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from sympy import Symbol

from .cpp_spelling import COMPUTE, PRELUDE, STORAGE, CppStatements, literal
from .index import affine
from .ir import Axis, Compute, Kernel, Load, Nest, Reduce, Stmt, Store, operands
from .sweeps import Phase, inner_values, plan_phases

#: Points times operations below which a second thread costs more than it brings.
SERIAL_WORK = 1 << 15
#: Sums are accumulated in blocks of this many terms, so that float32 keeps its precision over long rows.
SUM_BLOCK = 4096
#: The same for the column form, where each lane adds every term of a block itself.
COLUMN_BLOCK = 256
#: Lanes of the column form: accumulator arrays of this length stay in the first-level cache.
COLUMN_LANES = 128
#: Elements of a contiguous parallel axis that one thread takes at a time.
CHUNK = 4096
#: Leading parallel iterations wanted, so that threads get even shares.
SHARES = 64
#: Bytes of thread-local memory for a row of values that several sweeps need.
HELD_BYTES = 1 << 18

_HEAVY = frozenset((
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf "
    "erfc lgamma pow sigmoid atan2"
).split())


class NestPrinter(CppStatements):
    """Prints one nest; ``lines`` holds the result."""

    def __init__(self, kernel: Kernel, nest: Nest) -> None:
        super().__init__(kernel, nest)
        self.lines: list[str] = []
        self.depth = 1
        self.phases = plan_phases(nest)
        self.inner = inner_values(nest)
        self.column = self._column_axis()
        self.work = prod(a.size for a in nest.axes) * max(len(nest.body), 1)
        self.held = self._held_values()
        self._read_back: frozenset[str] = frozenset()
        self._rest: list[Axis] = []
        self._blocked = False

    # -- choices ------------------------------------------------------------------------------------------------

    def _column_axis(self) -> Axis | None:
        """The parallel axis to vectorise over instead of the last reduction axis, if memory runs along it."""
        if not self.nest.reduction or not self.nest.parallel:
            return None
        row, along_row = self.nest.reduction[-1], 0
        votes: dict[Axis, int] = {}
        reduced = [self.nest.scopes[s.value] for s in self.nest.body if isinstance(s, Reduce)]
        for stmt in self.nest.body:
            if isinstance(stmt, Load | Store):
                coefficients = affine(stmt.index)[0]
                elements = prod(self.nest.ranges[s] for s in coefficients if s in self.nest.ranges)
                if coefficients.get(row.symbol) == 1:
                    along_row += elements
                elif row.symbol in coefficients:
                    for axis in self.nest.parallel:
                        if coefficients.get(axis.symbol) == 1 and axis.size >= 8 and all(
                                axis.symbol in scope for scope in reduced):
                            votes[axis] = votes.get(axis, 0) + elements
        best = max(votes, key=lambda a: votes[a], default=None)
        return best if best is not None and votes[best] > along_row else None

    def _held_values(self) -> frozenset[str]:
        """Inner values kept from one sweep to the next because computing them again costs more than a load."""
        sweeps = [p for p in self.phases if p.sweep]
        if self.column is not None or len(sweeps) < 2:
            return frozenset()
        row = prod(a.size for a in self.nest.reduction)
        heavy: set[str] = set()
        for stmt in self.nest.body:
            if isinstance(stmt, Compute) and stmt.name in self.inner and (
                    stmt.op in _HEAVY or any(a in heavy for a in stmt.args)):
                heavy.add(stmt.name)
        result: list[str] = []
        for first, later in zip(sweeps, sweeps[1:]):
            made = [s for s in first.body if not isinstance(s, Store | Reduce) and s.name in heavy]
            used = {n for s in later.body for n in operands(s)}
            inside_later = {s.name for s in later.body if not isinstance(s, Store | Reduce)}
            frontier = [s for s in made if s.name in used and s.name in inside_later
                        and (s.op in _HEAVY if isinstance(s, Compute) else False)]
            for stmt in frontier:
                if row * stmt.dtype.itemsize <= HELD_BYTES and len(result) < 4 and stmt.name not in result:
                    result.append(stmt.name)
        return frozenset(result)

    # -- output -------------------------------------------------------------------------------------------------

    def add(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def open(self, text: str) -> None:
        self.add(text + " {")
        self.depth += 1

    def close(self, count: int = 1) -> None:
        for _ in range(count):
            self.depth -= 1
            self.add("}")

    def print(self) -> list[str]:
        """Lines of the whole nest, in a block of their own."""
        self.open("")
        if self.column is not None:
            self._print_columns(self.column)
        else:
            self._print_rows()
        self.close()
        return self.lines

    # -- threads ------------------------------------------------------------------------------------------------

    def _threads(self, axes: Sequence[Axis], contiguous: Axis | None = None, step: int = CHUNK) -> tuple[int, bool]:
        """Open the loops that threads share: over as many leading ``axes`` as give every thread a fair share, and over
        chunks of ``contiguous`` if those are too few. Returns how many loops to close and whether chunks are open."""
        parallel = self.work >= SERIAL_WORK
        shared: list[Axis] = []
        while len(shared) < len(axes) and prod(a.size for a in shared) < SHARES:
            shared.append(axes[len(shared)])
        rest = list(axes[len(shared):])
        count = prod(a.size for a in shared)
        chunked = contiguous is not None and count < SHARES and contiguous.size > step
        opened = 0
        chunks = -(-contiguous.size // step) if chunked and contiguous else 1
        if count * chunks > 1:
            if parallel:
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
        if isinstance(stmt, Reduce):
            return frozenset(a.symbol for a in self.nest.axes)
        return self.nest.scopes[stmt.name]

    def _by_depth(self, body: Sequence[Stmt], loops: Sequence[Axis]) -> list[list[Stmt]]:
        """``body`` sorted by the innermost of ``loops`` that each statement varies over; entry 0 is outside of all."""
        result: list[list[Stmt]] = [[] for _ in range(len(loops) + 1)]
        for stmt in body:
            scope = self._scope(stmt)
            result[max((k + 1 for k, a in enumerate(loops) if a.symbol in scope), default=0)].append(stmt)
        return result

    # -- rows and pointwise -------------------------------------------------------------------------------------

    def _print_rows(self) -> None:
        parallel = list(self.nest.parallel)
        if not self.nest.reduction and parallel:
            self._print_pointwise(parallel)
            return
        opened, _ = self._threads(parallel)
        first = self.phases[0].body if not self.phases[0].sweep else ()
        levels = self._by_depth(first, self._rest)
        for name in sorted(self.held):
            row = prod(a.size for a in self.nest.reduction)
            self.add(f"{COMPUTE[self.dtypes[name]]} held_{name}[{row}];")
        for k, statements in enumerate(levels):
            for stmt in statements:
                self.add(self.line(stmt))
            if k < len(self._rest):
                self.open(self._loop(self._rest[k]))
                opened += 1
        computed: set[str] = set()
        for phase in self.phases[1 if first else 0:]:
            if phase.sweep:
                self._print_sweep(phase, computed)
            else:
                for stmt in phase.body:
                    self.add(self.line(stmt))
        self.close(opened)

    def _print_pointwise(self, parallel: list[Axis]) -> None:
        lane = parallel[-1]
        opened, chunked = self._threads(parallel[:-1], lane)
        body = self.phases[0].body
        levels = self._by_depth(body, [*self._rest, lane])
        for k, statements in enumerate(levels[:-1]):
            for stmt in statements:
                self.add(self.line(stmt))
            if k < len(self._rest):
                self.open(self._loop(self._rest[k]))
                opened += 1
        self.add("#pragma omp simd")
        if chunked:
            self.open(f"for (int64_t {lane.symbol} = begin; {lane.symbol} < end; ++{lane.symbol})")
        else:
            self.open(self._loop(lane))
        for stmt in levels[-1]:
            self.add(self.line(stmt))
        self.close(opened + 1)

    def _print_sweep(self, phase: Phase, computed: set[str]) -> None:
        """One pass over a row: accumulators, loops over the reduction axes, results."""
        axes = list(self.nest.reduction)
        body = self._without_held(phase.body, computed)
        for reduce in phase.reduces:
            self._declare_accumulator(reduce)
        blocked = axes[-1].size > SUM_BLOCK and any(r.op in ("sum", "prod") for r in phase.reduces)
        levels = self._by_depth(body, axes)
        opened = 0
        for k, statements in enumerate(levels[:-1]):
            for stmt in statements:
                self.add(self.line(stmt))
            if k < len(axes) - 1:
                self.open(self._loop(axes[k]))
                opened += 1
        lane = axes[-1]
        low, high = "0", str(lane.size)
        if blocked:
            self.open(f"for (int64_t block = 0; block < {lane.size}; block += {SUM_BLOCK})")
            opened += 1
            low, high = "block", f"RF_MIN(block + {SUM_BLOCK}, INT64_C({lane.size}))"
            for reduce in phase.reduces:
                if reduce.op in ("sum", "prod"):
                    start = self._start(reduce)
                    self.add(f"{COMPUTE[reduce.dtype]} part_{reduce.name} = {start};")
        clauses = self._clauses(phase.reduces, blocked)
        if clauses is not None:
            self.add("#pragma omp simd" + clauses)
        self.open(f"for (int64_t {lane.symbol} = {low}; {lane.symbol} < {high}; ++{lane.symbol})")
        for stmt in levels[-1]:
            if isinstance(stmt, Reduce):
                self._accumulate(stmt, blocked)
            else:
                self.add(self.line(stmt))
                if not isinstance(stmt, Store) and stmt.name in self.held and stmt.name not in self._read_back:
                    self.add(f"held_{stmt.name}[{self._row_position()}] = {stmt.name};")
                    computed.add(stmt.name)
        self.close()
        if blocked:
            for reduce in phase.reduces:
                if reduce.op in ("sum", "prod"):
                    self.add(f"acc_{reduce.name} {'+' if reduce.op == 'sum' else '*'}= part_{reduce.name};")
        self.close(opened)
        for reduce in phase.reduces:
            self._finish(reduce)

    def _without_held(self, body: tuple[Stmt, ...], computed: set[str]) -> list[Stmt]:
        """The sweep's statements with held values read back, and without what only those needed."""
        ready = frozenset(n for n in self.held if n in computed)
        needed: set[str] = set()
        kept: list[Stmt] = []
        for stmt in reversed(body):
            name = None if isinstance(stmt, Store) else stmt.name
            if not isinstance(stmt, Store | Reduce) and name not in needed:
                continue
            if name not in ready:
                needed.update(operands(stmt))
            kept.append(stmt)
        self._read_back = ready
        return list(reversed(kept))

    def _row_position(self) -> str:
        text = "0"
        for axis in self.nest.reduction:
            text = axis.symbol.name if text == "0" else f"({text}) * {axis.size} + {axis.symbol}"
        return text

    def line(self, stmt: Stmt) -> str:
        if not isinstance(stmt, Store) and stmt.name in self._read_back:
            return self.declare(stmt.name, stmt.dtype, f"held_{stmt.name}[{self._row_position()}]")
        return super().line(stmt)

    # -- reductions ---------------------------------------------------------------------------------------------

    def _start(self, reduce: Reduce) -> str:
        dtype = self.dtypes[reduce.value]
        if reduce.op in ("sum", "prod"):
            return literal(0 if reduce.op == "sum" else 1, reduce.dtype)
        if reduce.op in ("any", "all"):
            return "0" if reduce.op == "any" else "1"
        largest = reduce.op in ("max", "argmax")
        if dtype == torch.bool:
            return "false" if largest else "true"
        if dtype.is_floating_point:
            return literal(float("-inf") if largest else float("inf"), dtype)
        limits = torch.iinfo(dtype)
        return literal(limits.min if largest else limits.max, dtype)

    def _declare_accumulator(self, reduce: Reduce, lanes: int | None = None) -> None:
        array = "" if lanes is None else f"[{lanes}]"
        names = [(f"acc_{reduce.name}", self._accumulator_type(reduce), self._start(reduce))]
        if reduce.op in ("argmax", "argmin"):
            names.append((f"at_{reduce.name}", "int64_t", "-1"))
        elif self._watches_nan(reduce) and lanes is None:
            names.append((f"nan_{reduce.name}", "int", "0"))
        for name, kind, start in names:
            if lanes is None:
                self.add(f"{kind} {name} = {start};")
            else:
                self.add(f"{kind} {name}{array};")
                self.add(f"for (int64_t j = 0; j < {lanes}; ++j) {name}[j] = {start};")

    def _accumulator_type(self, reduce: Reduce) -> str:
        if reduce.op in ("any", "all"):
            return "int"
        return COMPUTE[self.dtypes[reduce.value] if reduce.op.startswith("arg") else reduce.dtype]

    def _watches_nan(self, reduce: Reduce) -> bool:
        return reduce.op in ("max", "min") and reduce.dtype.is_floating_point

    def _clauses(self, reduces: Sequence[Reduce], blocked: bool) -> str | None:
        """OpenMP reduction clauses, or None where the loop can't be vectorised."""
        if any(r.op.startswith("arg") for r in reduces):
            return None
        groups: dict[str, list[str]] = {}
        for reduce in reduces:
            kind = {"sum": "+", "prod": "*", "max": "max", "min": "min", "any": "|", "all": "&"}[reduce.op]
            part = blocked and reduce.op in ("sum", "prod")
            groups.setdefault(kind, []).append(f"part_{reduce.name}" if part else f"acc_{reduce.name}")
            if self._watches_nan(reduce):
                groups.setdefault("|", []).append(f"nan_{reduce.name}")
        return "".join(f" reduction({kind} : {', '.join(names)})" for kind, names in groups.items())

    def _accumulate(self, reduce: Reduce, blocked: bool, lane: str = "") -> None:
        value, acc = reduce.value, f"acc_{reduce.name}{lane}"
        if reduce.op in ("sum", "prod"):
            target = f"part_{reduce.name}{lane}" if blocked else acc
            self.add(f"{target} {'+' if reduce.op == 'sum' else '*'}= {value};")
        elif reduce.op in ("any", "all"):
            self.add(f"{acc} {'|' if reduce.op == 'any' else '&'}= (int){value};")
        elif reduce.op in ("argmax", "argmin"):
            at, sign = f"at_{reduce.name}{lane}", ">" if reduce.op == "argmax" else "<"
            better = f"{at} < 0 || {value} {sign} {acc}"
            if self.dtypes[value].is_floating_point:
                better += f" || ({value} != {value} && {acc} == {acc})"
                better = f"({acc} == {acc} || {at} < 0) && ({better})"
            self.add(f"if ({better}) {{ {acc} = {value}; {at} = {self._row_position()}; }}")
        elif self._watches_nan(reduce) and not lane:
            self.add(f"nan_{reduce.name} |= ({value} != {value});")
            self.add(f"{acc} = {value} {'>' if reduce.op == 'max' else '<'} {acc} ? {value} : {acc};")
        else:
            self.add(f"{acc} = rf_{reduce.op}({acc}, {value});")

    def _finish(self, reduce: Reduce) -> None:
        result = f"acc_{reduce.name}"
        if reduce.op in ("argmax", "argmin"):
            result = f"at_{reduce.name}"
        elif self._watches_nan(reduce):
            suffix = "" if reduce.dtype == torch.float64 else "f"
            result = f'nan_{reduce.name} ? __builtin_nan{suffix}("") : acc_{reduce.name}'
        elif reduce.op in ("any", "all"):
            result += " != 0"
        self.add(self.declare(reduce.name, reduce.dtype, result))

    # -- columns ------------------------------------------------------------------------------------------------

    def _print_columns(self, lane: Axis) -> None:
        others = [a for a in self.nest.parallel if a != lane]
        opened, chunked = self._threads(others, lane, COLUMN_LANES)
        for axis in self._rest:
            self.open(self._loop(axis))
            opened += 1
        if not chunked:
            step = min(COLUMN_LANES, lane.size)
            self.open(f"for (int64_t begin = 0; begin < {lane.size}; begin += {step})")
            opened += 1
            self.add(f"const int64_t end = RF_MIN(begin + {step}, INT64_C({lane.size}));")
        shared = self._shared_between_phases(lane)
        for name in shared:
            self.add(f"{COMPUTE[self.dtypes[name]]} lanes_{name}[{COLUMN_LANES}];")
        for phase in self.phases:
            if phase.sweep:
                self._print_column_sweep(phase, lane, shared)
            else:
                self._print_lanes(phase.body, lane, shared, inside_sweep=False)
        self.close(opened)

    def _shared_between_phases(self, lane: Axis) -> list[str]:
        """Per-lane values made once a row and used in another phase."""
        made = {s.name: k for k, p in enumerate(self.phases) for s in p.body
                if not isinstance(s, Store) and (not p.sweep or isinstance(s, Reduce))}
        used: dict[str, None] = {}
        for k, phase in enumerate(self.phases):
            for stmt in phase.body:
                for name in operands(stmt):
                    if made.get(name, k) != k and lane.symbol in self.nest.scopes[name]:
                        used[name] = None
        return list(used)

    def _print_lanes(self, body: Sequence[Stmt], lane: Axis, shared: list[str], inside_sweep: bool) -> None:
        """Statements that don't vary over lanes as they are, the others in a loop over the block of lanes."""
        varying = [s for s in body if lane.symbol in self._scope(s)]
        for stmt in body:
            if lane.symbol not in self._scope(stmt):
                self.add(self.line(stmt))
        if not varying:
            return
        if not any(isinstance(s, Reduce) and s.op.startswith("arg") for s in varying):
            self.add("#pragma omp simd")
        self.open("for (int64_t j = 0; j < end - begin; ++j)")
        self.add(f"const int64_t {lane.symbol} = begin + j;")
        here = {s.name for s in varying if not isinstance(s, Store | Reduce)}
        for name in shared:
            if name not in here and any(name in operands(s) for s in varying):
                self.add(f"const {COMPUTE[self.dtypes[name]]} {name} = lanes_{name}[j];")
        for stmt in varying:
            if isinstance(stmt, Reduce):
                self._accumulate(stmt, self._blocked, "[j]")
                continue
            self.add(self.line(stmt))
            if not isinstance(stmt, Store) and stmt.name in shared and not inside_sweep:
                self.add(f"lanes_{stmt.name}[j] = {stmt.name};")
        self.close()

    def _print_column_sweep(self, phase: Phase, lane: Axis, shared: list[str]) -> None:
        axes = list(self.nest.reduction)
        first = axes[0]
        self._blocked = first.size > COLUMN_BLOCK and any(r.op in ("sum", "prod") for r in phase.reduces)
        for reduce in phase.reduces:
            self._declare_accumulator(reduce, COLUMN_LANES)
        opened = 0
        if self._blocked:
            self.open(f"for (int64_t block = 0; block < {first.size}; block += {COLUMN_BLOCK})")
            opened += 1
            for reduce in phase.reduces:
                if reduce.op in ("sum", "prod"):
                    self.add(f"{COMPUTE[reduce.dtype]} part_{reduce.name}[{COLUMN_LANES}];")
                    self.add(f"for (int64_t j = 0; j < {COLUMN_LANES}; ++j) "
                             f"part_{reduce.name}[j] = {self._start(reduce)};")
        levels = self._by_depth([s for s in phase.body if lane.symbol not in self._scope(s)], axes)
        for k, axis in enumerate(axes):
            for stmt in levels[k]:
                self.add(self.line(stmt))
            if k == 0 and self._blocked:
                self.open(f"for (int64_t {axis.symbol} = block; {axis.symbol} < "
                          f"RF_MIN(block + {COLUMN_BLOCK}, INT64_C({axis.size})); ++{axis.symbol})")
            else:
                self.open(self._loop(axis))
            opened += 1
        for stmt in levels[-1]:
            self.add(self.line(stmt))
        self._print_lanes([s for s in phase.body if lane.symbol in self._scope(s)], lane, shared, inside_sweep=True)
        inner = len(axes)
        self.close(inner)
        if self._blocked:
            for reduce in phase.reduces:
                if reduce.op in ("sum", "prod"):
                    sign = "+" if reduce.op == "sum" else "*"
                    self.add(f"for (int64_t j = 0; j < {COLUMN_LANES}; ++j) "
                             f"acc_{reduce.name}[j] {sign}= part_{reduce.name}[j];")
        self.close(opened - inner)
        for reduce in phase.reduces:
            source = "at" if reduce.op.startswith("arg") else "acc"
            target = f"lanes_{reduce.name}"
            if reduce.name not in shared:
                continue
            self.add(f"for (int64_t j = 0; j < {COLUMN_LANES}; ++j) {target}[j] = {source}_{reduce.name}[j];")


def print_function(kernel: Kernel, symbol: str) -> str:
    """A C++ function ``static void symbol(pointers...)`` that computes ``kernel``."""
    written = kernel.written
    parameters = ", ".join(
        f"{'' if b.name in written else 'const '}{STORAGE[b.dtype]}* {b.name}" for b in kernel.buffers)
    lines = [f"static void {symbol}({parameters}) {{"]
    for nest in kernel.nests:
        lines += NestPrinter(kernel, nest).print()
    return "\n".join([*lines, "}"])


def print_unit(kernels: Sequence[Kernel], calls: Sequence[tuple[int, tuple[int, ...]]]) -> str:
    """A translation unit with each kernel once and ``rooffuse_run(first, last, table)``.

    ``calls[k]`` is ``(kernel number, slots)``: step ``k`` runs that kernel on the pointers in those slots of ``table``.
    ``rooffuse_run`` runs the steps ``first`` to ``last - 1`` and returns 1 if a gather's index was out of range.
    """
    parts = [PRELUDE]
    parts += [print_function(kernel, f"kernel_{k}") for k, kernel in enumerate(kernels)]
    run = ['extern "C" int rooffuse_run(int64_t first, int64_t last, void* const* table) {',
           "  rf_status = 0;", "  for (int64_t step = first; step < last; ++step) switch (step) {"]
    for k, (number, slots) in enumerate(calls):
        kernel = kernels[number]
        arguments = ", ".join(f"({'' if b.name in kernel.written else 'const '}{STORAGE[b.dtype]}*)table[{slot}]"
                              for b, slot in zip(kernel.buffers, slots))
        run.append(f"    case {k}: kernel_{number}({arguments}); break;")
    run += ["  }", "  return rf_status;", "}"]
    return "\n\n".join([*parts, "\n".join(run)]) + "\n"
