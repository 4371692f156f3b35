"""Boxes, points and quaternions: rows of a few numbers whose columns are values of their own, computed once a row."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .graphs import floor_and_steps


def overlap_gradients(p: Tensor, t: Tensor) -> Tensor:
    """Of a generalised intersection over union, by corners."""
    def loss(p: Tensor) -> Tensor:
        area = (p[:, 2] - p[:, 0]) * (p[:, 3] - p[:, 1])
        wanted = (t[:, 2] - t[:, 0]) * (t[:, 3] - t[:, 1])
        inner = (torch.min(p[:, 2:], t[:, 2:]) - torch.max(p[:, :2], t[:, :2])).clamp(min=0)
        outer = (torch.max(p[:, 2:], t[:, 2:]) - torch.min(p[:, :2], t[:, :2])).clamp(min=0)
        both, around = inner[:, 0] * inner[:, 1], outer[:, 0] * outer[:, 1]
        union = area + wanted - both
        return (both / (union + 1e-3) - (around - union) / (around + 1e-3)).mean()

    return torch.func.grad(loss)(p)


def by_centres(p: Tensor, t: Tensor) -> Tensor:
    def corners(x: Tensor) -> Tensor:
        middle, size = x[:, :2], x[:, 2:].exp()
        return torch.cat([middle - size / 2, middle + size / 2], -1)

    def loss(p: Tensor) -> Tensor:
        a, b = corners(p), corners(t)
        inner = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0)
        outer = torch.max(a[:, 2:], b[:, 2:]) - torch.min(a[:, :2], b[:, :2])
        return (inner[:, 0] * inner[:, 1] / (outer[:, 0] * outer[:, 1])).sum() + (p - t).abs().sum()

    return torch.func.grad(loss)(p)


def rotated(q: Tensor, v: Tensor) -> Tensor:
    """Points by quaternions that are normalised first."""
    q = F.normalize(q, dim=-1)
    t = 2 * torch.linalg.cross(q[:, 1:], v[:, :3])
    return v[:, :3] + q[:, :1] * t + torch.linalg.cross(q[:, 1:], t)


def rotations(d: Tensor, e: Tensor) -> Tensor:
    """Matrices from two directions each, made orthogonal."""
    a = F.normalize(d[:, :3], dim=-1)
    b = F.normalize(e[:, :3] - (a * e[:, :3]).sum(-1, keepdim=True) * a, dim=-1)
    return torch.stack((a, b, torch.linalg.cross(a, b)), -2)


CASES: list[tuple[Callable[..., Tensor], int, float]] = [
    (overlap_gradients, 4, 1.001), (by_centres, 4, 1.001), (rotated, 3, 1.001), (rotations, 9, 1.3)]


@pytest.mark.parametrize(("fn", "columns", "most"), CASES)
def test_they_are_one_kernel(fn: Callable[..., Tensor], columns: int, most: float) -> None:
    boxes = torch.empty(1 << 20, 4)
    moved, launches = floor_and_steps(fn, boxes, boxes, written=4 * columns << 20)
    assert moved < most and launches == 1


@pytest.mark.parametrize(("fn", "columns", "most"), CASES)
@pytest.mark.parametrize("rows", [1, 301])
def test_results_are_those_of_eager_execution(fn: Callable[..., Tensor], columns: int, most: float, rows: int) -> None:
    p, t = (torch.randn(rows, 4, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    found = torch.compile(fn, backend="rooffuse", dynamic=False, options={"strict": True})(p, t)
    torch.testing.assert_close(found, fn(p.double(), t.double()).float(), rtol=1e-4, atol=1e-4)
