"""Facts about FX nodes that lowering and grouping share: names, shapes, types, arguments with defaults."""
from __future__ import annotations

import functools
import operator
from math import prod
from typing import Any

import torch
from torch.fx import Node

from .errors import NotLowerable


def op_name(node: Node) -> str:
    """``"add"`` for ``aten.add.Tensor``, ``"getitem"`` for ``operator.getitem``; "" for what isn't an ATen call."""
    return _target_name(node.target) if node.op == "call_function" else ""


@functools.lru_cache(maxsize=4096)
def _target_name(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.OpOverload):
        namespace, name = target._schema.name.split("::")
        return name if namespace in ("aten", "prims", "rooffuse") else ""
    return ""


def overload(node: Node) -> str:
    """``"Tensor"`` for ``aten.add.Tensor``."""
    return node.target._overloadname if isinstance(node.target, torch._ops.OpOverload) else ""


def value_of(node: Node) -> Any:
    """The fake value that tracing recorded for ``node``."""
    return node.meta.get("val")


def shape_of(node: Node) -> tuple[int, ...]:
    """Static sizes of the tensor ``node``; raises NotLowerable if there is none or a size is symbolic."""
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        raise NotLowerable(f"{node.name} is no tensor")
    if not all(type(s) is int for s in value.shape):
        raise NotLowerable(f"{node.name} has symbolic sizes {tuple(value.shape)}")
    return tuple(value.shape)


def strides_of(node: Node) -> tuple[int, ...]:
    return tuple(value_of(node).stride())


def dtype_of(node: Node) -> torch.dtype:
    return value_of(node).dtype


def numel_of(node: Node) -> int:
    return prod(shape_of(node))


def span_of(node: Node) -> int:
    """Elements from the first to the last addressed one: what a pointer to the tensor may be indexed with."""
    shape, strides = shape_of(node), strides_of(node)
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides)) if prod(shape) else 0


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call given by position or by name, else ``default``."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def wrap_dim(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def reduced_dims(dims: Any, rank: int) -> tuple[int, ...]:
    """Normalised, sorted dimensions of a reduction; None or empty means all of them, and a scalar has none."""
    if rank == 0 or dims is None or (isinstance(dims, list | tuple) and not dims):
        return tuple(range(rank))
    if isinstance(dims, int):
        dims = [dims]
    return tuple(sorted({wrap_dim(d, rank) for d in dims}))
