"""Builds the body of one nest: hash-consed SSA statements, casts where types differ, exact constant short cuts."""
from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from sympy import Expr, Integer, Symbol
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .errors import NotLowerable
from .float8 import FLOAT8
from .index import bounds, extent_of, floordiv, joined, mod, symbol
from .ir import Axis, Compute, Const, Index, Load, Nest, Reduce, Scan, Stmt, Store, compute_dtype, needed_statements
from .positions import quotient
from .simplify import split_axes

Number = int | float | bool
#: Statements of one nest: past this compilers take seconds, and work is being done again and again.
MAX_STATEMENTS = 600
#: Integers by their bytes.
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WIDE_INTEGERS = frozenset({torch.int32, torch.int64})
COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "isnan", "isinf", "not", "signbit"})


def _fits(extent: tuple[int, int], dtype: torch.dtype) -> bool:
    limits = torch.iinfo(dtype)
    return extent[0] >= limits.min and extent[1] <= limits.max


def _is_held_by_all_types(value: Number) -> bool:
    """Whether a constant of a load's compute type is the same in its storage type, whichever that is."""
    if not isinstance(value, float) or math.isinf(value):
        return True
    return value.is_integer() and 0 < abs(value) <= 256


class NestBuilder:
    """Statements are appended once: asking for an equal one again returns the first one's name.

    ``mask`` is the condition under which loads are made (inside of a padded or concatenated region), or None.
    ``eager_rounding`` keeps the rounding that eager execution has between two low-precision operations.
    """

    def __init__(self, axes: Sequence[Axis], eager_rounding: bool = False) -> None:
        self.axes = tuple(axes)
        self.ranges = {a.symbol: a.size for a in axes}
        self.reduction_symbols = frozenset(a.symbol for a in axes if a.reduction)
        self.body: list[Stmt] = []
        self.dtypes: dict[str, torch.dtype] = {}
        self.constants: dict[str, Number] = {}
        self._looked_up: dict[Symbol, int] = {}  # places that are values, and what they are below
        self.mask: str | None = None
        self.eager_rounding = eager_rounding
        self._known: dict[tuple, str] = {}
        self._loads: dict[str, Load] = {}
        self._unrounded: dict[str, tuple[str, torch.dtype]] = {}
        self._positions: dict[str, Expr] = {}  # values that are index expressions with known bounds
        self._extents: dict[str, tuple[int, int]] = {}  # the least and the most of whole numbers made of such

    def _emit(self, kind: type, dtype: torch.dtype, *fields) -> str:
        key = (kind, dtype, *((type(f), f) if isinstance(f, bool | float | int) else f for f in fields))
        if key not in self._known:
            if len(self.body) >= MAX_STATEMENTS:
                raise NotLowerable(f"the kernel would have more than {MAX_STATEMENTS} statements")
            name = f"v{len(self.dtypes)}"
            self.body.append(kind(name, dtype, *fields))
            self.dtypes[name] = dtype
            self._known[key] = name
        return self._known[key]

    def const(self, value: Number, dtype: torch.dtype) -> str:
        """``value`` as a constant of compute type ``dtype``."""
        dtype = compute_dtype(dtype)
        if dtype == torch.bool:
            value = bool(value)
        elif dtype.is_floating_point:
            value = float(value)
            if dtype == torch.float32 and math.isfinite(value):
                value = ctypes.c_float(value).value
        else:
            limits = torch.iinfo(dtype)
            value = (int(value) - limits.min) % (1 << limits.bits) + limits.min  # wraps, as eager casts a scalar
        if isinstance(value, float) and (math.isnan(value) or (value == 0 and math.copysign(1, value) < 0)):
            name = f"v{len(self.dtypes)}"  # nan never equals itself and -0.0 equals 0.0: neither can be a key
            self.body.append(Const(name, dtype, value))
            self.dtypes[name] = dtype
        else:
            name = self._emit(Const, dtype, value)
        self.constants[name] = value
        return name

    def index(self, expr: Expr, dtype: torch.dtype = torch.int64) -> str:
        """The integer expression ``expr`` of axis symbols as a value."""
        if expr.is_Integer:
            return self.const(int(expr), dtype)
        extent = bounds(expr, self.ranges)
        narrow = extent is not None and extent[0] >= -(2**31) and extent[1] < 2**31
        value = self._emit(Index, torch.int32 if narrow and dtype == torch.int32 else torch.int64, expr)
        self._positions[value] = expr
        return self.cast(value, dtype)

    def load(self, buffer: str, dtype: torch.dtype, index: Expr) -> str:
        """``buffer[index]`` widened to its compute type, 0 where the current mask is false."""
        fields = (buffer, joined(index, self.ranges), self.mask, 0)
        if dtype in FLOAT8:  # which printers convert after the load
            return self._emit(Load, compute_dtype(dtype), *fields)
        return self._load(compute_dtype(dtype), *fields)

    def _load(self, dtype: torch.dtype, *fields) -> str:
        """A load that may be given another value for where its mask doesn't hold."""
        name = self._emit(Load, dtype, *fields)
        self._loads[name] = Load(name, dtype, *fields)
        return name

    def cast(self, value: str, dtype: torch.dtype) -> str:
        """``value`` converted to the compute type of ``dtype``."""
        wanted = compute_dtype(dtype)
        if self.dtypes[value] == wanted:
            return value
        if value in self.constants and not (
                isinstance(self.constants[value], float) and not math.isfinite(self.constants[value])):
            return self.const(self.constants[value], wanted)
        if value in self._positions and wanted in _WIDE_INTEGERS:
            extent = bounds(self._positions[value], self.ranges)
            if extent is not None and _fits(extent, wanted):
                return self.index(self._positions[value], wanted)
        if wanted in _WIDE_INTEGERS and self.dtypes[value].is_floating_point:
            with unset_fake_temporarily():
                place = quotient(value, self.body, self.ranges)
            if place is not None:
                return self.index(place, wanted)
        if wanted == torch.bool:
            return self.compute("ne", value, self.const(0, self.dtypes[value]))
        return self._within(self._emit(Compute, wanted, "cast", (value,), None), "cast", (value,))

    def rounded(self, value: str, dtype: torch.dtype) -> str:
        """``value`` rounded to storage type ``dtype`` but kept in its compute type, if eager rounding is asked for."""
        return self.rounded_always(value, dtype) if self.eager_rounding else value

    def rounded_always(self, value: str, dtype: torch.dtype) -> str:
        """The same for a conversion that the user wrote: what is asked for is kept."""
        if compute_dtype(dtype) == dtype:
            return value
        name = self._emit(Compute, self.dtypes[value], "round_to", (value,), dtype)
        self._unrounded[name] = (value, dtype)
        return name

    def converted(self, value: str, dtype: torch.dtype) -> str:
        """``value`` as a number of storage type ``dtype``, as which the framework compares it."""
        if value in self.constants and math.isfinite(self.constants[value]):
            with unset_fake_temporarily():
                return self.const(torch.tensor(self.constants[value], dtype=dtype).item(), dtype)
        return self.rounded_always(self.cast(value, dtype), dtype)

    def reinterpreted(self, value: str, source: torch.dtype, wanted: torch.dtype) -> str:
        """The value of storage type ``wanted`` that has the bits of ``value`` in storage type ``source``, as wide."""
        if source.is_floating_point:
            whole = wanted if not wanted.is_floating_point else _WHOLE[wanted.itemsize]
            value, source = self._emit(Compute, whole, "bits", (value,), source), whole
        if wanted.is_floating_point:
            return self._emit(Compute, compute_dtype(wanted), "from_bits", (value,), wanted)
        return self.cast(value, wanted)

    def compute(self, op: str, *args: str, dtype: torch.dtype | None = None) -> str:
        """``op(args)``, of the last argument's type unless it is a comparison or ``dtype`` is given."""
        if dtype is None:
            dtype = torch.bool if op in COMPARISONS else self.dtypes[args[-1]]
        if op in ("mul", "div") and self.constants.get(args[1]) == 1:
            return args[0]
        if op == "mul" and self.constants.get(args[0]) == 1:
            return args[1]
        if op in COMPARISONS and len(args) == 2:
            args = self._narrowed(*args)
        if op == "where" and dtype == torch.bool and (chosen := self._chosen_truth(*args)) is not None:
            return chosen
        place = self._place(op, args) if len(args) == 2 and dtype in _WIDE_INTEGERS else None
        extent = bounds(place, self.ranges) if place is not None else None
        if place is not None and extent is not None and _fits(extent, dtype):
            return self.index(place, dtype)
        return self._within(self._emit(Compute, dtype, op, tuple(args), None), op, args)

    def _within(self, name: str, op: str, args: Sequence[str]) -> str:
        """``name``, which is ``op(args)``, with what is known of its bounds."""
        known = [self._extent(a) for a in args] if self.dtypes[name] in _WIDE_INTEGERS else [None]
        extent = extent_of(op, [e for e in known if e is not None]) if None not in known else None
        if extent is not None and _fits(extent, self.dtypes[name]):
            self._extents[name] = extent
        return name

    def _extent(self, value: str) -> tuple[int, int] | None:
        """The least and the most that a whole number made of places along the axes may be, if that is known."""
        if value in self.constants and isinstance(self.constants[value], int):
            return int(self.constants[value]), int(self.constants[value])
        return bounds(self._positions[value], self.ranges) if value in self._positions else self._extents.get(value)

    def _narrowed(self, *args: str) -> tuple[str, ...]:
        """Places along the axes that are compared, as int32 where they fit: twice as many lanes of a vector."""
        places = [self._positions.get(a) for a in args]
        if any(self.dtypes[a] != torch.int64 for a in args) or all(p is None for p in places):
            return args
        for name, place in zip(args, places):
            if place is None and name in self.constants:
                place = Integer(int(self.constants[name]))
            extent = bounds(place, self.ranges | self._looked_up) if place is not None else None
            if extent is None or not _fits(extent, torch.int32):
                return args
        return tuple(self.const(self.constants[n], torch.int32) if p is None else self.index(p, torch.int32)
                     for n, p in zip(args, places))

    def _chosen_truth(self, condition: str, a: str, b: str) -> str | None:
        """A choice of truth values of which one is a constant, without a choice: g++ makes no vectors of those."""
        for known, other, holds in ((a, b, condition), (b, a, None)):
            if known in self.constants:
                if bool(self.constants[known]) == (holds is not None):
                    holds = condition
                else:
                    holds = self.compute("not", condition)
                return self.compute("or" if self.constants[known] else "and", holds, other)
        return None

    def _place(self, op: str, args: Sequence[str]) -> Expr | None:
        """``op(args)`` as an index expression, if that is what it is of places along the axes and whole numbers: an
        address that is made of it is known without looking."""
        a, b = (self._positions.get(v, Integer(int(self.constants[v])) if v in self.constants else None) for v in args)
        if a is None or b is None or (a.is_Integer and b.is_Integer):
            return None
        if op in ("add", "sub"):
            return a + b if op == "add" else a - b
        if op == "mul" and (a.is_Integer or b.is_Integer):
            return a * b
        if op in ("floordiv", "remainder") and b.is_Integer and b > 0:
            return floordiv(a, int(b), self.ranges) if op == "floordiv" else mod(a, int(b), self.ranges)
        if op in ("max", "min") and b.is_Integer:
            extent = bounds(a, self.ranges)
            if extent is not None and (extent[0] >= b if op == "max" else extent[1] <= b):
                return a
        return None

    def where(self, condition: str, a: str, b: str) -> str:
        load = self._loads.get(a)
        if load is not None and load.mask == condition and b in self.constants and load.dtype != torch.bool:
            other = self.constants[b]
            if other == 0 and math.copysign(1, other) > 0:  # it may have another value there already
                return self._load(load.dtype, load.buffer, load.index, condition, 0)
            if _is_held_by_all_types(other):
                return self._load(load.dtype, load.buffer, load.index, condition, other)
        return self.compute("where", condition, a, b)

    def both(self, a: str | None, b: str) -> str:
        """The conjunction of two masks, either of which may be absent."""
        return b if a is None else self.compute("and", a, b)

    def reduce(self, op: str, value: str, dtype: torch.dtype, strip: bool = False,
               along: tuple[Symbol, ...] = ()) -> str:
        """Reduce ``value`` over all reduction axes, those in ``along``, or the strip axes, into compute type
        ``dtype``."""
        return self._emit(Reduce, compute_dtype(dtype), op, value, strip, along)

    def scan(self, op: str, value: str, dtype: torch.dtype, strip: bool = False) -> str:
        """What ``value`` has come to at each point of a row, or of a column of a strip, in compute type ``dtype``."""
        return self._emit(Scan, compute_dtype(dtype), op, value, strip)

    def store(self, buffer: str, dtype: torch.dtype, index: Expr, value: str, mask: str | None = None,
              accumulate: bool = False) -> None:
        """Store ``value`` to a buffer of ``dtype``, which rounds: what was rounded to that type before needn't be."""
        unrounded, rounding = self._unrounded.get(value, (value, dtype))
        value = unrounded if rounding == dtype and not accumulate else value
        self.body.append(Store(buffer, joined(index, self.ranges), value, mask, accumulate))

    def require_scope(self, axes: set[Symbol], what: str) -> None:
        """Raise NotLowerable unless the latest store varies over all of ``axes``: it would be taken out of a loop, and
        an adding one has to be executed at every point. Places that repeat themselves, ``p % 4``, don't vary over all
        of an axis, which will be cut there."""
        nest = split_axes(Nest(self.axes, tuple(self.body)))
        store = nest.body[-1]
        assert isinstance(store, Store)
        if {a.symbol for a in nest.axes} - ({a.symbol for a in self.axes} - axes) - nest.store_scope(store):
            raise NotLowerable(f"{what} adds the same to the same place again and again")

    def require_scope_of(self, value: str, what: str) -> None:
        """Raise NotLowerable unless ``value`` varies over all of the row, or is one for each: a sum down a strip is one
        of whole rows. In a row that repeats itself, ``r % 4``, it varies over a part: the row will be cut there."""
        nest = split_axes(Nest(self.axes, tuple(self.body)))
        row = {a.symbol for a in nest.reduction}
        if row & nest.scopes[value] and row - nest.scopes[value]:
            raise NotLowerable(f"{what} sums what is the same along its rows")

    def scope_has_reduction_axis(self, coords: Sequence[Expr]) -> bool:
        """Whether coordinates vary over a reduction axis (directly: indices from gathered values count as varying)."""
        return any(s in self.reduction_symbols or s.name.startswith("v") for c in coords for s in c.free_symbols)

    def finish(self) -> Nest:
        """The nest, without statements that no store needs."""
        return Nest(self.axes, needed_statements(self.body))

    def gathered(self, value: str, size: int, negative: bool) -> Expr:
        """An SSA integer as an index into a dimension of ``size``; ``negative`` ones count from the end.

        The value goes through "bounded", which reports an index outside of ``[0, size)`` where the target can. Where a
        mask doesn't hold the index is none of the program's: it is 0, as what a masked load gives is.
        """
        low, high = self._extent(value) or (-1, size)
        if low >= 0 and high < size and value in self._positions:
            return self._positions[value]
        loaded = value in self._loads and self._loads[value].mask == self.mask and self._loads[value].other == 0
        value = self.cast(value, torch.int64)
        if value in self.constants and -size <= self.constants[value] < size:
            return Integer(int(self.constants[value]) % size)
        end = self.const(size, torch.int64)
        if low >= 0 and high < size:
            self._looked_up[symbol(value)] = size
            return symbol(value)
        if negative and low < 0:
            below = self.compute("lt", value, self.const(0, torch.int64))
            value = self.where(below, self.compute("add", value, end), value)
        if self.mask is not None and not loaded:
            value = self.where(self.mask, value, self.const(0, torch.int64))
        place = symbol(self.compute("bounded", value, end))
        self._looked_up[place] = size
        return place
