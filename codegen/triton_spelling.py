"""How Triton spells types, operations, loads and stores, and the helpers that every generated module starts with."""
from __future__ import annotations

from collections.abc import Sequence

import torch

from .float8 import FLOAT8, triton_conversions
from .ir import Compute, Const, Index, Load, Store
from .printer import Printer, Spelling, float_literal

TYPES = {torch.float32: "tl.float32", torch.float64: "tl.float64", torch.bfloat16: "tl.bfloat16",
         torch.float16: "tl.float16", torch.int8: "tl.int8", torch.uint8: "tl.uint8", torch.int16: "tl.int16",
         torch.int32: "tl.int32", torch.int64: "tl.int64", torch.bool: "tl.int1"}
#: Pointer types by storage type; truth values and the codes of eight-bit floats are stored as bytes.
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
            torch.int8: "*i8", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
            torch.bool: "*u8", **dict.fromkeys(FLOAT8, "*u8")}

PRELUDE = '''import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def rf_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def rf_min(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def rf_imax(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def rf_imin(a, b):
    return tl.where(a < b, a, b)


@triton.jit
def rf_add(a, b):
    return a + b


@triton.jit
def rf_mul(a, b):
    return a * b


@triton.jit
def rf_logaddexp(a, b):
    apart = tl.where(a == b, 0.0, tl.abs(a - b))
    return rf_max(a, b) + libdevice.log1p(tl.exp(-apart))


@triton.jit
def rf_philox(seed, position, word: tl.constexpr):
    low, high = position.to(tl.uint32), (position >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(seed, low, high, low * 0, low * 0)
    if word == 0:
        return a.to(tl.int32, bitcast=True)
    else:
        return b.to(tl.int32, bitcast=True)


@triton.jit
def rf_argmax(a, i, b, j):
    first = (a > b) | ((a != a) & (b == b)) | (((a == b) | ((a != a) & (b != b))) & (i < j))
    return tl.where(first, a, b), tl.where(first, i, j)


@triton.jit
def rf_argmin(a, i, b, j):
    first = (a < b) | ((a != a) & (b == b)) | (((a == b) | ((a != a) & (b != b))) & (i < j))
    return tl.where(first, a, b), tl.where(first, i, j)


@triton.jit
def rf_exp_below(x):
    if x.dtype == tl.float32:
        return tl.math.exp2(x * 1.4426950408889634)
    else:
        return tl.exp(x)


@triton.jit
def rf_online(total, top, x, group: tl.constexpr):
    grouped = tl.reshape(x, [x.shape[0], x.shape[1] // group, group])
    new = tl.maximum(top, tl.max(grouped, 2))
    base = tl.where(tl.abs(new) == float("inf"), 0.0, new)
    return total * rf_exp_below(top - base) + tl.sum(rf_exp_below(grouped - base[:, :, None]), 2), new


@triton.jit
def rf_expsum(total, top):
    largest = tl.max(top, 1)
    shifted = top - largest[:, None]
    parts = tl.where(top == float("-inf"), tl.where(total == total, 0.0, total), total * tl.exp(shifted))
    summed = tl.sum(parts, 1)
    return tl.where(tl.abs(largest) == float("inf"), float("nan"), summed)


@triton.jit
def rf_expsum_down(total, top):
    largest = tl.max(top, 0)
    base = tl.where(tl.abs(largest) == float("inf"), 0.0, largest)
    shifted = total * tl.exp(top - base[None, :])
    return tl.sum(tl.where(top == float("-inf"), tl.where(total == total, 0.0, total), shifted), 0)


@triton.jit
def rf_deviate(squares, mean, x, count):
    away = x - mean
    mean += away * (1.0 / tl.full([1, 1], count, x.dtype))
    return squares + away * (x - mean), mean


@triton.jit
def rf_devsum(squares, mean, counts, size):
    centre = tl.sum(mean * counts, 1) / size
    away = mean - centre[:, None]
    return tl.sum(squares + counts * away * away, 1)


@triton.jit
def rf_remainder(a, b):
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)


@triton.jit
def rf_floordiv(a, b):
    q = a // b
    return tl.where(((a % b) != 0) & ((a < 0) != (b < 0)), q - 1, q)


@triton.jit
def rf_shl(a, b, bits):
    inside = (b >= 0) & (b < bits)
    return tl.where(inside, a << tl.where(inside, b, 0), 0)


@triton.jit
def rf_shr(a, b, bits):
    inside = (b >= 0) & (b < bits)
    most = a >> tl.where(inside, b, bits - 1)
    return tl.where(inside, most, most >> 1)


@triton.jit
def rf_ipow(a, b):
    result = a * 0 + 1
    base, e = a, b
    for _ in range(64):
        result = tl.where((e & 1) != 0, result * base, result)
        base = base * base
        e = e >> 1
    inverse = tl.where(a == 1, 1, tl.where(a + 1 == 0, 1 - 2 * (b & 1), 0))
    return tl.where(b < 0, inverse, result).to(a.dtype)
''' + triton_conversions()


def _library(name: str) -> Spelling:
    return lambda p, stmt, args: f"libdevice.{name}({', '.join(args)})"


def _by_kind(floating: str, integer: str) -> Spelling:
    return lambda p, stmt, args: (floating if p.dtypes[args[0]].is_floating_point else integer).format(*args)


def _cast(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    if stmt.dtype == torch.uint8 and p.dtypes[args[0]].is_floating_point:
        return f"{args[0]}.to(tl.int64).to(tl.uint8)"  # negative numbers wrap as they do in C++
    return f"{args[0]}.to({TYPES[stmt.dtype]})"


def _round_to(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    assert stmt.rounding is not None
    if stmt.rounding in FLOAT8:
        name = FLOAT8[stmt.rounding].name
        return f"rf_from_{name}(rf_to_{name}({args[0]}))"
    return f"{args[0]}.to({TYPES[stmt.rounding]}).to({TYPES[stmt.dtype]})"


def _bits(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    assert stmt.rounding is not None
    stored = (f"rf_to_{FLOAT8[stmt.rounding].name}({args[0]})" if stmt.rounding in FLOAT8
              else f"{args[0]}.to({TYPES[stmt.rounding]})")
    return f"{stored}.to({TYPES[stmt.dtype]}, bitcast=True)"


def _from_bits(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    assert stmt.rounding is not None
    if stmt.rounding in FLOAT8:
        return f"rf_from_{FLOAT8[stmt.rounding].name}({args[0]}.to(tl.uint8, bitcast=True))"
    return f"{args[0]}.to({TYPES[stmt.rounding]}, bitcast=True).to({TYPES[stmt.dtype]})"


def _sqrt(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    return f"tl.sqrt_rn({args[0]})" if stmt.dtype == torch.float32 else f"tl.sqrt({args[0]})"


def _shift(function: str) -> Spelling:
    return lambda p, stmt, args: f"{function}({args[0]}, {args[1]}, {8 * stmt.dtype.itemsize})"


TRITON_OPS: dict[str, Spelling] = {
    **{name: _library(name) for name in (
        "exp2 expm1 log2 log10 log1p tan asin acos atan sinh cosh tanh asinh acosh atanh erfc lgamma trunc "
        "atan2 copysign"
    ).split()},
    **{name: f"tl.{name}({{0}})" for name in "exp log sin cos erf floor ceil abs rsqrt sigmoid".split()},
    "sqrt": _sqrt, "round": _library("nearbyint"), "neg": "-{0}", "cast": _cast,
    "pow": _by_kind("libdevice.pow({0}, {1})", "rf_ipow({0}, {1})"),
    "round_to": _round_to, "bits": _bits, "from_bits": _from_bits,
    "fmod": _by_kind("libdevice.fmod({0}, {1})", "{0} % {1}"), "isnan": "{0} != {0}",
    "isinf": 'tl.abs({0}) == float("inf")', "not": "{0} == 0", "invert": "~{0}",
    "signbit": _by_kind("libdevice.signbit({0}) != 0", "{0} < 0"), "add": "{0} + {1}", "sub": "{0} - {1}",
    "mul": "{0} * {1}", "div": "{0} / {1}", "truncdiv": "{0} // {1}", "floordiv": "rf_floordiv({0}, {1})",
    "remainder": "rf_remainder({0}, {1})", "min": _by_kind("rf_min({0}, {1})", "rf_imin({0}, {1})"),
    "max": _by_kind("rf_max({0}, {1})", "rf_imax({0}, {1})"), "lt": "{0} < {1}", "le": "{0} <= {1}",
    "gt": "{0} > {1}", "ge": "{0} >= {1}", "eq": "{0} == {1}", "ne": "{0} != {1}", "and": "{0} & {1}",
    "or": "{0} | {1}", "xor": "{0} ^ {1}", "shl": _shift("rf_shl"), "shr": _shift("rf_shr"),
    "where": "tl.where({0}, {1}, {2})", "fma": "tl.fma({0}, {1}, {2})",
    "philox0": "rf_philox({0}, {1}, 0)", "philox1": "rf_philox({0}, {1}, 1)",
    # An index out of range reads element 0 instead of somebody's memory.
    "bounded": "tl.where(({0} >= 0) & ({0} < {1}), {0}, 0)",
}


def _literal(value: float) -> str:
    return float_literal(value, 'float("inf")', 'float("nan")') if isinstance(value, float) else str(value)


class TritonStatements(Printer):
    """Statements of Triton; the tiles are in ``triton_kernel``. ``shape_of`` gives the tile shape of a scope."""

    types = TYPES
    ops = TRITON_OPS
    suffix = ""

    def spell_symbol(self, symbol) -> str:
        return symbol.name + self.suffix

    def spell_floordiv(self, a: str, n: str, positive: bool) -> str:
        return f"({a} // {n})" if positive else f"rf_floordiv({a}, {n})"

    def spell_mod(self, a: str, n: str, positive: bool) -> str:
        return f"({a} % {n})" if positive else f"rf_remainder({a}, {n})"

    def spell_const(self, stmt: Const) -> str:
        if stmt.dtype == torch.bool:
            return f"tl.full([], {1 if stmt.value else 0}, tl.int1)"
        return f"tl.full([], {_literal(stmt.value)}, {TYPES[stmt.dtype]})"

    def spell_index_value(self, stmt: Index) -> str:
        return f"({self.spell_index(stmt.expr)}).to({TYPES[stmt.dtype]})"

    def offset(self, stmt: Load | Store) -> str:
        """The element offset of an access."""
        return self.spell_index(stmt.index)

    def access_mask(self, stmt: Load | Store) -> list[str]:
        """Conditions under which the access is inside of the tensors."""
        raise NotImplementedError

    def eviction(self, stmt: Load | Store) -> str:
        """What caches do with what is accessed: one of Triton's policies, or nothing."""
        return ""

    def _hint(self, stmt: Load | Store) -> str:
        policy = self.eviction(stmt)
        return f', eviction_policy="{policy}"' if policy else ""

    def spell_load(self, stmt: Load) -> str:
        return self.loaded(stmt, self.load_at(stmt, self.offset(stmt), self.access_mask(stmt)))

    def load_at(self, stmt: Load, offset: str, masks: Sequence[str]) -> str:
        """What is in memory at ``offset``."""
        guard = f", mask={' & '.join(masks)}, other={_literal(stmt.other)}" if masks else ""
        return f"tl.load({stmt.buffer} + {offset}{guard}{self._hint(stmt)})"

    def loaded(self, stmt: Load, text: str) -> str:
        """The value of a load of which ``text`` is in memory."""
        dtype = self.kernel.buffer(stmt.buffer).dtype
        if dtype == torch.bool:
            return f"{text} != 0"
        if dtype in FLOAT8:
            return f"rf_from_{FLOAT8[dtype].name}({text})"
        return text if dtype == stmt.dtype else f"{text}.to({TYPES[stmt.dtype]})"

    def spell_store(self, stmt: Store) -> str:
        return self.store_at(stmt, self.offset(stmt), self.stored(stmt), self.access_mask(stmt))

    def store_at(self, stmt: Store, offset: str, value: str, masks: Sequence[str]) -> str:
        """The line that puts ``value`` into memory at ``offset``."""
        guard, place = f", mask={' & '.join(masks)}" if masks else "", f"{stmt.buffer} + {offset}"
        if stmt.accumulate:
            return f'tl.atomic_add({place}, {value}{guard}, sem="relaxed")'
        return f"tl.store({place}, {value}{guard}{self._hint(stmt)})"

    def stored(self, stmt: Store) -> str:
        """A store's value as it is in memory."""
        dtype, value = self.kernel.buffer(stmt.buffer).dtype, self.name(stmt.value)
        if dtype in FLOAT8:
            return f"rf_to_{FLOAT8[dtype].name}({value})"
        return f"{value}.to({'tl.uint8' if dtype == torch.bool else TYPES[dtype]})"

    def name(self, value: str) -> str:
        return value + self.suffix

    def spell_compute(self, stmt: Compute) -> str:
        renamed = tuple(self.name(a) for a in stmt.args)
        spelling = self.ops[stmt.op]
        if callable(spelling):
            for plain, new in zip(stmt.args, renamed):
                self.dtypes.setdefault(new, self.dtypes[plain])
            return spelling(self, stmt, renamed)
        return spelling.format(*renamed)

    def declare(self, name: str, dtype: torch.dtype, expression: str) -> str:
        return f"{self.name(name)} = {expression}"
