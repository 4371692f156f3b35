"""The device math library for Triton's interpreter, which has none: the same names as ``libdevice``, by NumPy."""
from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator

import numpy as np
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, TensorHandle
from triton.runtime.jit import JITFunction


def _unary(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[tl.tensor], tl.tensor]:
    def apply(x: tl.tensor) -> tl.tensor:
        with np.errstate(all="ignore"):
            data = function(x.handle.data).astype(x.handle.data.dtype)
        return tl.tensor(TensorHandle(data, x.handle.dtype), x.type)

    return apply


def _binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[tl.tensor, tl.tensor], tl.tensor]:
    def apply(x: tl.tensor, y: tl.tensor) -> tl.tensor:
        x, y = tl.broadcast(x, y)
        with np.errstate(all="ignore"):
            data = function(x.handle.data, y.handle.data).astype(x.handle.data.dtype)
        return tl.tensor(TensorHandle(data, x.handle.dtype), x.type)

    return apply


def _each(function: Callable[[float], float], at_pole: float) -> Callable[[np.ndarray], np.ndarray]:
    def one(x: float) -> float:
        try:
            return function(x)
        except (ValueError, OverflowError):
            return at_pole

    return np.vectorize(one, otypes=[np.float64])


exp2, expm1, log2, log10, log1p = map(_unary, (np.exp2, np.expm1, np.log2, np.log10, np.log1p))
tan, asin, acos, atan = map(_unary, (np.tan, np.arcsin, np.arccos, np.arctan))
sinh, cosh, tanh = map(_unary, (np.sinh, np.cosh, np.tanh))
asinh, acosh, atanh = map(_unary, (np.arcsinh, np.arccosh, np.arctanh))
trunc, nearbyint, signbit = map(_unary, (np.trunc, np.rint, np.signbit))
erfc, lgamma = _unary(_each(math.erfc, 0.0)), _unary(_each(math.lgamma, math.inf))
atan2, copysign, fmod, pow = map(_binary, (np.arctan2, np.copysign, np.fmod, np.power))


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Within this block ``triton.jit`` makes interpreted functions, and the language's own (``tl.sum``, …) are, too.

    ``TRITON_INTERPRET=1`` does the same, but only if it is set before Triton is first imported.
    """
    before = triton.knobs.runtime.interpret
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("triton.language") and m is not None]
    replaced = [(m, name, value) for m in modules for name, value in list(vars(m).items())
                if isinstance(value, JITFunction)]
    interpreted = {id(value): InterpretedFunction(value.fn) for _, _, value in replaced}
    try:
        triton.knobs.runtime.interpret = True
        for module, name, value in replaced:
            setattr(module, name, interpreted[id(value)])
        yield
    finally:
        triton.knobs.runtime.interpret = before
        for module, name, value in replaced:
            setattr(module, name, value)
