"""Max pooling that tells which place of its window won, rather than which position of the input, and its gradient.

``max_pool_places(x, kernel_size, stride, padding, ceil_mode)`` gives the largest element of each window and its place
there, in row-major order, as uint8. ``max_pool_places_backward(grad, places, size, kernel_size, stride, padding,
ceil_mode)`` is its gradient for an input of ``size``, whose memory is laid out as that of ``places``. All lists have a
number for each dimension of the window; windows have at most `windows.MAX_PLACES` places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rooffuse.passes import rules_window, rules_window_backward
from rooffuse.passes.rule_base import conform
from rooffuse.passes.windows import windows_over
from torch import Tensor

_library = torch.library.Library("rooffuse", "FRAGMENT")
_WINDOW = "int[] kernel_size, int[] stride, int[] padding, bool ceil_mode"


def _format(x: Tensor) -> torch.memory_format:
    """Where the framework's pooling puts channels, which it tells from ``x``."""
    for rank, last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == rank and not x.is_contiguous() and x.is_contiguous(memory_format=last):
            return last
    return torch.contiguous_format


def _empty_pooled(x: Tensor, kernel: Sequence[int], *window: Any) -> tuple[Tensor, Tensor]:
    stride, padding, ceil_mode = window
    w = windows_over(x.shape, kernel, stride, padding, 1, ceil_mode)
    shape = (*x.shape[: -len(kernel)], *w.outputs)
    values = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))
    return values, torch.empty_like(values, dtype=torch.uint8)


def _pooled(x: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    values, places = rules_window.max_pool_places(x, *window)
    like_values, like_places = _empty_pooled(x, *window)
    return conform(values, like_values), conform(places, like_places)


def _empty_gradient(grad: Tensor, places: Tensor, size: Sequence[int], *window: Any) -> Tensor:
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=_format(places))


def _gradient(grad: Tensor, places: Tensor, size: Sequence[int], *window: Any) -> Tensor:
    found = rules_window_backward.max_pool_places_backward(grad, places, size, *window)
    return conform(found, _empty_gradient(grad, places, size))


for _name, _arguments, _results, _function, _fake in (
    ("max_pool_places", f"Tensor x, {_WINDOW}", "(Tensor, Tensor)", _pooled, _empty_pooled),
    ("max_pool_places_backward", f"Tensor grad, Tensor places, int[] size, {_WINDOW}", "Tensor", _gradient,
     _empty_gradient),
):
    _library.define(f"{_name}({_arguments}) -> {_results}")
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rooffuse::{_name}", _fake, lib=_library)

max_pool_places = torch.ops.rooffuse.max_pool_places.default
max_pool_places_backward = torch.ops.rooffuse.max_pool_places_backward.default
