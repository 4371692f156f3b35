"""What an operator costs: floating-point operations and bytes that cross the memory bus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

if TYPE_CHECKING:
    import sympy

    Size: TypeAlias = int | sympy.Expr
else:
    Size: TypeAlias = Any

Unit: TypeAlias = Literal["tensor", "vector"]

KINDS = (
    "view",
    "pointwise",
    "reduction",
    "scan",
    "matmul",
    "attention",
    "convolution",
    "gather",
    "scatter",
    "sort",
    "random",
    "copy",
    "constant",
    "optimizer",
    "collective",
    "other",
)


def _evaluate(value: Size, sizes: Mapping[Any, Any]) -> Size:
    if isinstance(value, int):
        return value
    result = value.subs(dict(sizes))
    return int(result) if result.is_Integer else result


@dataclass(frozen=True)
class Cost:
    """FLOPs, bytes read and bytes written; each an ``int`` or a sympy expression in the sizes of the graph.

    Costs add up: ``Cost(2, 4, 4) + Cost(1, 4, 4) == Cost(3, 8, 8)``.
    """

    flops: Size = 0
    bytes_read: Size = 0
    bytes_written: Size = 0

    @staticmethod
    def zero() -> Cost:
        """The cost of doing nothing; the neutral element of ``+``."""
        return Cost(0, 0, 0)

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(
            self.flops + other.flops,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )

    @property
    def bytes(self) -> Size:
        """Bytes moved in both directions."""
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> Any:
        """Arithmetic intensity in FLOP/byte.

        With no bytes it is 0.0 when there is nothing to compute either, and infinity otherwise.
        Symbolic costs give a sympy expression.
        """
        moved = self.bytes
        if moved == 0:
            return 0.0 if self.flops == 0 else float("inf")
        return self.flops / moved

    @property
    def is_symbolic(self) -> bool:
        """True while a size is still a symbol."""
        return any(getattr(value, "free_symbols", None) for value in (self.flops, self.bytes_read, self.bytes_written))

    def subs(self, sizes: Mapping[Any, Any]) -> Cost:
        """Put numbers (or other expressions) in place of symbols: ``cost.subs({B: 8})``."""
        return Cost(*(_evaluate(value, sizes) for value in (self.flops, self.bytes_read, self.bytes_written)))


@dataclass(frozen=True)
class Price:
    """The cost of one operator call and what is needed to turn it into seconds.

    ``dtype`` and ``unit`` select the peak rate (see `Device.peak`). ``known`` is False when no formula exists for the
    operator: the bytes are then those of its tensors and the FLOPs are a lower bound of zero.
    """

    cost: Cost
    kind: str
    dtype: torch.dtype
    unit: Unit
    known: bool
