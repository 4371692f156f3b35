"""Functions of glibc's vector library, which give a number the same bits wherever it lies in a loop.

glibc has each function for vectors of several widths and for single numbers, made by different algorithms whose last
bits differ. A loop takes the widest for most of its elements and the one for single numbers for what is left, so that
equal numbers come out unequal: a value that was looked up in what it was computed into isn't found. Here all widths
are the widest one's, asked for copies of what is there; single numbers take longer for it.

The library has no ``fmod``; the one here takes multiples of the divisor away in steps: the quotient, of as many bits as
the type has and not rounded up, times the divisor (or 2^k times it, for far larger numbers), which leaves an exact
difference.
"""
from __future__ import annotations

#: Functions of one number and of two that both glibc and the vector library have.
UNARY_MATH = (
    "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp exp2 expm1 log log2 log10 log1p erf "
    "erfc"
).split()
_BINARY_MATH = ("pow", "atan2", "fmod")

#: Width's letter in the vector function ABI of x86-64 -> bytes.
_WIDTHS = {"b": 16, "c": 32, "d": 32, "e": 64}
#: Instruction that fills a vector of so many bytes from what begins it, of so many bytes; {0} is the register's number.
_FILL = {
    (4, 64): "vbroadcastss %xmm{0}, %zmm{0}", (8, 64): "vbroadcastsd %xmm{0}, %zmm{0}",
    (16, 64): "vshuff32x4 $0, %zmm{0}, %zmm{0}, %zmm{0}", (32, 64): "vinsertf64x4 $1, %ymm{0}, %zmm{0}, %zmm{0}",
    (4, 32): "vbroadcastss %xmm{0}, %ymm{0}", (8, 32): "vbroadcastsd %xmm{0}, %ymm{0}",
    (16, 32): "vinsertf128 $1, %xmm{0}, %ymm{0}, %ymm{0}",
}


def lane_function(name: str, double: bool) -> str:
    """What kernels call for ``name``."""
    return f"RF_LANE({name}{'' if double else 'f'})"


def _functions() -> list[tuple[str, str, int]]:
    """Name in glibc, type, number of arguments."""
    return [(f"{name}{suffix}", kind, count) for suffix, kind in (("f", "float"), ("", "double"))
            for names, count in ((UNARY_MATH, 1), (_BINARY_MATH, 2)) for name in names]


def _declared() -> str:
    """What loops may call for vectors of numbers."""
    lines = ['extern "C" {']  # a block: clang has no pragma before a declaration with a linkage of its own
    for name, kind, count in _functions():
        arguments = ", ".join([kind] * count)
        lines += [f"RF_SIMD {kind} RF_LANE({name})({arguments}) noexcept RF_PURE;"]
    return "\n".join([*lines, "}"])


def _assembled(letter: str) -> str:
    """All widths of all functions on a processor whose widest vectors have this letter."""
    widest, lines = _WIDTHS[letter], [".text"]
    for name, kind, count in _functions():
        size = 4 if kind == "float" else 8
        lanes, parameters = widest // size, "v" * count
        own = name in ("fmodf", "fmod")
        target = f"rf_wide_{name}" if own else f"*_ZGV{letter}N{lanes}{parameters}_{name}@GOTPCREL(%rip)"
        for width in (w for w in _WIDTHS if _WIDTHS[w] <= widest):
            symbol = f"_ZGV{width}N{_WIDTHS[width] // size}{parameters}_rf_lane_{name}"
            fill = [_FILL[_WIDTHS[width], widest].format(k) for k in range(count)] if _WIDTHS[width] < widest else []
            lines += [f".weak {symbol}", f".hidden {symbol}", f"{symbol}:", *fill, f"jmp {target}"]
        lines += [f".weak rf_lane_{name}", f".hidden rf_lane_{name}", f"rf_lane_{name}:",
                  *[_FILL[size, widest].format(k) for k in range(count)],
                  "subq $8, %rsp", f"call {target}", "addq $8, %rsp", "vzeroupper", "ret"]
    return "\n".join(f'"{line}\\n"' for line in lines)


def _fmod(letter: str) -> str:
    """``fmod`` of vectors of this width."""
    def one(name: str, kind: str, whole: str, size: int, scale: str, far: str) -> str:
        lanes, suffix = _WIDTHS[letter] // size, "f" if size == 4 else ""
        return f"""typedef {kind} rf_wide_{kind} __attribute__((vector_size({_WIDTHS[letter]})));
extern "C" __attribute__((weak, visibility("hidden"), used))
rf_wide_{kind} rf_wide_{name}(rf_wide_{kind} a, rf_wide_{kind} b) {{
  {kind} x[{lanes}], r[{lanes}], d[{lanes}];
  __builtin_memcpy(x, &a, sizeof x);
  __builtin_memcpy(d, &b, sizeof d);
  int left = 0;
  #pragma omp simd reduction(|: left)
  for (int k = 0; k < {lanes}; ++k) {{
    const {kind} from = __builtin_fabs{suffix}(x[k]), by = __builtin_fabs{suffix}(d[k]);
    r[k] = (from < __builtin_inf{suffix}()) & (by > 0) ? from : __builtin_nan{suffix}("");
    d[k] = by;
    left |= r[k] >= d[k];
  }}
  while (left) {{
    left = 0;
    #pragma omp simd reduction(|: left)
    for (int k = 0; k < {lanes}; ++k) {{
      {kind} by = d[k];
      by = r[k] * {far} >= by ? by * {scale} : by;  // so often that no quotient is infinite
      by = r[k] * {far} >= by ? by * {scale} : by;
      by = r[k] * {far} >= by ? by * {scale} : by;
      const {kind} nearest = __builtin_floor{suffix}(r[k] / by);
      {whole} bits;
      __builtin_memcpy(&bits, &nearest, sizeof bits);
      bits -= 1;
      {kind} before;
      __builtin_memcpy(&before, &bits, sizeof bits);
      before = nearest - 1 < before ? nearest - 1 : before;  // where the quotient was rounded up
      const {kind} rest = __builtin_fma{suffix}(-nearest, by, r[k]), more = __builtin_fma{suffix}(-before, by, r[k]);
      r[k] = r[k] >= d[k] ? rest < 0 ? more : rest : r[k];
      left |= r[k] >= d[k];
    }}
  }}
  #pragma omp simd
  for (int k = 0; k < {lanes}; ++k) r[k] = __builtin_copysign{suffix}(r[k], x[k]);
  __builtin_memcpy(&a, r, sizeof r);
  return a;
}}"""
    return "\n".join([one("fmodf", "float", "int32_t", 4, "0x1p64f", "0x1p-100f"),
                      one("fmod", "double", "int64_t", 8, "0x1p600", "0x1p-900")])


VECTOR_MATH = f"""// Only where all widths can be asked for one: elsewhere loops over these functions aren't vectorised.
#if defined(__x86_64__) && defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 35) \\
    && defined(__GNUC__) && !defined(__clang__) && defined(__AVX2__)
#define RF_LANE(name) rf_lane_##name
#define RF_SIMD _Pragma("omp declare simd notinbranch")
#ifdef __AVX512F__
{_fmod("e")}
asm({_assembled("e")});
#else
{_fmod("d")}
asm({_assembled("d")});
#endif
#else
#define RF_LANE(name) name
#define RF_SIMD
#endif
// Without it a function that g++ knows nothing of (build_cpp) might write what a choice before it reads: the choice
// stays a branch, and the loop scalar.
#define RF_PURE __attribute__((const))
{_declared()}
"""
