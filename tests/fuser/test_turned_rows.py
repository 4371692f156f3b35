"""On a CPU, rows that memory runs along and across are one kernel, with column sums and what is left of a block."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rooffuse.compile import cpp_source, kernel_steps
from torch import Tensor

from .graphs import planned


def over_channels(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a LayerNorm over channels, which are first in the input's memory and last in the output's."""
    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return (F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), w, b) * g).sum()

    return torch.func.grad(loss, argnums=(0, 1, 2))(x, w, b)


@pytest.mark.parametrize("shape", [(4, 96, 56, 56), (2, 320, 30, 31)])
def test_gradients_of_rows_read_both_ways_take_two_kernels(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    n, channels, high, wide = shape
    x, g = torch.randn(shape, generator=generator), torch.randn(n, high, wide, channels, generator=generator)
    w, b = torch.randn(channels, generator=generator), torch.randn(channels, generator=generator)
    program = planned(over_channels, x, w, b, g, device="cpu").program
    steps = kernel_steps(program)
    assert len(steps) == 2 and "rf_turn<" in cpp_source(steps)
    compiled = torch.compile(over_channels, backend="rooffuse", dynamic=False, options={"strict": True})
    reference = over_channels(*[a.double() for a in (x, w, b, g)])
    for ours, theirs in zip(compiled(x, w, b, g), reference):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-4)
