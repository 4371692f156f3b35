"""Shapes of tensors, real or imagined, with sizes that may be symbols."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .cost import Size


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's metadata, usable wherever a formula takes a tensor.

    ``shape`` and ``stride`` are in elements and may hold sympy expressions; ``stride=None`` means contiguous.
    """

    shape: tuple[Size, ...]
    dtype: torch.dtype
    stride: tuple[Size, ...] | None = None
    storage_offset: Size = 0

    def __post_init__(self) -> None:
        if self.stride is not None and len(self.stride) != len(self.shape):
            raise ValueError(
                f"TensorSpec: {len(self.shape)} sizes {self.shape} but {len(self.stride)} strides {self.stride}; "
                "give one stride per size, or None for a contiguous tensor"
            )

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes an element occupies."""
        return self.dtype.itemsize

    @property
    def numel(self) -> Size:
        """Elements addressed, expanded ones counted every time."""
        return math.prod(self.shape)

    @property
    def distinct(self) -> Size:
        """Elements stored behind the tensor: dimensions of stride 0 count once.

        Overlapping windows (``unfold``) are held to the span of storage that they cover.
        """
        if self.stride is None:
            return self.numel
        count = math.prod(size for size, step in zip(self.shape, self.stride) if step != 0)
        numbers = (*self.shape, *self.stride, count)
        if all(isinstance(number, int) for number in numbers) and count > 0:
            span = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride))
            return min(count, span)
        return count

    @property
    def nbytes(self) -> Size:
        """Bytes that must move to read or write every element once."""
        return self.distinct * self.itemsize


def size_of(value: Any) -> Size:
    """A size as ``int`` or sympy expression; a ``SymInt`` gives its expression and adds no guard."""
    if isinstance(value, int):
        return value
    if isinstance(value, torch.SymInt):
        expr = getattr(value.node, "expr", None)
        if expr is None:
            import sympy

            return sympy.Symbol(str(value), integer=True, nonnegative=True)
        return int(expr) if expr.is_Integer else expr
    return int(value) if getattr(value, "is_Integer", False) else value


def smaller(left: Size, right: Size) -> Size:
    """The minimum, symbolic where a side is."""
    if isinstance(left, int) and isinstance(right, int):
        return min(left, right)
    import sympy

    return sympy.Min(left, right)


def log2(value: Size) -> Size:
    """log2 of a size, rounded up, and at least 1."""
    if isinstance(value, int):
        return max(1, (value - 1).bit_length())
    import sympy

    return sympy.Max(1, sympy.ceiling(sympy.log(value, 2)))


def spec_of(tensor: Any) -> TensorSpec:
    """Read a tensor's metadata. Layouts without strides (sparse, nested) are taken as dense."""
    shape = tuple(size_of(size) for size in tensor.shape)
    if tensor.layout is not torch.strided:
        return TensorSpec(shape, tensor.dtype)
    stride = tuple(size_of(step) for step in tensor.stride())
    return TensorSpec(shape, tensor.dtype, stride, size_of(tensor.storage_offset()))


def normalise(value: Any, seen: dict[int, TensorSpec]) -> Any:
    """Replace tensors by specs and ``SymInt`` by expressions, through lists, tuples and dicts.

    ``seen`` maps ``id`` to spec, so one tensor passed twice stays one object.
    """
    if isinstance(value, TensorSpec):
        return seen.setdefault(id(value), value)
    if isinstance(value, torch.Tensor):
        if id(value) not in seen:
            seen[id(value)] = spec_of(value)
        return seen[id(value)]
    if isinstance(value, (list, tuple)):
        return tuple(normalise(item, seen) for item in value)
    if isinstance(value, dict):
        return {key: normalise(item, seen) for key, item in value.items()}
    if isinstance(value, torch.SymInt):
        return size_of(value)
    return value


def specs_in(value: Any) -> Iterator[TensorSpec]:
    """Every spec in a normalised value, in order."""
    if isinstance(value, TensorSpec):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from specs_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from specs_in(item)


def unique(specs: Iterator[TensorSpec]) -> list[TensorSpec]:
    """Each object once, in order of first appearance; equal but separate tensors stay separate."""
    found: dict[int, TensorSpec] = {}
    for spec in specs:
        found.setdefault(id(spec), spec)
    return list(found.values())
