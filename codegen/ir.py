"""The loop IR: what one launch computes, before any choice of tiles or language.

    Kernel := name, buffers, nests            one launch; nests are independent of each other and may run in any order
    Nest   := axes, body                      a loop nest; body is in SSA form, executed at every point of the axes
    Axis   := symbol, size, kind              parallel, then strip, then reduction axes, each in row-major order
    Stmt   := Const  name = value
            | Index  name = expr                           an integer expression of axis symbols
            | Load   name = buffer[index] if mask else other
            | Compute name = op(args)
            | Reduce name = op over all or some reduction axes of value, or its sum or extremum over the strip axes
            | Scan   name = op over the row's elements of value up to this point, or the strip's rows up to this one
            | Store  buffer[index] = value                 (if mask; or +=, when several points meet at one element)

A value's *scope* is the set of axes that it varies over. Pointwise work and reductions are the same statements; only
``Reduce`` leaves the scope of the reduction axes, and a ``Scan`` is in it whatever its value. An index may contain
``symbol(name)`` of an SSA value: a gather (Load) or a scatter (Store). Values have a *compute type*: bfloat16, float16
and eight-bit floats are widened to float32 by the Load and rounded by the Store, so nothing in between rounds.

Strip axes are for reductions along rows and down columns of one input, as a norm's backward has them: a strip is some
neighbouring rows that one program goes through in order. Reductions along a row are as ever; a ``Reduce`` with
``strip`` reduces each column over the rows of the strip, and is known, at the parallel and reduction axes, after the
last of them. A ``Scan`` with ``strip`` is what each column has come to at a row, and known there.

A ``Reduce`` ``along`` some of the reduction axes only is a *segment* reduction: each row has as many results as the
other axes have places, and they are known at every point of the row. A ``Reduce`` with ``fold`` joins the results of
so many neighbours along the last parallel axis, too, and each of those has the whole.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from sympy import Expr, Symbol

from .float8 import FLOAT8

T = TypeVar("T")

WIDENED = dict.fromkeys((torch.bfloat16, torch.float16, *FLOAT8), torch.float32)

#: Every value operation and its number of arguments; a printer spells each of them.
OPS: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "neg abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh "
            "asinh acosh atanh erf erfc lgamma floor ceil round trunc isnan isinf not invert sigmoid cast "
            "round_to signbit bits from_bits"
        ).split(), 1),
    **dict.fromkeys(
        (
            "add sub mul div truncdiv floordiv fmod remainder pow atan2 min max lt le gt ge eq ne and or xor shl "
            "shr copysign bounded philox0 philox1"
        ).split(), 2),
    "where": 3,
    "fma": 3,
}

#: Reductions and the value each starts from (for floats; the printers know the integer limits).
#: "expsum" is the sum of ``exp(x - max(x))``, "devsum" that of ``(x - mean(x))²``: both need one sweep.
#: Down a strip, where "expsum" is the only one of them, an infinite maximum counts as zero.
ONLINE = ("expsum", "devsum")
REDUCTIONS = ("sum", "prod", "max", "min", "any", "all", "argmax", "argmin", *ONLINE)
#: Those that also go down the columns of a strip, from row to row.
DOWN_STRIPS = ("sum", "max", "min")
SCANS = ("sum", "prod", "max", "min", "logsumexp")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of storage type ``dtype`` are computed."""
    return WIDENED.get(dtype, dtype)


@dataclass(frozen=True)
class Axis:
    """One loop: ``symbol`` runs over ``[0, size)``."""

    symbol: Symbol
    size: int
    reduction: bool = False
    strip: bool = False

    @property
    def kind(self) -> str:
        return "reduction" if self.reduction else "strip" if self.strip else "parallel"


@dataclass(frozen=True)
class Buffer:
    """A kernel argument: ``size`` elements of ``dtype`` starting at the pointer that the launch passes."""

    name: str
    dtype: torch.dtype
    size: int


class _Reading:
    """What all statements have: their `operands`, which are asked for again and again, found once."""

    @cached_property
    def read(self) -> tuple[str, ...]:
        return _operands(self)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Const(_Reading):
    name: str
    dtype: torch.dtype
    value: int | float | bool


@dataclass(frozen=True)
class Index(_Reading):
    name: str
    dtype: torch.dtype
    expr: Expr


@dataclass(frozen=True)
class Load(_Reading):
    name: str
    dtype: torch.dtype
    buffer: str
    index: Expr
    mask: str | None = None
    other: int | float | bool = 0


@dataclass(frozen=True)
class Compute(_Reading):
    name: str
    dtype: torch.dtype
    op: str
    args: tuple[str, ...]
    rounding: torch.dtype | None = None  # "round_to": the type whose rounding is imitated; "(from_)bits": whose bits


@dataclass(frozen=True)
class Reduce(_Reading):
    name: str
    dtype: torch.dtype
    op: str
    value: str
    strip: bool = False
    along: tuple[Symbol, ...] = ()  # the reduction axes that a segment reduction goes along
    fold: int = 1  # how many neighbours along the last parallel axis have one result together


@dataclass(frozen=True)
class Scan(_Reading):
    name: str
    dtype: torch.dtype
    op: str
    value: str
    strip: bool = False  # down the columns of a strip, from row to row, rather than along the rows


@dataclass(frozen=True)
class Store(_Reading):
    buffer: str
    index: Expr
    value: str
    mask: str | None = None
    accumulate: bool = False  # add to what is there, once for every point of the nest


Stmt = Const | Index | Load | Compute | Reduce | Scan | Store


def operands(stmt: Stmt) -> tuple[str, ...]:
    """Names of the SSA values that ``stmt`` reads, those inside of its index included."""
    return stmt.read


def _operands(stmt: Stmt) -> tuple[str, ...]:
    names: list[str] = []
    if isinstance(stmt, Compute):
        names.extend(stmt.args)
    elif isinstance(stmt, Reduce | Scan | Store):
        names.append(stmt.value)
    if isinstance(stmt, Load | Store) and stmt.mask is not None:
        names.append(stmt.mask)
    index = index_of(stmt)
    if index is not None:
        names.extend(sorted(s.name for s in index.free_symbols if s.name.startswith("v")))
    return tuple(names)


def needed_statements(body: Iterable[Stmt]) -> tuple[Stmt, ...]:
    """``body`` without the statements that no store needs."""
    needed: set[str] = set()
    kept: list[Stmt] = []
    for stmt in reversed(tuple(body)):
        if isinstance(stmt, Store) or stmt.name in needed:
            needed.update(operands(stmt))
            kept.append(stmt)
    return tuple(reversed(kept))


def index_of(stmt: Stmt) -> Expr | None:
    """The index expression that ``stmt`` carries, if it has one."""
    if isinstance(stmt, Load | Store):
        return stmt.index
    return stmt.expr if isinstance(stmt, Index) else None


@dataclass(frozen=True)
class Nest:
    """A loop nest. ``parallel`` axes, of which the last may be ``strip`` axes, come before ``reduction`` axes."""

    axes: tuple[Axis, ...]
    body: tuple[Stmt, ...]

    def once(self, find: Callable[[Nest], T]) -> T:
        """``find`` of this nest, found once: of equal nests zeros may have other signs."""
        known = self.__dict__.setdefault("_known", {})
        if find not in known:
            known[find] = find(self)
        found: T = known[find]
        return found

    @cached_property
    def parallel(self) -> tuple[Axis, ...]:
        return tuple(a for a in self.axes if not a.reduction)

    @cached_property
    def strip(self) -> tuple[Axis, ...]:
        return tuple(a for a in self.axes if a.strip)

    @cached_property
    def reduction(self) -> tuple[Axis, ...]:
        return tuple(a for a in self.axes if a.reduction)

    @cached_property
    def segmented(self) -> tuple[Reduce, ...]:
        """The segment reductions."""
        return tuple(s for s in self.body if isinstance(s, Reduce) and s.along)

    @cached_property
    def ranges(self) -> dict[Symbol, int]:
        return {a.symbol: a.size for a in self.axes}

    @cached_property
    def scopes(self) -> dict[str, frozenset[Symbol]]:
        """The axes that each SSA value varies over."""
        reduced, strip = ({a.symbol for a in axes} for axes in (self.reduction, self.strip))
        known: dict[str, frozenset[Symbol]] = {}
        for stmt in self.body:
            if isinstance(stmt, Store):
                continue
            scope: set[Symbol] = set()
            for name in operands(stmt):
                scope |= known[name]
            index = index_of(stmt)
            if index is not None:
                scope |= {s for s in index.free_symbols if s in self.ranges}
            if isinstance(stmt, Reduce):
                scope -= strip if stmt.strip else set(stmt.along) or reduced
            elif isinstance(stmt, Scan):
                scope |= reduced | strip if stmt.strip else reduced
            known[stmt.name] = frozenset(scope)
        return known

    def store_scope(self, store: Store) -> frozenset[Symbol]:
        """The axes over which ``store`` is executed with different index or value."""
        scope = set(self.scopes[store.value]) | {s for s in store.index.free_symbols if s in self.ranges}
        for name in operands(store):
            scope |= self.scopes[name]
        return frozenset(scope)


@dataclass(frozen=True)
class Kernel:
    """One launch. ``buffers`` are its pointer arguments in order; ``written`` names those that it stores to."""

    name: str
    buffers: tuple[Buffer, ...]
    nests: tuple[Nest, ...]

    @cached_property
    def written(self) -> frozenset[str]:
        return frozenset(s.buffer for n in self.nests for s in n.body if isinstance(s, Store))

    @cached_property
    def read(self) -> frozenset[str]:
        return frozenset(s.buffer for n in self.nests for s in n.body if isinstance(s, Load))

    def buffer(self, name: str) -> Buffer:
        return next(b for b in self.buffers if b.name == name)

    def statements(self) -> Iterator[Stmt]:
        for nest in self.nests:
            yield from nest.body

    def __str__(self) -> str:
        return format_kernel(self)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def format_statement(stmt: Stmt) -> str:
    """One line of text, such as ``v3:float32 = add(v1, v2)``."""
    mask = f" if {stmt.mask}" if isinstance(stmt, Load | Store) and stmt.mask else ""
    if isinstance(stmt, Store):
        return f"{stmt.buffer}[{stmt.index}] {'+=' if stmt.accumulate else '='} {stmt.value}{mask}"
    head = f"{stmt.name}:{_dtype_name(stmt.dtype)} = "
    if isinstance(stmt, Const):
        return head + repr(stmt.value)
    if isinstance(stmt, Index):
        return head + f"index({stmt.expr})"
    if isinstance(stmt, Load):
        return head + f"{stmt.buffer}[{stmt.index}]" + (f"{mask} else {stmt.other}" if mask else "")
    if isinstance(stmt, Reduce):
        along = f" along {', '.join(map(str, stmt.along))}" if stmt.along else ""
        return head + f"{'strip' if stmt.strip else 'reduce'}_{stmt.op}({stmt.value}{along})"
    if isinstance(stmt, Scan):
        return head + f"{'strip_' if stmt.strip else ''}scan_{stmt.op}({stmt.value})"
    rounding = f", {_dtype_name(stmt.rounding)}" if stmt.rounding else ""
    return head + f"{stmt.op}({', '.join(stmt.args)}{rounding})"


def format_kernel(kernel: Kernel) -> str:
    """The kernel as text, one statement a line: what the dumps and golden files hold."""
    lines = [f"kernel {kernel.name}(" + ", ".join(
        f"{b.name}: {_dtype_name(b.dtype)}[{b.size}]" for b in kernel.buffers) + ")"]
    for nest in kernel.nests:
        axes = ", ".join(f"{a.symbol}{'*' if a.reduction else '|' if a.strip else ''}<{a.size}" for a in nest.axes)
        lines.append(f"  nest {axes}:" if axes else "  nest:")
        lines.extend(f"    {format_statement(s)}" for s in nest.body)
    return "\n".join(lines)
