"""Tensors of one value, made from numbers alone: what they are shaped like is not an operand.

``full_like(x, v)`` needs the sizes of ``x`` and none of its elements. As ``full`` it is a constant, which every kernel
makes for itself, and ``x`` need not be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rooffuse.passes.rule_base import Refusal, memory_order
from torch import Tensor

_OWN_ORDER = (None, torch.preserve_format)


def full_like(
    x: Tensor,
    value: float,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """A tensor of ``value`` with the sizes of ``x``, and its order of dimensions unless another is asked for."""
    if pin_memory or layout not in (None, torch.strided):
        raise Refusal("memory that is pinned or not strided")
    order, inverse = memory_order(x)
    straight = order == inverse == sorted(order) or memory_format not in _OWN_ORDER
    sizes = list(x.shape) if straight else [x.shape[dim] for dim in order]
    result = torch.full(sizes, value, dtype=dtype or x.dtype, device=device or x.device)
    return result if straight else result.permute(inverse)


def zeros_like(x: Tensor, **options: Any) -> Tensor:
    """Zeros with the sizes of ``x``."""
    return full_like(x, 0, **options)


def ones_like(x: Tensor, **options: Any) -> Tensor:
    """Ones with the sizes of ``x``."""
    return full_like(x, 1, **options)


def new_full(x: Tensor, size: Sequence[int], value: float, **options: Any) -> Tensor:
    """A tensor of ``value`` of the type of ``x``, where it is."""
    if options.get("pin_memory") or options.get("layout") not in (None, torch.strided):
        raise Refusal("memory that is pinned or not strided")
    return torch.full(
        list(size), value, dtype=options.get("dtype") or x.dtype, device=options.get("device") or x.device
    )


def new_zeros(x: Tensor, size: Sequence[int], **options: Any) -> Tensor:
    """Zeros of the type of ``x``, where it is."""
    return new_full(x, size, 0, **options)


def new_ones(x: Tensor, size: Sequence[int], **options: Any) -> Tensor:
    """Ones of the type of ``x``, where it is."""
    return new_full(x, size, 1, **options)


def fill(x: Tensor, value: float) -> Tensor:
    """``x`` overwritten by ``value``."""
    return full_like(x, value)


def fill_by_tensor(x: Tensor, value: Tensor) -> Tensor:
    """``x`` overwritten by the only element of ``value``."""
    return value.to(x.dtype).expand(x.shape).clone()


def zero_tensor(
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Tensor:
    """Zeros that autograd keeps without memory."""
    return torch.full(list(size), 0, dtype=dtype or torch.get_default_dtype(), device=device)


def eye(
    rows: int,
    columns: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Tensor:
    """One where the row is the column, zero elsewhere."""
    if pin_memory or layout not in (None, torch.strided):
        raise Refusal("memory that is pinned or not strided")
    across = torch.arange(rows if columns is None else columns, device=device)
    return (torch.arange(rows, device=device)[:, None] == across).to(dtype or torch.get_default_dtype())
