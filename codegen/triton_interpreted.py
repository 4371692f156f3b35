"""What Triton's interpreter lacks: the math library ``libdevice`` by NumPy, reductions and scans of whole blocks."""
from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, ReduceOps, ScanOps, TensorHandle
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


Blocks = list[np.ndarray]


def _combined(ops: ReduceOps | ScanOps, first: Blocks, second: Blocks, like: tuple[tl.tensor, ...]) -> Blocks:
    """What the combining function makes of two blocks' elements, pair by pair."""
    arguments = [ops.to_tensor(data, x.dtype) for part in (first, second) for data, x in zip(part, like)]
    found = ops.combine_fn.fn(*arguments)
    return [x.handle.data.astype(data.dtype) for x, data in zip(found if isinstance(found, tuple) else [found], first)]


def _reduce(ops: ReduceOps, inputs: tuple[tl.tensor, ...]) -> list[tl.tensor]:
    """One half of the axis with the other, until an element is left, as the lanes of a device do it; the interpreter's
    own reduction calls the combining function for every element."""
    whole = ops.axis is None
    dims = inputs[0].handle.data.ndim
    parts = [x.handle.data.reshape(-1) if whole else np.moveaxis(x.handle.data, ops.axis, 0) for x in inputs]
    while (half := len(parts[0]) // 2):
        parts = _combined(ops, [x[:half] for x in parts], [x[half:] for x in parts], inputs)
    if ops.keep_dims:
        parts = [x.reshape((1,) * dims) if whole else np.moveaxis(x, 0, ops.axis) for x in parts]
    else:
        parts = [x[0] for x in parts]
    return [ops.to_tensor(data, x.dtype) for data, x in zip(parts, inputs)]


def _scan(ops: ScanOps, inputs: tuple[tl.tensor, ...]) -> list[tl.tensor]:
    """Neighbouring runs are joined, each twice as long as the last time: all of the later one takes in the earlier
    one's last element."""
    parts = [np.moveaxis(x.handle.data, ops.axis, 0).copy() for x in inputs]
    length, *others = parts[0].shape
    run = 1
    while run < length:
        pairs = [x.reshape(-1, 2 * run, *others) for x in parts]
        later = [x[:, run:] for x in pairs]
        earlier = [np.broadcast_to(x[:, run - 1 : run], y.shape) for x, y in zip(pairs, later)]
        for x, joined in zip(later, _combined(ops, earlier, later, inputs)):
            x[...] = joined
        run *= 2
    return [ops.to_tensor(np.moveaxis(data, 0, ops.axis), x.dtype) for data, x in zip(parts, inputs)]


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
               InterpreterBuilder, ReduceOps, ScanOps]
    saved = [(owner, dict(vars(owner))) for owner in (*modules, *classes)]
    interpreted: dict[int, InterpretedFunction] = {}
    try:
        triton.knobs.runtime.interpret = True
        InterpreterBuilder.create_dot, InterpreterBuilder.create_splat = _dot, _splat
        ReduceOps.generic_reduce, ScanOps.generic_scan = _reduce, _scan
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
