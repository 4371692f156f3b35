"""Rounding to bfloat16 without a look at NaN, where their lower halves are zero: every pattern through every operation.

All patterns meet a number of others, so that every NaN is an operand on either side. That each operation leaves lower
halves that are zero is what makes any sequence of them right.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_unit import print_function
from torch import Tensor

from .kernels import CppUnit, assert_same, lower

PATTERNS = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
#: NaNs quiet and signalling of both signs, with few and with all bits, and what makes NaNs of others.
OTHERS = torch.tensor([0x7F81, 0x7FC0, 0x7FFF, 0xFF81 - 2**16, 0xFFFF - 2**16, 0x7F80, 0xFF80 - 2**16, 0, 0x3F80],
                      dtype=torch.int16).view(torch.bfloat16)

ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "copy": lambda x: x + 0, "neg": lambda x: -x, "abs": torch.abs, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt,
    "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc, "round": torch.round, "exp": torch.exp,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "erf": torch.erf, "relu": torch.relu,
    "scale": lambda x: x * 1.7 + 0.3,
    "double": lambda x: (x.double() * 3).float(), "total": lambda x: (x / 3).expand(70, -1).sum(0),
}
TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "maximum": torch.maximum,
    "minimum": torch.minimum, "where": lambda x, y: torch.where(x > y, x, y), "copysign": torch.copysign,
    "addcmul": lambda x, y: torch.addcmul(x, x, y), "inner": lambda x, y: (x * y).sum(-1),
    "softmax": lambda x, y: torch.softmax(x * y, -1), "largest": lambda x, y: (x - y).amax(-1),
}


def float_and_rounded(fn: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(*args: Tensor) -> tuple[Tensor, Tensor]:
        value = fn(*[a.float() for a in args])
        return value, value.bfloat16()

    return both


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, tuple[list[Tensor], tuple[Tensor, Tensor], str]]:
    x = PATTERNS.unsqueeze(1).expand(-1, len(OTHERS)).contiguous()
    y = OTHERS.expand_as(x).contiguous()
    inputs = {**dict.fromkeys(ONE, (PATTERNS,)), **dict.fromkeys(TWO, (x, y))}
    functions = {n: float_and_rounded(fn) for n, fn in {**ONE, **TWO}.items()}
    lowered = {n: lower(fn, *inputs[n]) for n, fn in functions.items()}
    unit = CppUnit(lowered, DiskCache(tmp_path_factory.mktemp("kernels")))
    return {n: (unit.run(n, k, inputs[n]), functions[n](*inputs[n]), print_function(k.group.kernel, "kernel"))
            for n, k in lowered.items()}


@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_every_pattern(results: dict[str, tuple[list[Tensor], tuple[Tensor, Tensor], str]], name: str) -> None:
    (whole, rounded), eager, source = results[name]
    assert "rf_to_bf16_unchecked(" in source and "rf_to_bf16(" not in source
    assert bool((whole.view(torch.int32)[whole.isnan()] & 0xFFFF == 0).all())
    assert torch.equal(rounded.isnan(), eager[0].isnan())
    assert torch.equal(rounded.nan_to_num(7.0), whole.bfloat16().nan_to_num(7.0))
    assert_same(rounded, eager[1])


@pytest.mark.parametrize("fn", [
    lambda x: (x.float().view(torch.int32) + 1).view(torch.float32).mul(2).bfloat16(),
    lambda x: torch.log(x), lambda x: (x.half() + x.half()).bfloat16().view(torch.int16)])
def test_other_nans_are_looked_at(fn: Callable[[Tensor], Tensor]) -> None:
    """Reinterpreted bits, results of the mathematical library, and bits that are themselves the result."""
    assert "unchecked" not in print_function(lower(fn, PATTERNS).group.kernel, "kernel")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_nans_of_wider_types_are_looked_at(dtype: torch.dtype) -> None:
    source = print_function(lower(lambda x: (x * 2).bfloat16(), PATTERNS.to(dtype)).group.kernel, "kernel")
    assert "rf_to_bf16(" in source and "unchecked" not in source
