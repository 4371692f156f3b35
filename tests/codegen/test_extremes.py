"""A value that is looked for by its maximum is computed once in a kernel: its last bit tells where it lies."""
from __future__ import annotations

import pytest
import torch
from rooffuse.codegen.errors import NotLowerable
from torch import Tensor

from .kernels import lower

ROWS, MASKS = torch.randn(10, 1, 7), torch.rand(10, 8, 7) > 0.5


def test_a_value_and_its_maximum_leave_one_nest() -> None:
    def fn(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.softmax(-1)
        return y, y.amax(-1)

    assert len(lower(fn, ROWS).group.kernel.nests) == 1


@pytest.mark.parametrize("compared", [False, True])
def test_two_nests_do_not_compute_what_is_looked_for(compared: bool) -> None:
    """The masks' nest goes from element to element, and so computes the softmax's rows another way."""
    def fn(x: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        y = x.softmax(-1)
        largest = y.amax(-1, keepdim=True)
        return masks.all(1), x.norm(dim=1), x.masked_fill(masks, 0.1), (y == largest) if compared else y, largest

    with pytest.raises(NotLowerable, match="looked for"):
        lower(fn, ROWS, MASKS)


def test_several_nests_pass_on_what_there_is() -> None:
    def fn(x: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        y = x.float()
        return masks.all(1), x.norm(dim=1), x.masked_fill(masks, 0.1), y, y.amax(-1)

    assert len(lower(fn, ROWS.bfloat16(), MASKS).group.kernel.nests) == 2
