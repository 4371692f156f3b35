"""What a decomposition rule may do, and how its results are made to match the operator's declared ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes

Rule = Callable[..., Any]


class Refusal(Exception):
    """A rule does not apply to these arguments; the operator stays whole. The message says why."""


def accumulate(x: Tensor) -> Tensor:
    """``x`` in the type that its reductions accumulate in: float32 for half types, otherwise its own."""
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def computed_alike(*operands: Tensor) -> list[Tensor]:
    """The operands of one operator in the type that it computes in."""
    dtype, _ = elementwise_dtypes(*operands, type_promotion_kind=ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT)
    return [x.to(dtype) for x in operands]


def memory_order(x: Tensor) -> tuple[list[int], list[int]]:
    """The permutation that lists the dimensions from the outermost in memory to the innermost, and its inverse."""
    order = sorted(range(x.dim()), key=lambda dim: (-x.stride(dim), dim))
    return order, [order.index(dim) for dim in range(x.dim())]


def conform(result: Tensor, expected: Tensor) -> Tensor:
    """``result`` with the dtype and strides of ``expected``, whose sizes it must have.

    Raises:
        Refusal: if sizes differ or the expected strides are not those of a dense permuted tensor.
    """
    if tuple(result.shape) != tuple(expected.shape):
        raise Refusal(f"sizes {tuple(result.shape)} differ from the declared {tuple(expected.shape)}")
    if result.dtype != expected.dtype:
        result = result.to(expected.dtype)
    wanted = expected.stride()
    sizes = expected.shape
    if all(size == 1 or a == b for size, a, b in zip(sizes, result.stride(), wanted)):
        return result
    order, inverse = memory_order(expected)
    dense = result.permute(order).clone(memory_format=torch.contiguous_format).permute(inverse)
    if any(size != 1 and a != b for size, a, b in zip(sizes, dense.stride(), wanted)):
        raise Refusal(f"declared strides {wanted} are not those of a dense tensor of sizes {tuple(sizes)}")
    return dense


def refuse_empty(x: Tensor) -> None:
    """Raise ``Refusal`` for a tensor without elements, which has no maximum and no mean."""
    if any(isinstance(size, int) and size == 0 for size in x.shape):
        raise Refusal("a tensor without elements")


def element_count(x: Tensor, dims: Sequence[int]) -> Any:
    """The number of elements along ``dims``, an integer or a symbol."""
    count = 1
    for dim in dims:
        count = count * x.shape[dim]
    return count
