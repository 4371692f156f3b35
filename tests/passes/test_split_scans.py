"""Cumulative sums of few long rows in parts."""

from __future__ import annotations

import pytest
import torch
from conftest import targets, trace
from rooffuse.passes import RowLimits, run_passes, split_scans_pass

PROGRAMS = 264


def split(fn, *inputs):
    return run_passes(trace(fn, *inputs), [split_scans_pass(RowLimits(PROGRAMS))])


SPLIT = {
    "columns": (lambda x: x.cumsum(0), (4096, 24)),
    "columns of a batch": (lambda x: x.cumsum(1), (2, 4098, 5)),
    "rows between pointwise work": (lambda x: (x * 2).cumsum(-1) + 1, (2, 65536)),
    "a vector": (lambda x: x.cumsum(0) * 2, (65536,)),
    "truth": (lambda x: (x > 0).cumsum(0), (4096, 24)),
    "another type": (lambda x: x.cumsum(0, dtype=torch.float64), (4096, 24)),
    "a narrow type": (lambda x: (x > 0).cumsum(0, dtype=torch.int32), (4096, 24)),
    "bfloat16": (lambda x: x.bfloat16().cumsum(0), (4096, 24)),
    "transposed": (lambda x: x.t().cumsum(0), (24, 4096)),
}
WHOLE = {
    "many columns": (lambda x: x.cumsum(0), (4096, 4096)),
    "short columns": (lambda x: x.cumsum(0), (1024, 24)),
    "short rows": (lambda x: (x * 2).cumsum(1), (3, 16384)),
    "many rows": (lambda x: (x * 2).cumsum(1), (128, 65536)),
    "nothing around": (lambda x: x.cumsum(-1), (2, 65536)),
    "prime": (lambda x: x.cumsum(0), (4099, 24)),
    "products": (lambda x: x.cumprod(0), (4096, 24)),
}


@pytest.mark.parametrize("name", SPLIT)
def test_few_long_scans_are_split(name):
    fn, shape = SPLIT[name]
    torch.manual_seed(0)
    x = torch.randn(shape)
    gm = split(fn, x)
    assert sum("cumsum" in t for t in targets(gm)) == 2
    ours, eager, exact = gm(x), fn(x), fn(x.double())
    assert ours.dtype == eager.dtype and ours.stride() == eager.stride()
    if not eager.is_floating_point():
        assert torch.equal(ours, eager)
        return
    # Eager adds up in double on a CPU; between the parts sums are rounded to float32.
    rounding = 4 * torch.finfo(torch.promote_types(ours.dtype, torch.float32)).eps * exact.abs().max()
    ours_off, eager_off = ((t.double() - exact.double()).abs().max() for t in (ours, eager))
    assert ours_off <= eager_off + rounding


@pytest.mark.parametrize("name", WHOLE)
def test_others_stay_whole(name):
    fn, shape = WHOLE[name]
    x = torch.empty(shape, device="meta") if name.startswith("many") else torch.randn(shape)
    before = targets(trace(fn, x))
    assert targets(split(fn, x)) == before


def test_a_vector_of_another_shape_is_not_known():
    gm = split(lambda x: x.sum().cumsum(0), torch.randn(3))
    assert sum("cumsum" in t for t in targets(gm)) == 1
