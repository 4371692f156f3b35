"""How C++ spells types, operations, loads and stores, as statements of a loop."""
from __future__ import annotations

from functools import cached_property

import torch

from .cpp_nans import short_nans
from .cpp_vector_math import UNARY_MATH, lane_function
from .float8 import FLOAT8
from .ir import Compute, Const, Index, Load, Stmt, Store, operands
from .printer import Printer, Spelling, float_literal
from .signs import never_positive

STORAGE = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "rf_bf16", torch.float16: "rf_fp16",
           torch.int8: "int8_t", torch.uint8: "uint8_t", torch.int16: "int16_t", torch.int32: "int32_t",
           torch.int64: "int64_t", torch.bool: "uint8_t", **dict.fromkeys(FLOAT8, "uint8_t")}
COMPUTE = {**STORAGE, torch.bool: "bool"}

#: Conversions of a stored element to the type it is computed in, and back; types that aren't here need none.
WIDEN = {torch.bfloat16: "rf_from_bf16({})", torch.float16: "rf_from_fp16({})", torch.bool: "({} != 0)",
         **{dtype: f"rf_from_f8<rf_{f.name}>({{}})" for dtype, f in FLOAT8.items()}}
NARROW = {torch.bfloat16: "rf_to_bf16({})", torch.float16: "rf_to_fp16({})",
          **{dtype: f"rf_to_f8<rf_{f.name}>({{}})" for dtype, f in FLOAT8.items()}}


def _math(name: str) -> Spelling:
    def spell(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
        suffix = "" if stmt.dtype == torch.float64 else "f"
        return f"{name}{suffix}({', '.join(args)})"

    return spell


def _lane(name: str) -> Spelling:
    def spell(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
        return f"{lane_function(name, stmt.dtype == torch.float64)}({', '.join(args)})"

    return spell


def _builtin(name: str) -> Spelling:
    return _math(f"__builtin_{name}")


def _by_kind(floating: Spelling, integer: str) -> Spelling:
    def spell(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
        if p.dtypes[args[0]].is_floating_point:
            return floating(p, stmt, args) if callable(floating) else floating.format(*args)
        return integer.format(*args)

    return spell


def _cast(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    source, wanted = p.dtypes[args[0]], stmt.dtype
    if source == torch.bool:  # a choice is vectorised among values of any width, a conversion isn't
        return f"{args[0]} ? {literal(1, wanted)} : {literal(0, wanted)}"
    if source.is_floating_point and not wanted.is_floating_point and wanted not in (torch.int64, torch.int32):
        return f"({COMPUTE[wanted]})(int64_t){args[0]}"
    return f"({COMPUTE[wanted]}){args[0]}"


def _round_to(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    if stmt.rounding == torch.float16:
        return f"rf_round_fp16({args[0]})"
    assert stmt.rounding is not None and isinstance(p, CppStatements)
    if stmt.rounding == torch.bfloat16:
        return f"rf_round_bf16{p.unchecked(args[0])}({args[0]})"
    return WIDEN[stmt.rounding].format(p.narrow(args[0], args[0], stmt.rounding))


def _bits(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    assert stmt.rounding is not None
    return f"rf_same_bits<{COMPUTE[stmt.dtype]}>({NARROW.get(stmt.rounding, '{}').format(args[0])})"


def _from_bits(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    assert stmt.rounding is not None
    return WIDEN.get(stmt.rounding, "{}").format(f"rf_same_bits<{STORAGE[stmt.rounding]}>({args[0]})")


def _rsqrt(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    return f"1 / __builtin_sqrt({args[0]})" if stmt.dtype == torch.float64 else f"1.0f / __builtin_sqrtf({args[0]})"


def _sigmoid(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    if stmt.dtype == torch.float64:
        return f"1 / (1 + {lane_function('exp', True)}(-{args[0]}))"
    return f"rf_sigmoid({args[0]})"


def _inline(name: str) -> Spelling:
    def spell(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
        return f"{lane_function(name, True) if stmt.dtype == torch.float64 else f'rf_{name}'}({args[0]})"

    return spell


def _exp(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    if stmt.dtype == torch.float64:
        return f"{lane_function('exp', True)}({args[0]})"
    assert isinstance(p, CppStatements)
    return f"rf_exp{'_below' if args[0] in p.never_positive else ''}({args[0]})"


def _bounded(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    assert isinstance(p, CppStatements)
    place = f"{args[0]} + rf_zero" if stmt.args[0] in p.from_truth else args[0]
    return f"rf_within({place}, {args[1]}, outside)" if p._gathers else f"rf_bounded({place}, {args[1]})"


CPP_OPS: dict[str, Spelling] = {
    **{name: _lane(name) for name in UNARY_MATH},
    "exp": _exp, "tanh": _inline("tanh"), "erf": _inline("erf"),
    **{name: _builtin(name) for name in ("sqrt", "floor", "ceil", "trunc")},
    "round": _builtin("rint"), "abs": _by_kind(_builtin("fabs"), "({0} < 0 ? -{0} : {0})"), "neg": "-{0}",
    "lgamma": _math("lgamma"), "fmod": _by_kind(_lane("fmod"), "rf_mod({0}, {1})"), "rsqrt": _rsqrt,
    "sigmoid": _sigmoid, "cast": _cast, "round_to": _round_to, "bits": _bits, "from_bits": _from_bits,
    "isnan": "{0} != {0}",
    "isinf": "__builtin_isinf({0}) != 0", "not": "!{0}", "invert": "~{0}",
    "signbit": _by_kind("rf_signbit({0})", "{0} < 0"),
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}",
    "truncdiv": "rf_truncdiv({0}, {1})", "floordiv": "rf_floordiv({0}, {1})", "remainder": "rf_remainder({0}, {1})",
    "pow": _by_kind(_lane("pow"), "rf_ipow({0}, {1})"), "atan2": _lane("atan2"), "min": "rf_min({0}, {1})",
    "max": "rf_max({0}, {1})", "lt": "{0} < {1}", "le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}",
    "eq": "{0} == {1}", "ne": "{0} != {1}", "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}",
    "shl": "rf_shl({0}, {1})", "shr": "rf_shr({0}, {1})", "copysign": _builtin("copysign"),
    "where": "{0} ? {1} : {2}", "fma": _builtin("fma"), "bounded": _bounded,
    "philox0": "rf_philox<0>({0}, {1})", "philox1": "rf_philox<1>({0}, {1})",
}


def literal(value: int | float | bool, dtype: torch.dtype) -> str:
    """A constant of compute type ``dtype``."""
    if dtype == torch.bool:
        return "true" if value else "false"
    if not dtype.is_floating_point:
        if dtype == torch.int64:
            return "INT64_MIN" if value == -(2**63) else f"INT64_C({value})"
        return f"({COMPUTE[dtype]}){value}"
    suffix = "f" if dtype == torch.float32 else ""
    return float_literal(float(value), f"__builtin_inf{suffix}()", f'__builtin_nan{suffix}("")') + (
        suffix if abs(float(value)) < float("inf") else "")


class CppStatements(Printer):
    """Statements of C++; the loops are in ``cpp``. ``_gathers`` if a loop over lanes looks up places."""

    types = COMPUTE
    ops = CPP_OPS
    _gathers = False

    @cached_property
    def _short_nans(self) -> frozenset[str]:
        return short_nans(self.kernel, self.nest)

    @cached_property
    def never_positive(self) -> frozenset[str]:
        return never_positive(self.nest)

    @cached_property
    def from_truth(self) -> frozenset[str]:
        """Values that are truth values, or computed from one; a place that counts from the end isn't by that."""
        found: set[str] = set()
        made = {s.name: s for s in self.nest.body if not isinstance(s, Store)}
        for stmt in made.values():
            reads = operands(stmt) if not isinstance(stmt, Load | Index) else ()
            if isinstance(stmt, Compute) and stmt.op == "where":
                below, moved = made[stmt.args[0]], made[stmt.args[1]]
                if isinstance(below, Compute) and isinstance(moved, Compute) and (below.op, moved.op) == (
                        "lt", "add") and below.args[0] == moved.args[0] == stmt.args[2]:
                    reads = (stmt.args[2],)
            if stmt.dtype == torch.bool or not found.isdisjoint(reads):
                found.add(stmt.name)
        return frozenset(found)

    def unchecked(self, name: str) -> str:
        """How the functions are called that round ``name`` to bfloat16 and needn't look for its NaNs."""
        return "_unchecked" if name in self._short_nans else ""

    def narrow(self, text: str, name: str, dtype: torch.dtype) -> str:
        """``text``, whose NaNs are those of the value ``name``, as an element of ``dtype``."""
        if text == name and self.copied.get(name) == dtype:
            return f"{name}_bits"
        if dtype == torch.bfloat16:
            return f"rf_to_bf16{self.unchecked(name)}({text})"
        return NARROW.get(dtype, "{}").format(text)

    def spell_floordiv(self, a: str, n: str, positive: bool) -> str:
        return f"({a} / {n})" if positive else f"rf_floordiv<int64_t>({a}, {n})"

    def spell_mod(self, a: str, n: str, positive: bool) -> str:
        return f"({a} % {n})" if positive else f"rf_remainder<int64_t>({a}, {n})"

    def spell_const(self, stmt: Const) -> str:
        return literal(stmt.value, stmt.dtype)

    def spell_index_value(self, stmt: Index) -> str:
        return f"({COMPUTE[stmt.dtype]})({self.spell_index(stmt.expr)})"

    @cached_property
    def copied(self) -> dict[str, torch.dtype]:
        """Loaded values that are stored as they are, with the type that they come from and go to: they needn't be
        converted there and back."""
        if self.nest.reduction:
            return {}  # whose values may wait from one sweep to the next in the type they are computed in
        stored = {(s.value, self.kernel.buffer(s.buffer).dtype)
                  for s in self.nest.body if isinstance(s, Store) and not s.accumulate}
        loads = [s for s in self.nest.body if isinstance(s, Load) and s.mask is None]
        found = [(s.name, self.kernel.buffer(s.buffer).dtype) for s in loads]
        return {name: dtype for name, dtype in found if dtype in WIDEN and (name, dtype) in stored}

    def line(self, stmt: Stmt) -> str:
        if not isinstance(stmt, Load) or stmt.name not in self.copied:
            return super().line(stmt)
        kind, bits = STORAGE[self.copied[stmt.name]], f"{stmt.name}_bits"
        value = self.declare(stmt.name, stmt.dtype, self.widen(stmt, bits))
        return f"const {kind} {bits} = {self.element(stmt)}; {value}"

    def element(self, stmt: Load) -> str:
        """Where an unmasked load finds its element."""
        return f"{stmt.buffer}[{self.spell_place(stmt)}]"

    def widen(self, stmt: Load, element: str) -> str:
        """The element of memory that a load reads, in the type it is computed in."""
        return WIDEN.get(self.kernel.buffer(stmt.buffer).dtype, "{}").format(element)

    def spell_place(self, stmt: Load | Store) -> str:
        """The place in its buffer of what a load or a store touches."""
        return self.spell_index(stmt.index)

    def spell_load(self, stmt: Load) -> str:
        text = self.widen(stmt, self.element(stmt))
        return text if stmt.mask is None else f"{stmt.mask} ? {text} : {literal(stmt.other, stmt.dtype)}"

    def spell_store(self, stmt: Store) -> str:
        dtype = self.kernel.buffer(stmt.buffer).dtype
        element, value = f"{stmt.buffer}[{self.spell_place(stmt)}]", stmt.value
        if stmt.accumulate:
            value = f"({WIDEN.get(dtype, '{}').format(element)} + {value})"
        value = self.narrow(value, stmt.value, dtype)
        guard = f"if ({stmt.mask}) " if stmt.mask else ""
        return f"{guard}{element} = {value};"

    def declare(self, name: str, dtype: torch.dtype, expression: str) -> str:
        return f"const {COMPUTE[dtype]} {name} = {expression};"
