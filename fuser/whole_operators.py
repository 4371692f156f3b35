"""Operators that tracing would take apart before any table of decompositions is asked."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_INTERPOLATIONS = (
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
    *(f"{name}{rank}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for rank in (1, 2, 3)))


@contextmanager
def whole_interpolations() -> Iterator[None]:
    """While it lasts, a trace gets interpolations as the operators they are, with gradients that are operators, too.

    For these torch registers, beside its kernels, functions in Python that look up each element by a position computed
    in floating point. A trace prefers those, which leaves nothing to see of the scale that an image is enlarged by.
    Calls outside of traces don't come through here.
    """
    keys = (torch._C.DispatchKey.Autograd, torch._C.DispatchKey.CompositeImplicitAutograd)
    hidden: list[tuple[Any, dict[Any, Any]]] = []
    try:
        for name in _INTERPOLATIONS:
            packet = getattr(torch.ops.aten, name)
            for op in (packet.default, packet.vec):
                hidden.append((op, {key: op.py_kernels.pop(key) for key in keys if key in op.py_kernels}))
                op._dispatch_cache.clear()
        yield
    finally:
        for op, kernels in hidden:
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
