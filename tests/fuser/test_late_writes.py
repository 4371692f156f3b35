"""What is computed again from memory that its kernel overwrites: the write goes to the kernel that computes it."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rooffuse.compile import kernel_steps
from torch import Tensor

from .graphs import floor_and_steps, planned


def cautious(p: Tensor, g: Tensor, m: Tensor) -> None:
    """A sign's step where it agrees with the gradient, larger by how many don't."""
    update = (m * .9 + g * .1).sign()
    mask = (update * g > 0).to(g.dtype)
    p.sub_(update * (mask * (mask.numel() / (mask.sum() + 1))), alpha=.01)
    m.mul_(.99).add_(g, alpha=.01)


def trusted(p: Tensor, g: Tensor, m: Tensor) -> Tensor:
    """A step as long as the parameters by its own length, of a moment that is returned as it was, too."""
    update = torch.tanh(m * .9 + g)
    p.sub_(update * (p.norm() / update.norm()), alpha=.01)
    before = m.sum()
    m.copy_(update)
    return before


def read_afterwards(p: Tensor, g: Tensor, m: Tensor) -> Tensor:
    """What is written is needed for the length of the step, and can't wait for it."""
    update = (m * .9 + g * .1).sign()
    m.mul_(.99).add_(g, alpha=.01)
    p.sub_(update * m.square().sum(), alpha=.01)
    return m.amax()


def of_rows(p: Tensor, g: Tensor, m: Tensor) -> Tensor:
    total = (m + g).sum(-1, keepdim=True)
    scaled = (m + g).exp() / total.sum()
    m.copy_(g)
    return scaled


@pytest.mark.parametrize("fn", [cautious, trusted, read_afterwards, of_rows])
@pytest.mark.parametrize("size", [(70, 33), (512, 512)])
def test_memory_has_what_eager_execution_leaves(fn: Callable, size: tuple[int, int]) -> None:
    inputs = [torch.randn(size, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    ours, exact = [t.clone() for t in inputs], [t.double() for t in inputs]
    found = torch.compile(fn, backend="rooffuse", dynamic=False, options={"strict": True})(*ours)
    expected = fn(*exact)
    if expected is not None:
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(ours, exact):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-4, atol=1e-4)


def test_moments_are_overwritten_where_they_are_read_last() -> None:
    sizes = [torch.empty(8192, 4096) for _ in range(3)]
    moved, launches = floor_and_steps(cautious, *sizes, written=2 * sizes[0].nbytes)
    assert moved < 1.401 and launches == 3
    last = kernel_steps(planned(cautious, *sizes).program)[-1]
    assert sum(n.name.startswith("copy_") for n in last.group.nodes) == 2
