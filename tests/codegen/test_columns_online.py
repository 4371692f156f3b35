"""Sums of exponentials down the columns of strips, beside those along the rows: one read of a matrix for both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.ir import Reduce
from rooffuse.codegen.triton_kernel import print_kernel
from rooffuse.passes import RowLimits, run_passes, split_softmax_pass
from rooffuse.passes.decompose import decompose
from rooffuse.passes.redundant import redundant
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from .kernels import CppUnit, Lowered, assert_same, lower, run_interpreter, run_triton
from .test_triton_build import resources

#: Rows of a strip, and strips.
SHARE, PARTS = 8, 5
ENDLESS = (math.inf, -math.inf)


def strips(x: Tensor) -> Tensor:
    return x.float().reshape(-1, SHARE, x.shape[-1])


def columns(x: Tensor, replaced: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Maxima of a strip's columns, and sums of exponentials relative to them, or to zero instead of ``replaced``."""
    parts = strips(x)
    top = base = parts.amax(1, keepdim=True)
    for value in replaced:
        base = torch.where(base == value, 0.0, base)
    return top, torch.exp(parts - base).sum(1, keepdim=True)


def both(x: Tensor) -> tuple[Tensor, ...]:
    return *columns(x, ENDLESS), strips(x).logsumexp(2)


def both_of_softmax(x: Tensor) -> tuple[Tensor, ...]:
    return *columns(x, ENDLESS[1:]), strips(x).softmax(2)


def sums_alone(x: Tensor) -> tuple[Tensor, ...]:
    return columns(x.float() * 3, ENDLESS)[1], strips(x.float() * 3).amax(2)


FORMS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "logarithms": both, "softmax": both_of_softmax, "sums_alone": sums_alone}
CASES = [pytest.param(n, w, d, id=f"{n}_{w}_{d}")
         for n in FORMS for w in (64, 37) for d in (torch.float32, torch.bfloat16)]


def matrix(width: int, dtype: torch.dtype) -> Tensor:
    """Columns with everything that isn't finite in them: alone, among others, at the beginning, for a whole strip."""
    torch.manual_seed(width)
    x = torch.randn(SHARE * PARTS, width) * 20 - 50
    for column, value in enumerate((math.inf, -math.inf, math.nan)):
        x[SHARE + 3, 3 * column] = value
        x[:3, 3 * column + 1] = value
        x[SHARE * 2:SHARE * 3, 3 * column + 2] = value
    x[SHARE + 1, 12], x[SHARE + 6, 12], x[5, 13], x[:SHARE, 14] = math.inf, -math.inf, 3e38, -1e30
    x[5:7, 15:17] = math.inf
    return x.to(dtype)


def lowered(name: str, x: Tensor) -> Lowered:
    kernel = lower(FORMS[name], x)
    reduces = [s for n in kernel.group.kernel.nests for s in n.body if isinstance(s, Reduce)]
    assert len(kernel.group.kernel.nests) == 1 and "expsum" in {s.op for s in reduces if s.strip}
    return kernel


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> CppUnit:
    kernels = {f"{n}_{w}_{d}": lowered(n, matrix(w, d)) for n, w, d in (c.values for c in CASES)}
    return CppUnit(kernels, DiskCache(tmp_path_factory.mktemp("kernels")))


@pytest.mark.parametrize(("name", "width", "dtype"), CASES)
def test_results_are_those_of_eager_execution(name: str, width: int, dtype: torch.dtype, unit: CppUnit, tmp_path: Path
                                              ) -> None:
    x = matrix(width, dtype)
    kernel, wanted = lowered(name, x), FORMS[name](x)
    assert_same(run_interpreter(kernel, [x]), wanted)
    assert_same(unit.run(f"{name}_{width}_{dtype}", kernel, [x]), wanted)
    assert_same(run_triton(kernel, [x], DiskCache(tmp_path)), wanted)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("columns", [1024, 4096])
def test_registers_hold_a_row_and_two_of_its_columns(capability: int, columns: int, tmp_path: Path) -> None:
    with FakeTensorMode():
        kernel = lower(both, torch.empty(128 * SHARE, columns, dtype=torch.bfloat16)).group.kernel
    used = resources(compile_for(print_kernel(kernel), DiskCache(tmp_path), capability).asm["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


def contrastive(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.log_softmax(1).diagonal().mean(), x.t().log_softmax(1).diagonal().mean()


@pytest.mark.parametrize("fn", [lambda x: (x.logsumexp(0), x.logsumexp(1)), contrastive,
                                lambda x: x.softmax(0) + x.softmax(1)], ids=["logarithms", "contrastive", "softmax"])
def test_the_pass_cuts_columns_of_what_has_rows(fn: Callable[..., Any]) -> None:
    """Also where the columns are rows of the transposed matrix: parts lie beside each other as the matrix does."""
    x = torch.randn(2048, 256) * 20
    x[:100, 3], x[:, 7], x[100, 5] = -math.inf, -math.inf, math.inf
    x = x if fn is not contrastive else x[:256].clamp(-99, 99)
    gm = redundant(decompose(make_fx(fn, tracing_mode="fake")(x)))
    cut = run_passes(gm, [split_softmax_pass(RowLimits(64))])
    names = [str(n.target) for n in cut.graph.nodes]
    assert names.count("aten.amax.default") == 3
    parts = next(n for n in cut.graph.nodes if n.target is torch.ops.aten.reshape.default)
    assert parts.meta["val"].is_contiguous() and parts.meta["val"].shape[-1] == 256
    for ours, exact in zip(*(y if isinstance(y, tuple) else (y,) for y in (cut(x), fn(x.double())))):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5, equal_nan=True)
