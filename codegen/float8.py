"""Eight-bit floats: what their codes mean, and conversions to and from float32 in C++ and Triton.

A code is a sign bit, an exponent and a mantissa, as in IEEE 754. The formats differ in what is above the largest number
("FP8 Formats for Deep Learning", Micikevicius et al., 2022, for e4m3fn and e5m2; "8-bit Numerical Formats for Deep
Neural Networks", Noune et al., 2022, for e4m3fnuz, whose one NaN is the code of a negative zero). Both directions are
arithmetic on bits, exact and to nearest even; devices that convert in hardware do it there.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import _disable_current_modes


@dataclass(frozen=True)
class Float8:
    """A format: ``largest`` is the code of its largest number, ``nan`` one that is none, ``overflow`` what numbers
    round to beyond ``largest``; ``infinite`` if the code after ``largest`` is infinity. ``native`` is Triton's name for
    the type where hardware converts it, and from ``limit`` on numbers overflow."""

    name: str
    mantissa: int
    bias: int
    largest: int
    nan: int
    overflow: int
    infinite: bool
    native: str | None = None
    limit: float = float("inf")


def _overflow(dtype: torch.dtype) -> int:
    """The code that the framework's own conversion gives to infinity: NaN before torch 2.13 for types that have none,
    the largest number since."""
    with _disable_current_modes():  # this may be imported while a graph is traced
        return int(torch.tensor([float("inf")], device="cpu").to(dtype).view(torch.uint8))


FLOAT8: Mapping[torch.dtype, Float8] = {
    torch.float8_e4m3fn: Float8("e4m3fn", 3, 7, 0x7e, 0x7f, _overflow(torch.float8_e4m3fn), False, "tl.float8e4nv",
                                464.00003),
    torch.float8_e5m2: Float8("e5m2", 2, 15, 0x7b, 0x7f, _overflow(torch.float8_e5m2), True, "tl.float8e5", 61440.0),
    torch.float8_e4m3fnuz: Float8("e4m3fnuz", 3, 8, 0x7f, 0x80, _overflow(torch.float8_e4m3fnuz), False),
}

# Signed integers throughout: g++ 12 doesn't vectorise the same with unsigned ones. Adding a power of two whose last bit
# is the smallest number of the format rounds what is below its normal numbers.
_CPP = """
template <typename F> static inline uint8_t rf_to_f8(float x) {
  int32_t u; __builtin_memcpy(&u, &x, 4);
  const int32_t a = u & 0x7fffffff, magic = (151 - F::bias - F::mantissa) << 23;
  const float sum = rf_bits(a) + rf_bits(magic);
  int32_t small; __builtin_memcpy(&small, &sum, 4);
  const int32_t even = (1 << (22 - F::mantissa)) - 1 + (a >> (23 - F::mantissa) & 1);
  const int32_t normal = (a - ((127 - F::bias) << 23) + even) >> (23 - F::mantissa);
  int32_t code = a < (128 - F::bias) << 23 ? small - magic : normal;
  code = code > F::largest ? F::overflow : code;
  code = a > 0x7f800000 ? F::nan : code;
  return (uint8_t)(F::nan == 0x80 && (code & 0x7f) == 0 ? code : code | (u >> 24 & 0x80));
}
template <typename F> static inline float rf_from_f8(uint8_t c) {
  const int32_t m = c & 0x7f;
  const float doubled = rf_bits((m << (23 - F::mantissa)) + ((128 - F::bias) << 23));
  float x = m < 1 << F::mantissa ? doubled - rf_bits((128 - F::bias) << 23) : doubled * 0.5f;
  if (F::nan == 0x80) x = c == 0x80 ? rf_bits(0x7fc00000) : x;
  else x = m > F::largest ? rf_bits(F::infinite && m == F::largest + 1 ? 0x7f800000 : 0x7fc00000) : x;
  uint32_t u; __builtin_memcpy(&u, &x, 4);
  return rf_bits(u | (uint32_t)(c & 0x80) << 24);
}
"""

#: A line of Triton modules, which a build for a device whose hardware converts has as `NATIVE`.
PORTABLE, NATIVE = (f"FLOAT8_IN_HARDWARE = tl.constexpr({native})\n" for native in (False, True))

_TRITON = f'''

{PORTABLE}

@triton.jit
def rf_to_f8(x, mantissa: tl.constexpr, bias: tl.constexpr, largest: tl.constexpr, nan: tl.constexpr,
             overflow: tl.constexpr, magic: tl.constexpr):
    u = x.to(tl.int32, bitcast=True)
    a = u & 0x7FFFFFFF
    small = (a.to(tl.float32, bitcast=True) + magic).to(tl.int32, bitcast=True) - ((151 - bias - mantissa) << 23)
    even = (1 << (22 - mantissa)) - 1 + ((a >> (23 - mantissa)) & 1)
    normal = (a - ((127 - bias) << 23) + even) >> (23 - mantissa)
    code = tl.where(a < ((128 - bias) << 23), small, normal)
    code = tl.where(code > largest, overflow, code)
    code = tl.where(a > 0x7F800000, nan, code)
    signed = code | ((u >> 24) & 0x80)
    if nan == 0x80:
        signed = tl.where((code & 0x7F) == 0, code, signed)
    return signed.to(tl.uint8)


@triton.jit
def rf_from_f8(c, mantissa: tl.constexpr, nan: tl.constexpr, factor: tl.constexpr):
    w = c.to(tl.int16)
    bits = ((w & 0x7F) << (10 - mantissa)) | ((w & 0x80) << 8)
    x = bits.to(tl.float16, bitcast=True).to(tl.float32) * factor
    if nan == 0x80:
        x = tl.where(w == 0x80, float("nan"), x)
    elif mantissa == 3:
        x = tl.where((w & 0x7F) == nan, float("nan"), x)
    return x
'''


def _cpp_format(f: Float8) -> str:
    facts = dict(mantissa=f.mantissa, bias=f.bias, largest=f.largest, nan=f.nan, overflow=f.overflow,
                 infinite=int(f.infinite))
    values = ", ".join(f"{name} = {value}" for name, value in facts.items())
    return f"struct rf_{f.name} {{ static constexpr int32_t {values}; }};"


def cpp_conversions() -> str:
    """C++ of ``rf_to_f8<rf_e4m3fn>(float)``, ``rf_from_f8<rf_e4m3fn>(uint8_t)``, and so for every format."""
    return _CPP + "\n".join(map(_cpp_format, FLOAT8.values())) + "\n"


def _triton_format(f: Float8) -> str:
    to = (f"rf_to_f8(x, {f.mantissa}, {f.bias}, {f.largest}, {f.nan}, {f.overflow}, "
          f"{2.0 ** (24 - f.bias - f.mantissa)!r})")
    back = f"rf_from_f8(c, {f.mantissa}, {f.nan}, {2.0 ** (15 - f.bias)!r})"
    to_lines, back_lines = [f"    return {to}"], [f"    return {back}"]
    if f.native is not None:
        hardware = [f"        code = x.to({f.native}).to(tl.uint8, bitcast=True)"]
        if f.overflow != f.largest:  # the hardware's conversion stops at the largest number
            hardware.append(f"        code = tl.where(tl.abs(x) >= {f.limit}, (code & 0x80) | {f.overflow}, code)")
        to_lines = ["    if FLOAT8_IN_HARDWARE:", *hardware, "        return code.to(tl.uint8)", "    else:",
                    f"        return {to}"]
        back_lines = ["    if FLOAT8_IN_HARDWARE:", f"        return c.to({f.native}, bitcast=True).to(tl.float32)",
                      "    else:", f"        return {back}"]
    return "\n".join(["", "", "@triton.jit", f"def rf_to_{f.name}(x):", *to_lines,
                      "", "", "@triton.jit", f"def rf_from_{f.name}(c):", *back_lines, ""])


def triton_conversions() -> str:
    """Triton of ``rf_to_e4m3fn(x)`` and ``rf_from_e4m3fn(code)``, codes as unsigned bytes, and so for every format."""
    return _TRITON + "".join(map(_triton_format, FLOAT8.values()))


def for_hardware(text: str, backend: str, capability: int | str) -> str:
    """A module's text as it is compiled for a device: with the hardware's conversions from sm_89 on."""
    native = backend == "cuda" and isinstance(capability, int) and capability >= 89
    return text.replace(PORTABLE, NATIVE) if native else text
