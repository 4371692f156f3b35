"""Poolings with windows of many places: the same numbers as the library's, and which are left to it."""

from __future__ import annotations

import pytest
import torch
from conftest import draw, single_call, targets
from rooffuse.passes import large_windows_pass, run_passes, verify
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
SIDE_BY_SIDE = [([7, 5],), ([6, 6], [6, 6]), ([1, 30], [1, 30]), ([9, 4], [9, 4], [0, 0], True)]
OVERLAPPING = [([7, 7], [1, 1], [3, 3]), ([7, 5], [3, 2]), ([9, 4], [5, 3], [2, 1], True),
               ([7, 7], [1, 1], [3, 3], False, False), ([7, 6], [2, 2], [1, 1], False, True, 3)]


def image(dtype: torch.dtype, channels_last: bool = False) -> torch.Tensor:
    x = draw(2, 3, 36, 30, dtype=dtype)
    x[0, 0, 3, 3] = torch.nan
    return x.to(memory_format=torch.channels_last) if channels_last else x


def assert_pooled(ours: torch.Tensor, wanted: torch.Tensor, exact: torch.Tensor) -> None:
    assert (ours.dtype, ours.shape, ours.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    step = torch.finfo(ours.dtype).eps  # both add up some forty elements in their own order, in float32 or wider
    torch.testing.assert_close(ours.double(), exact, rtol=8 * step, atol=8 * step, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("window", SIDE_BY_SIDE + OVERLAPPING, ids=str)
def test_averages(window, dtype, channels_last):
    x = image(dtype, channels_last)
    gm = run_passes(single_call(aten.avg_pool2d.default, x, *window), [large_windows_pass(True)])
    verify(gm)
    assert "avg_pool2d" not in str(targets(gm))
    exact = aten.avg_pool2d.default(x.double(), *window)
    assert_pooled(gm(x), aten.avg_pool2d.default(x, *window), exact)


@pytest.mark.parametrize("window", OVERLAPPING, ids=str)
def test_where_neighbours_sums_are_no_gain_overlapping_windows_are_the_librarys(window):
    gm = run_passes(single_call(aten.avg_pool2d.default, image(torch.float32), *window), [large_windows_pass(False)])
    assert "avg_pool2d" in str(targets(gm))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("window", SIDE_BY_SIDE, ids=str)
def test_largest_elements_whose_places_nobody_asks_for(window, channels_last):
    x = image(torch.float32, channels_last)

    def values(x):
        return aten.max_pool2d_with_indices.default(x, *window)[0]

    with torch.no_grad():
        gm = run_passes(make_fx(values, tracing_mode="fake")(x), [large_windows_pass(True)])
    assert "max_pool2d_with_indices" not in str(targets(gm))
    assert_pooled(gm(x), values(x), values(x.double()))


@pytest.mark.parametrize("window, kept", [(([7, 5],), True), (([7, 5], [3, 2]), True), (([3, 3],), False)], ids=str)
def test_places_overlaps_and_small_windows_stay_calls(window, kept):
    """The last are unrolled later."""
    fn = (lambda x: aten.max_pool2d_with_indices.default(x, *window)) if kept else (
        lambda x: aten.max_pool2d_with_indices.default(x, *window)[0])
    gm = run_passes(make_fx(fn, tracing_mode="fake")(image(torch.float32)), [large_windows_pass(True)])
    assert "max_pool2d_with_indices" in str(targets(gm))


def test_volumes_and_lines():
    x = draw(2, 3, 12, 10, 16, dtype=torch.float32)
    gm = run_passes(single_call(aten.avg_pool3d.default, x, [5, 3, 4], [2, 2, 3]), [large_windows_pass(True)])
    assert "avg_pool3d" not in str(targets(gm))
    assert_pooled(gm(x), aten.avg_pool3d.default(x, [5, 3, 4], [2, 2, 3]),
                  aten.avg_pool3d.default(x.double(), [5, 3, 4], [2, 2, 3]))
