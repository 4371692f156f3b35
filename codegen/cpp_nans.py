"""Which float32 values can be rounded to bfloat16 without a look at whether they are NaN.

Rounding to nearest adds up to 0x8000 to a float's bits and keeps the upper half. That makes infinity or zero of some
NaNs, but of none whose lower half is zero: the sum doesn't carry into the upper half then. Such are the NaNs of widened
bfloat16 and those that arithmetic makes itself (0x7fc00000, on x86 with the sign set), and arithmetic hands on one of
its operands' NaNs as it is but for the quiet bit. Other NaNs come from memory of wider types, from bits and from the
mathematical library, whose results nobody has looked at.
"""
from __future__ import annotations

import torch

from .ir import Compute, Const, Kernel, Load, Nest, Store, operands

#: Operations that hand NaNs on, or make the processor's own; those that are calls into the library in float64.
_HAND_ON = frozenset((
    "neg abs sqrt rsqrt floor ceil trunc round add sub mul div fma min max where copysign cast round_to").split())
_INLINE_FLOAT32 = frozenset(("exp", "tanh", "sigmoid", "erf"))


def short_nans(kernel: Kernel, nest: Nest) -> frozenset[str]:
    """Names of the values whose NaNs, if there are any, have zeros in the lower half of a float32."""
    found: set[str] = set()
    for stmt in nest.body:
        if isinstance(stmt, Store):
            continue
        if not stmt.dtype.is_floating_point or isinstance(stmt, Const):
            found.add(stmt.name)
        elif isinstance(stmt, Load):
            dtype = kernel.buffer(stmt.buffer).dtype
            if dtype == torch.bfloat16 or not dtype.is_floating_point:
                found.add(stmt.name)
        elif (not isinstance(stmt, Compute) or _hands_on(stmt)) and all(name in found for name in operands(stmt)):
            found.add(stmt.name)
    return frozenset(found)


def _hands_on(stmt: Compute) -> bool:
    if stmt.rounding not in (None, torch.bfloat16):
        return False
    return stmt.op in _HAND_ON or (stmt.op in _INLINE_FLOAT32 and stmt.dtype == torch.float32)
