"""Operators that tracing would take apart before any table of decompositions is asked."""
from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp.decompositions import upsample_compute_output_size

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
            for op, instead in ((packet.default, None), (packet.vec, functools.partial(_by_size, packet.default))):
                kernels = {key: op.py_kernels.pop(key) for key in keys if key in op.py_kernels}
                hidden.append((op, kernels))
                if instead is not None:
                    op.py_kernels.update(dict.fromkeys(kernels, instead))
                op._dispatch_cache.clear()
        yield
    finally:
        for op, kernels in hidden:
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()


def _by_size(op: Any, x: torch.Tensor, outputs: Sequence[int] | None, *rest: Any) -> torch.Tensor:
    """The overload that is told the sizes of its results or their scales by ``op``, which is told both."""
    *aligned, factors = rest
    sizes = upsample_compute_output_size(x.size(), outputs, factors)
    found: torch.Tensor = op(x, sizes, *aligned, *(factors or [None] * (x.dim() - 2)))
    return found
