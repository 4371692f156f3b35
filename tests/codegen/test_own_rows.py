"""Results that are computed from other elements of a reduced row than their own share its kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rooffuse.backend
import torch
from rooffuse.codegen.cache import DiskCache
from rooffuse.compile import kernel_steps
from rooffuse.cost_model import get_device
from rooffuse.program import CallStep
from rooffuse.targets import Target
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.fuser.graphs import planned
from tests.models.eager import STRICT, tensors

from .kernels import lower, run_interpreter, run_triton

HOST = Target("cpp", get_device("cpu"), torch.device("cpu"))
INTERPRETED = Target("triton", get_device("h100"), torch.device("cpu"), interpreted=True)


def normed(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def pairs_by_matrices(x: Tensor, turns: Tensor) -> Tensor:
    """Neighbours of a normalised row times a matrix of two by two each, as image models rotate them."""
    pairs = normed(x).view(*x.shape[:-1], -1, 1, 2)
    return (turns[..., 0] * pairs[..., 0] + turns[..., 1] * pairs[..., 1]).flatten(-2)


def first_of_pairs(x: Tensor, turns: Tensor) -> Tensor:
    return normed(x).view(*x.shape[:-1], -1, 2)[..., :1].expand(*x.shape[:-1], -1, 2).flatten(-2)


def halves_of_heads(x: Tensor, turns: Tensor) -> Tensor:
    """A whole row is normalised, and each head of it rotated."""
    a, b = normed(x.flatten(1)).view(x.shape).chunk(2, -1)
    return torch.cat((a - b, b + a), -1)


def exchanged_halves(x: Tensor, turns: Tensor) -> Tensor:
    a, b = normed(x.flatten(1)).view(x.shape).chunk(2, -1)
    return torch.cat((b, a), -1)


def quarters(x: Tensor, turns: Tensor) -> Tensor:
    y = normed(x).view(*x.shape[:-1], -1, 2)
    return (y[..., 0] + y[..., 1]).square()


def nibbles(x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of 16 in four bits each, two to a byte."""
    groups = x.view(x.shape[0], -1, 16)
    scale = groups.abs().amax(-1, keepdim=True) / 7 + 1e-3
    q = ((groups / scale).round() + 8).to(torch.uint8).view(x.shape[0], -1)
    return q[:, ::2] | (q[:, 1::2] << 4), scale


def differences(x: Tensor, turns: Tensor) -> Tensor:
    """Of a few channels' means, along another dimension."""
    means = x.view(x.shape[0], 2, -1).mean(1)
    return means[:, 1:] - means[:, :-1]


def edges(x: Tensor, turns: Tensor) -> Tensor:
    """Around means of channels, whose border is mirrored: at places that are looked up."""
    grey = x.view(1, 2, -1, x.shape[-1]).mean(1, keepdim=True)
    wide = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="reflect")
    return wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1] + wide[..., 1:-1, 2:]


FUNCTIONS = [pairs_by_matrices, first_of_pairs, halves_of_heads, exchanged_halves, quarters, nibbles, differences,
             edges]


def made(fn: Callable[..., Any], rows: int, size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    heads = (3,) if fn in (halves_of_heads, exchanged_halves) else ()
    size = 16 * size if fn is nibbles else 2 * size
    rows = 2 * rows + 2 if fn is edges else rows
    return [torch.randn(rows, *heads, size, dtype=dtype), torch.randn(size // 2, 2, 2, dtype=dtype)]


@pytest.mark.parametrize(("rows", "size"), [(1, 8), (3, 10), (5, 67), (2, 1025)])
@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_kernels_agree_with_the_interpreter(fn: Callable[..., Any], rows: int, size: int, tmp_path: Path) -> None:
    inputs = made(fn, rows, size)
    lowered = lower(fn, *inputs)
    for programs in (1, 64):
        for ours, reference in zip(run_triton(lowered, inputs, DiskCache(tmp_path), programs),
                                   run_interpreter(lowered, inputs), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [HOST, INTERPRETED], ids=lambda t: t.language)
@pytest.mark.parametrize("size", [9, 64])
@pytest.mark.parametrize("fn", [f for f in FUNCTIONS if f is not nibbles], ids=lambda fn: fn.__name__)
def test_compiled_functions_agree_with_double(fn: Callable[..., Any], size: int, target: Target,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: target)
    torch._dynamo.reset()
    inputs = made(fn, 6, size)
    found = torch.compile(fn, backend="rooffuse", options=STRICT)(*inputs)
    for a, b in zip(tensors(found), tensors(fn(*[t.double() for t in inputs])), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [HOST, INTERPRETED], ids=lambda t: t.language)
def test_nibbles_are_those_of_eager(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: target)
    torch._dynamo.reset()
    x = torch.randint(-40, 41, (7, 16 * 9)).float()
    x[:, ::16] = 49.0  # steps of seven: nothing lies halfway between two codes
    inputs = [x, torch.empty(0)]
    found = torch.compile(nibbles, backend="rooffuse", options=STRICT)(*inputs)
    for a, b in zip(found, nibbles(*inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_they_take_one_launch(fn: Callable[..., Any]) -> None:
    with FakeTensorMode():
        inputs = made(fn, 4096, 512, torch.bfloat16)
    plan = planned(fn, *inputs)
    assert len(kernel_steps(plan.program)) == 1 and not any(isinstance(s, CallStep) for s in plan.program.steps)
