"""Complex tensors through the whole compiler: kernels for their parts, the library for what has no rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuser.graphs import planned

from .eager import same_as_eager


def rotary(x: Tensor, turns: Tensor) -> Tensor:
    """A rotary embedding by complex multiplication of neighbours."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[None, :, None]).flatten(3).to(x.dtype)


def _rotary_gradient(x: Tensor, turns: Tensor) -> Any:
    return torch.autograd.grad(rotary(x, turns).sin().sum(), x)


def _turned(x: Tensor, angle: Tensor) -> Any:
    turns = torch.polar(torch.ones_like(angle), angle)
    y = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turns[None, :, None]
    return torch.view_as_real(y), y.abs(), y.angle(), y.real + y.imag, (y.conj() * y).real, y.sum(1), y.mean()


def _filtered(x: Tensor, response: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x) * response, n=x.shape[-1])


def _arithmetic(a: Tensor, b: Tensor) -> Any:
    x, y = torch.complex(a, b), torch.complex(b, a.flip(0))
    return (x * y + 2.5 * x - y, 1j * x, -x, x + 1, 3 - y, x - a, a * y, (x / y), x.conj() + y, torch.cat([x, y])[::2],
            x.t().reshape(-1) * 2, (x * y).to(torch.complex128), x.exp(), x.isfinite(), torch.stack([x, x * y], 1),
            torch.cat([x * 2, a], 1) * 1j, torch.cat([b, x.conj()]))


def _picked(turns: Tensor, places: Tensor, x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns[places]).flatten(-2)


def _number_gradient(x: Tensor) -> Any:
    pairs = torch.view_as_real(torch.complex(x, x * 2).conj() * (0.5 + 2j))
    return pairs, torch.autograd.grad(pairs, x, torch.ones_like(pairs))[0]


def _written(state: Tensor, x: Tensor) -> Tensor:
    state.mul_(0.5).add_(x)
    return state.abs()


def _blended(x: Tensor, y: Tensor, z: Tensor) -> Any:
    return torch.addcmul(x, y, z), torch.lerp(x, y, 0.4), torch.lerp(x, y, z), torch.addcdiv(x, y, z, value=2)


def _saturated_gradient(x: Tensor) -> Any:
    return [torch.autograd.grad(f(x).abs().sum(), x, retain_graph=True)[0]
            for f in (torch.tanh, torch.sigmoid, F.tanhshrink)]


def _norm_gradients(x: Tensor) -> Any:
    norms = [torch.linalg.vector_norm(x, order, dim) for order in (1, 2, 3, float("inf"), -float("inf"))
             for dim in (None, 1)]
    return torch.linalg.vector_norm(x, 0), norms, [torch.autograd.grad(n.sum(), x, retain_graph=True)[0]
                                                        for n in norms]


def real(*shape: int) -> Tensor:
    return torch.randn(shape)


def imaginary(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64)


PROGRAMS: dict[str, Any] = {
    "rotary": (rotary, lambda: [real(2, 5, 3, 8), imaginary(5, 4)]),
    "rotary bfloat16": (rotary, lambda: [real(2, 5, 3, 8).bfloat16(), imaginary(5, 4)]),
    "rotary gradient": (_rotary_gradient, lambda: [real(2, 5, 3, 8).requires_grad_(), imaginary(5, 4)]),
    "a number's gradient": (_number_gradient, lambda: [real(5, 7).requires_grad_()]),
    "negated lazily": (lambda x: (x.imag * 2, x.imag[1:] + 1, x.imag.mT.sum(0)), lambda: [imaginary(5, 7).conj()]),
    "negated lazily by the caller": (lambda x: (x * 2, x[1:] + x[:-1], x.t().sum(0)),
                                     lambda: [imaginary(5, 7).conj().imag]),
    "written to, negated lazily": (lambda x: (x.add_(1), x[:2].mul_(2))[:0], lambda: [imaginary(5, 7).conj().imag]),
    "turned": (_turned, lambda: [real(2, 5, 3, 8), real(5, 4)]),
    "filtered": (_filtered, lambda: [real(3, 33), imaginary(17)]),
    "arithmetic": (_arithmetic, lambda: [real(6, 7), real(6, 7)]),
    "picked": (_picked, lambda: [imaginary(9, 4), torch.tensor([3, 8, 0]), real(3, 8)]),
    "written": (_written, lambda: [imaginary(5, 7), imaginary(5, 7)]),
    "transposed": (lambda x, y: (x.t() * y, (x * 2).t(), x), lambda: [imaginary(5, 7), imaginary(7, 5)]),
    "lazily conjugated": (lambda x, y: (x.conj() * y, x.conj()), lambda: [imaginary(5, 7), imaginary(5, 7)]),
    "product": (lambda x, y: (x * 2) @ y.mH, lambda: [imaginary(5, 7), imaginary(3, 7)]),
    "blended": (_blended, lambda: [imaginary(5, 7), imaginary(5, 7), imaginary(5, 7)]),
    "saturated": (_saturated_gradient, lambda: [imaginary(5, 7).requires_grad_()]),
    "norms": (_norm_gradients, lambda: [imaginary(5, 7).requires_grad_()]),
    "double": (lambda x, y: x * y + 1, lambda: [imaginary(5, 7).to(torch.complex128), real(7)]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_complex_programs_do_what_eager_does(name: str) -> None:
    fn, make = PROGRAMS[name]
    same_as_eager(fn, make)


def test_lengths_do_not_overflow() -> None:
    extremes = torch.tensor([3e38, 0.0, 1e-40, float("inf"), -float("inf"), float("nan"), 2.0, 1.0])
    same_as_eager(lambda a, b: (torch.complex(a, b) * 1).abs(),
                  lambda: [extremes.repeat(8), extremes.repeat_interleave(8)])


def test_a_rotary_embedding_is_one_kernel() -> None:
    x, turns = torch.empty(2, 128, 8, 64, dtype=torch.bfloat16), torch.empty(128, 32, dtype=torch.complex64)
    plan = planned(rotary, x, turns)
    assert sum(g.lowered is not None for g in plan.grouping.groups) == 1
