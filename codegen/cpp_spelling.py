"""How C++ spells types, operations, loads and stores, and the prelude that every translation unit starts with."""
from __future__ import annotations

from functools import cached_property

import torch

from .cpp_math import MATH
from .cpp_nans import short_nans
from .float8 import FLOAT8, cpp_conversions
from .ir import Compute, Const, Index, Load, Store
from .printer import Printer, Spelling, float_literal
from .signs import never_positive

STORAGE = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "rf_bf16", torch.float16: "rf_fp16",
           torch.int8: "int8_t", torch.uint8: "uint8_t", torch.int16: "int16_t", torch.int32: "int32_t",
           torch.int64: "int64_t", torch.bool: "uint8_t", **dict.fromkeys(FLOAT8, "uint8_t")}
COMPUTE = {**STORAGE, torch.bool: "bool"}

# glibc offers vector versions of these (libmvec); declaring them lets `omp simd` loops call those without -ffast-math,
# whose assumptions on NaN and infinity would be wrong.
_UNARY_MATH = (
    "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp exp2 expm1 log log2 log10 log1p erf "
    "erfc"
).split()
_BINARY_MATH = ("pow", "atan2")


def _prototypes() -> str:
    lines = ['extern "C" {']  # a block: clang has no pragma before a declaration with a linkage of its own
    for suffix, kind in (("f", "float"), ("", "double")):
        for name in _UNARY_MATH:
            lines += ["RF_SIMD", f"{kind} {name}{suffix}({kind}) noexcept RF_PURE;"]
        for name in _BINARY_MATH:
            lines += ["RF_SIMD", f"{kind} {name}{suffix}({kind}, {kind}) noexcept RF_PURE;"]
        for name in ("lgamma",):
            lines.append(f"{kind} {name}{suffix}({kind}) noexcept;")
        lines.append(f"{kind} fmod{suffix}({kind}, {kind}) noexcept;")
    return "\n".join([*lines, "}"])


PRELUDE = r"""#include <stdint.h>
#include <stddef.h>
#if defined(__x86_64__) && defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 35)
#define RF_SIMD _Pragma("omp declare simd notinbranch")
#else
#define RF_SIMD
#endif
// Without it a function that g++ knows nothing of (build_cpp) might write what a choice before it reads: the choice
// stays a branch, and the loop scalar.
#define RF_PURE __attribute__((const))
#if defined(__GNUC__) && !defined(__clang__)
// g++ follows what a clamp's limit becomes, a rounded constant at last, along a path of its own: the loop's choices of
// numbers turn into as many conditions on conditions. Rows of eight-bit floats took 1.6 times as long.
// Partial redundancy elimination would know a NaN test's result on one side of a maximum before, and g++ vectorises no
// choice of truth values. Straight-line strength reduction of g++ 12 is wrong: in a body with some twenty loads at
// constant distances, each from three arrays, it made addresses that are differences of pointers.
#pragma GCC optimize("no-thread-jumps", "no-tree-pre", "no-tree-slsr")
#endif
#ifdef __clang__
// Its own max and min begin with the largest finite numbers: a row of infinities would get one of those.
#pragma omp declare reduction(rf_top : float : omp_out = omp_in > omp_out ? omp_in : omp_out) \
  initializer(omp_priv = -__builtin_inff())
#pragma omp declare reduction(rf_top : double : omp_out = omp_in > omp_out ? omp_in : omp_out) \
  initializer(omp_priv = -__builtin_inf())
#pragma omp declare reduction(rf_low : float : omp_out = omp_in < omp_out ? omp_in : omp_out) \
  initializer(omp_priv = __builtin_inff())
#pragma omp declare reduction(rf_low : double : omp_out = omp_in < omp_out ? omp_in : omp_out) \
  initializer(omp_priv = __builtin_inf())
#define RF_TOP rf_top
#define RF_LOW rf_low
#else
#define RF_TOP max
#define RF_LOW min
#endif
""" + _prototypes() + r"""
typedef uint16_t rf_bf16;
typedef uint16_t rf_fp16;
static inline float rf_bits(uint32_t u) { float f; __builtin_memcpy(&f, &u, 4); return f; }
static inline float rf_from_bf16(rf_bf16 x) { return rf_bits((uint32_t)x << 16); }
// By arithmetic on bits: g++ 12 takes the compiler's own type one number after the other.
static inline float rf_from_fp16(rf_fp16 x) {
  const int32_t m = x & 0x7fff;
  const float doubled = rf_bits((uint32_t)(m << 13) + (113u << 23));
  float f = m < 0x400 ? doubled - rf_bits(113u << 23) : doubled * 0.5f;
  f = m < 0x7c00 ? f : rf_bits((uint32_t)(m << 13) | 0x7f800000u);
  uint32_t u; __builtin_memcpy(&u, &f, 4);
  return rf_bits(u | (uint32_t)(x & 0x8000) << 16);
}
static inline rf_bf16 rf_to_bf16(float x) {
  uint32_t u; __builtin_memcpy(&u, &x, 4);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (rf_bf16)(x != x ? 0x7fc0u : rounded);
}
// The same as a float again. A NaN's bits are added: chosen, they are a constant that g++ follows through the next
// operations on a path of its own, which keeps the loop from being vectorised.
static inline float rf_round_bf16(float x) {
  uint32_t u; __builtin_memcpy(&u, &x, 4);
  return rf_bits(((u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u) | (x != x ? 0x7fc00000u : 0u));
}
// For values whose NaNs have zeros in the lower half (cpp_nans); processors whose own NaNs haven't get the above.
#if defined(__x86_64__) || defined(__aarch64__) || defined(__riscv)
static inline rf_bf16 rf_to_bf16_unchecked(float x) {
  uint32_t u; __builtin_memcpy(&u, &x, 4);
  return (rf_bf16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static inline float rf_round_bf16_unchecked(float x) {
  uint32_t u; __builtin_memcpy(&u, &x, 4);
  return rf_bits((u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u);
}
#else
#define rf_to_bf16_unchecked rf_to_bf16
#define rf_round_bf16_unchecked rf_round_bf16
#endif
static inline rf_fp16 rf_to_fp16(float x) {
  int32_t u; __builtin_memcpy(&u, &x, 4);
  const int32_t a = u & 0x7fffffff;
  const float sum = rf_bits((uint32_t)a) + 0.5f;  // whose last bit is that of the smallest numbers
  int32_t small; __builtin_memcpy(&small, &sum, 4);
  const int32_t normal = (a - (112 << 23) + 0xfff + (a >> 13 & 1)) >> 13;
  int32_t code = a < 113 << 23 ? small - (126 << 23) : normal;
  code = code > 0x7bff ? 0x7c00 : code;
  code = a > 0x7f800000 ? 0x7e00 : code;
  return (rf_fp16)(code | (u >> 16 & 0x8000));
}
static inline float rf_round_fp16(float x) { return rf_from_fp16(rf_to_fp16(x)); }
static inline bool rf_signbit(float x) { uint32_t u; __builtin_memcpy(&u, &x, 4); return u >> 31; }
static inline bool rf_signbit(double x) { uint64_t u; __builtin_memcpy(&u, &x, 8); return u >> 63; }
template <typename To, typename From> static inline To rf_same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "as wide");
  To y; __builtin_memcpy(&y, &x, sizeof(To)); return y;
}
// Two choices, one after the other: with a disjunction a chain of these is control flow, and not vectorised. The first
// is the processor's instruction, which keeps a NaN on the left; the second is none where the right is a constant.
template <typename T> static inline T rf_max(T a, T b) { const T m = a < b ? b : a; return b != b ? b : m; }
template <typename T> static inline T rf_min(T a, T b) { const T m = a > b ? b : a; return b != b ? b : m; }
template <typename T> static inline T rf_chosen(bool first, T a, T b) { return first ? a : b; }
static inline double rf_logaddexp(double a, double b) {  // equal infinities have no distance
  return rf_max(a, b) + __builtin_log1p(__builtin_exp(a == b ? 0.0 : -__builtin_fabs(a - b)));
}
// Lanes of a row's accumulators into one, halved until one is left.
#define RF_TREE(name, joined) template <int N, typename T> static inline T name(T* a) { \
    if constexpr (N == 1) return a[0]; \
    else { \
      _Pragma("omp simd") for (int l = 0; l < N / 2; ++l) { const T x = a[l], y = a[l + N / 2]; a[l] = joined; } \
      return name<N / 2>(a); \
    } \
  }
RF_TREE(rf_sum_of, x + y) RF_TREE(rf_prod_of, x * y) RF_TREE(rf_max_of, rf_max(x, y)) RF_TREE(rf_min_of, rf_min(x, y))
// The first place of the largest, or least, of the lanes' best: a NaN is both.
#define RF_FIRST(name, best) template <int N, typename T, typename P> static inline P name(const T* a, P* at) { \
    T values[N]; __builtin_memcpy(values, a, sizeof values); \
    const T top = best<N>(values); \
    _Pragma("omp simd") for (int l = 0; l < N; ++l) { \
      const bool found = (a[l] == top) | ((a[l] != a[l]) & (top != top)); \
      at[l] = found ? at[l] : (P)(((uint64_t)1 << (8 * sizeof(P) - 1)) - 1); \
    } \
    return rf_min_of<N>(at); \
  }
RF_FIRST(rf_first_max_of, rf_max_of) RF_FIRST(rf_first_min_of, rf_min_of)
template <typename T> static inline bool rf_minus_one(T b) { return (T)-1 < 0 && b == (T)-1; }
template <typename T> static inline T rf_truncdiv(T a, T b) {
  return b == 0 ? 0 : rf_minus_one(b) ? (T)(0 - a) : (T)(a / b);
}
template <typename T> static inline T rf_mod(T a, T b) { return b == 0 || rf_minus_one(b) ? 0 : (T)(a % b); }
template <typename T> static inline T rf_remainder(T a, T b) {
  const T r = rf_mod(a, b);
  return (r != 0 && ((r < 0) != (b < 0))) ? (T)(r + b) : r;
}
template <typename T> static inline T rf_floordiv(T a, T b) {
  const T q = rf_truncdiv(a, b);
  return (rf_mod(a, b) != 0 && ((a < 0) != (b < 0))) ? (T)(q - 1) : q;
}
template <typename T> static inline T rf_ipow(T a, T b) {
  if (b < 0) return a == 1 ? 1 : a == (T)-1 ? ((b & 1) ? (T)-1 : 1) : 0;
  T result = 1;
  for (; b; b >>= 1, a *= a) if (b & 1) result *= a;
  return result;
}
template <typename T> static inline T rf_shl(T a, T b) { return b < 0 || b >= (T)(sizeof(T) * 8) ? 0 : (T)(a << b); }
template <typename T> static inline T rf_shr(T a, T b) {
  return b < 0 || b >= (T)(sizeof(T) * 8) ? (T)(a < 0 ? -1 : 0) : (T)(a >> b);
}
static inline int64_t rf_bounded(int64_t i, int64_t n) {
  if (__builtin_expect((uint64_t)i >= (uint64_t)n, 0)) { rf_status = 1; return 0; }
  return i;
}
static inline int64_t rf_within(int64_t i, int64_t n, int& outside) {  // without a branch, for vectors
  const bool wrong = (uint64_t)i >= (uint64_t)n;
  outside |= wrong;
  return wrong ? 0 : i;
}
// Philox4x32-10 (Salmon et al., 2011) for a 64-bit key and counter: word W of four. Its rounds are spelled out: a loop
// inside of a loop isn't vectorised.
template <int W> static inline int32_t rf_philox(int64_t seed, int64_t position) {
  uint32_t a = (uint32_t)position, b = (uint32_t)((uint64_t)position >> 32), c = 0, d = 0;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
#define RF_ROUND { \
    const uint64_t first = (uint64_t)a * 0xD2511F53u, second = (uint64_t)c * 0xCD9E8D57u; \
    a = (uint32_t)(second >> 32) ^ b ^ k0, c = (uint32_t)(first >> 32) ^ d ^ k1; \
    b = (uint32_t)second, d = (uint32_t)first; \
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u; \
  }
  RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND
  return (int32_t)(W == 0 ? a : b);
}
#define RF_MIN(a, b) ((a) < (b) ? (a) : (b))
#define RF_MAX(a, b) ((a) > (b) ? (a) : (b))
""" + MATH + cpp_conversions()

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
        return f"1 / (1 + exp(-{args[0]}))"
    return f"rf_sigmoid({args[0]})"


def _inline(name: str) -> Spelling:
    def spell(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
        return f"{name}({args[0]})" if stmt.dtype == torch.float64 else f"rf_{name}({args[0]})"

    return spell


def _exp(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    if stmt.dtype == torch.float64:
        return f"exp({args[0]})"
    assert isinstance(p, CppStatements)
    return f"rf_exp{'_below' if args[0] in p.never_positive else ''}({args[0]})"


def _bounded(p: Printer, stmt: Compute, args: tuple[str, ...]) -> str:
    assert isinstance(p, CppStatements)
    return f"rf_within({', '.join(args)}, outside)" if p._gathers else f"rf_bounded({', '.join(args)})"


CPP_OPS: dict[str, Spelling] = {
    **{name: _math(name) for name in _UNARY_MATH},
    "exp": _exp, "tanh": _inline("tanh"), "erf": _inline("erf"),
    **{name: _builtin(name) for name in ("sqrt", "floor", "ceil", "trunc")},
    "round": _builtin("rint"), "abs": _by_kind(_builtin("fabs"), "({0} < 0 ? -{0} : {0})"), "neg": "-{0}",
    "lgamma": _math("lgamma"), "fmod": _by_kind(_math("fmod"), "rf_mod({0}, {1})"), "rsqrt": _rsqrt,
    "sigmoid": _sigmoid, "cast": _cast, "round_to": _round_to, "bits": _bits, "from_bits": _from_bits,
    "isnan": "{0} != {0}",
    "isinf": "__builtin_isinf({0}) != 0", "not": "!{0}", "invert": "~{0}",
    "signbit": _by_kind("rf_signbit({0})", "{0} < 0"),
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}",
    "truncdiv": "rf_truncdiv({0}, {1})", "floordiv": "rf_floordiv({0}, {1})", "remainder": "rf_remainder({0}, {1})",
    "pow": _by_kind(_math("pow"), "rf_ipow({0}, {1})"), "atan2": _math("atan2"), "min": "rf_min({0}, {1})",
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

    def unchecked(self, name: str) -> str:
        """How the functions are called that round ``name`` to bfloat16 and needn't look for its NaNs."""
        return "_unchecked" if name in self._short_nans else ""

    def narrow(self, text: str, name: str, dtype: torch.dtype) -> str:
        """``text``, whose NaNs are those of the value ``name``, as an element of ``dtype``."""
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

    def widen(self, stmt: Load, element: str) -> str:
        """The element of memory that a load reads, in the type it is computed in."""
        return WIDEN.get(self.kernel.buffer(stmt.buffer).dtype, "{}").format(element)

    def spell_place(self, stmt: Load | Store) -> str:
        """The place in its buffer of what a load or a store touches."""
        return self.spell_index(stmt.index)

    def spell_load(self, stmt: Load) -> str:
        text = self.widen(stmt, f"{stmt.buffer}[{self.spell_place(stmt)}]")
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
