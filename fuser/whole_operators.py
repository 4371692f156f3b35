"""Operators that tracing would take apart before any table of decompositions is asked, into less than they are."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._decomp.decompositions import upsample_compute_output_size

_INTERPOLATIONS = (
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
    *(f"{name}{rank}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for rank in (1, 2, 3)))
_IMPLICIT = torch._C.DispatchKey.CompositeImplicitAutograd
_KEYS = (torch._C.DispatchKey.Autograd, _IMPLICIT)


@contextmanager
def whole_operators() -> Iterator[None]:
    """While it lasts, a trace gets interpolations of known sizes as the operators they are, with gradients that are
    operators, too, and what repeats around the edges as concatenations.

    For the former torch registers, beside its kernels, functions in Python that look up each element by a position
    computed in floating point. A trace prefers those, which leaves nothing to see of the scale that an image is
    enlarged by. The latter are written into memory edge by edge, each from what was written before it.
    Calls outside of traces don't come through here.
    """
    with ExitStack() as stack:
        around = torch.ops.aten._pad_circular.default
        stack.callback(around._dispatch_cache.clear)
        stack.callback(around.py_kernels.pop, _IMPLICIT)
        around.py_kernels[_IMPLICIT] = _repeated_around
        around._dispatch_cache.clear()
        for name in _INTERPOLATIONS:
            packet = getattr(torch.ops.aten, name)
            stack.enter_context(_replaced(packet.vec, functools.partial(functools.partial, _by_size, packet.default)))
        yield


@contextmanager
def _replaced(op: Any, instead: Callable[[Any], Any] | None) -> Iterator[None]:
    """``op`` with what ``instead`` makes of its functions in Python for a trace, or without them."""
    taken = {key: op.py_kernels.pop(key) for key in _KEYS if key in op.py_kernels}
    if instead is not None:
        op.py_kernels.update({key: instead(function) for key, function in taken.items()})
    op._dispatch_cache.clear()
    try:
        yield
    finally:
        op.py_kernels.update(taken)
        op._dispatch_cache.clear()


def _repeated_around(x: torch.Tensor, pad: Sequence[int]) -> torch.Tensor:
    """``x`` with its last elements in front of it and its first behind it, in as many dimensions as ``pad`` has pairs
    of lengths for, the last one first. What torch refuses, or is cut rather than padded, is as torch has it."""
    dims = range(x.dim() - 1, -1, -1)
    pairs = list(zip(dims, pad[::2], pad[1::2]))
    if x.dim() < 2 + len(pairs) or len(pad) % 2 or any(
            type(n) is not int or not 0 <= n <= x.size(d) for d, *sides in pairs for n in sides):
        found: torch.Tensor = torch.ops.aten._pad_circular.default._op_dk(_IMPLICIT, x, pad)
        return found
    for d, low, high in pairs:
        x = torch.cat([x.narrow(d, x.size(d) - low, low), x, x.narrow(d, 0, high)], d) if low or high else x
    return x


def _by_size(op: Any, taken_apart: Any, x: torch.Tensor, outputs: Sequence[int] | None, *rest: Any) -> torch.Tensor:
    """The overload that is told the sizes of its results or their scales, by ``op``, which is told both. Sizes that are
    only known when it runs are taken apart: torch has no shapes of their gradients."""
    *aligned, factors = rest
    sizes = upsample_compute_output_size(x.size(), outputs, factors)
    found: torch.Tensor
    if any(type(n) is not int for n in (*x.size(), *sizes)):
        found = taken_apart(x, outputs, *rest)
        return found
    with _replaced(op, None):
        found = op(x, sizes, *aligned, *(factors or [None] * (x.dim() - 2)))
    return found
