"""The device math library for Triton's interpreter, which has none: the same names as ``libdevice``, by NumPy."""
from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle
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


def _widened(operand: TensorHandle) -> TensorHandle:
    """A bfloat16 operand of a product, which the interpreter keeps as the bits of an integer, in float32."""
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


_multiply = InterpreterBuilder.create_dot


def _dot(builder: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
    return _multiply(builder, _widened(a), _widened(b), *rest)


_fill = InterpreterBuilder.create_splat


def _splat(builder: InterpreterBuilder, kind: Any, scalar: TensorHandle) -> TensorHandle:
    """The interpreter gives a comparison's result the type of what was compared: as a block of that type it couldn't be
    part of a mask."""
    return _fill(builder, kind, TensorHandle(scalar.data, tl.int1) if scalar.data.dtype == bool else scalar)


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Within this block ``triton.jit`` makes interpreted functions, and the language's own (``tl.sum``, …) are, too.

    ``TRITON_INTERPRET=1`` does the same, but only if it is set before Triton is first imported.
    """
    before = triton.knobs.runtime.interpret
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("triton.language") and m is not None]
    # The interpreter changes the language's classes, too, and a call of one interpreted function by another leaves
    # them changed, with which nothing compiles any more.
    classes = [tl.core.tensor, tl.core.tensor_descriptor_base, tl.core.dtype, tl.core.condition,
               InterpreterBuilder]
    saved = [(owner, dict(vars(owner))) for owner in (*modules, *classes)]
    interpreted: dict[int, InterpretedFunction] = {}
    try:
        triton.knobs.runtime.interpret = True
        InterpreterBuilder.create_dot, InterpreterBuilder.create_splat = _dot, _splat
        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    setattr(module, name, interpreted.setdefault(id(value), InterpretedFunction(value.fn)))
        yield
    finally:
        triton.knobs.runtime.interpret = before
        for owner, attributes in saved:
            _restore(owner, attributes)


def _restore(owner: Any, attributes: dict[str, Any]) -> None:
    """Give ``owner`` back the attributes that it had. What was added to a module stays: functions that the interpreter
    has rewritten, which it keeps, look it up there."""
    for name, value in list(vars(owner).items()):
        if name in attributes and value is not attributes[name]:
            setattr(owner, name, attributes[name])
        elif name not in attributes and isinstance(owner, type):
            delattr(owner, name)
