"""Kernels that share nothing in one launch: which are put together, and which would keep memory for longer."""
from __future__ import annotations

import torch
from rooffuse.program import CallStep, KernelStep
from torch import Tensor

from .graphs import planned


def launches(fn, *args: Tensor) -> int:
    plan = planned(fn, *args)
    return len([s for s in plan.program.steps if isinstance(s, KernelStep | CallStep)])


def clipped_step(params: list[Tensor], grads: list[Tensor]) -> Tensor:
    """A step of gradients that are together no longer than one."""
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    for p, g in zip(params, grads):
        p.sub_(g / norm.clamp(min=1))
    return norm


def test_norms_of_large_gradients_are_one_launch() -> None:
    """Parts of all norms, the norm of all, and all updates: as many launches for four gradients of different sizes as
    for one."""
    shapes = [(2048, 1024), (1024, 1024), (3000, 700), (2048, 2048)]

    def fn(*tensors: Tensor) -> Tensor:
        return clipped_step(list(tensors[:len(shapes)]), list(tensors[len(shapes):]))

    assert launches(fn, *[torch.empty(s) for s in shapes * 2]) == 3


def test_large_results_are_not_computed_earlier_than_they_need_to_be() -> None:
    """Each of the two squares is used by a product of its own; in one launch both would be kept."""
    def fn(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return (x.square() @ w).sum() + (y.square() @ w).sum()

    x, w = torch.empty(8192, 4096), torch.empty(4096, 16)
    plan = planned(fn, x, x, w)
    kernels = [s for s in plan.program.steps if isinstance(s, KernelStep)]
    assert not any({"square", "square_1"} <= {n.name for n in k.group.nodes} for k in kernels)


def test_results_wait_for_each_other_and_for_nothing_large() -> None:
    """Results that nobody reads are made last and together, but not what only a large intermediate is left of."""
    def fn(x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        wide = x.square() @ w
        return wide.exp(), z + 1, wide @ w, y * 2

    x, y, z, w = (torch.empty(sizes) for sizes in ((4096, 4096), (3000, 1000), (2000, 5000), (4096, 4096)))
    steps = planned(fn, x, y, z, w).program.steps
    kernels = [{n.name for n in s.group.nodes} for s in steps if isinstance(s, KernelStep)]
    assert kernels[-1] == {"add", "mul"} and {"exp"} in kernels and len(kernels) == 3


def test_rows_of_different_lengths_stay_apart() -> None:
    """They would want different numbers of threads."""
    def fn(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        return x.softmax(-1), y.softmax(-1), z.softmax(-1)

    x, y = torch.empty(4096, 4096), torch.empty(65536, 128)
    assert launches(fn, x, y, x) == 2


def test_rows_written_by_position_are_stored_where_they_are_computed() -> None:
    """Numbers and scales of new rows go to their places of two caches in the kernel that computes them: a cache has
    many times as many elements, none of which is computed."""
    def fn(k: Tensor, cache: Tensor, scales: Tensor, places: Tensor) -> None:
        scale = k.abs().amax(-1, keepdim=True) / 127
        cache.index_copy_(2, places, (k / scale).round().to(torch.int8))
        scales.index_copy_(2, places, scale)

    args = (torch.empty(8, 8, 16, 128), torch.empty(8, 8, 4096, 128, dtype=torch.int8), torch.empty(8, 8, 4096, 1),
            torch.empty(16, dtype=torch.int64))
    assert launches(fn, *args) == 1
