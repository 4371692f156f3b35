"""Max poolings keep places in windows for their gradients where nobody else wants positions in the input."""

from __future__ import annotations

import pytest
import torch
from conftest import targets, trace
from rooffuse.passes import run_passes
from rooffuse.passes.pipeline import PIPELINE
from torch.nn import functional as F

aten = torch.ops.aten
POOLED = [p for p in PIPELINE if p.name == "pooled_places"]
WINDOWS = [((2, 2), (2, 2), (0, 0), False), ((3, 3), (2, 2), (1, 1), False), ((3, 3), (1, 1), (1, 1), False),
           ((3, 2), (1, 2), (1, 0), True), ((2, 2), (3, 3), (0, 0), False), ((5, 5), (2, 2), (2, 2), True)]


def _with_gradient(pool):
    def function(x, weight):
        values, pullback = torch.func.vjp(pool, x)
        return values, *pullback(values * weight)

    return function


def _image(*sizes: int, dtype=torch.float32) -> torch.Tensor:
    x = torch.randn(*sizes).to(dtype)
    x[0, 0] = -torch.inf  # then the first place inside of the input wins
    x[-1, -1, 1] = 2.0  # several winners: the first is taken
    x[-1, 0, 0, 0] = torch.nan
    return x


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_values_and_gradients_are_the_same(window, layout, dtype) -> None:
    kernel, stride, padding, ceil_mode = window
    x = _image(2, 3, 11, 14, dtype=dtype).to(memory_format=layout)
    function = _with_gradient(lambda x: F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode))
    weight = torch.randn(function(x, 1.0)[0].shape).to(dtype)
    gm = run_passes(trace(function, x, weight), POOLED)
    assert "rooffuse.max_pool_places_backward.default" in targets(gm)
    assert not any("with_indices" in name for name in targets(gm))
    for ours, theirs in zip(gm(x, weight), function(x, weight), strict=True):
        # Halves are added up in float32 here, and in their own type by the library.
        tolerance = {"atol": 0.1, "rtol": 0.02} if dtype == torch.bfloat16 else {"atol": 1e-12, "rtol": 1e-12}
        torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)
        assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_rectifier_before_asks_the_windows_values(window) -> None:
    kernel, stride, padding, ceil_mode = window
    x = _image(2, 3, 11, 14, dtype=torch.float64)
    function = _with_gradient(lambda x: F.max_pool2d(F.relu(x), kernel, stride, padding, 1, ceil_mode))
    weight = torch.randn(function(x, 1.0)[0].shape, dtype=torch.float64)
    gm = run_passes(trace(function, x, weight), POOLED)
    (mask,) = gm.graph.find_nodes(op="call_function", target=aten.threshold_backward.default)
    assert mask.meta["val"].shape == weight.shape
    for ours, theirs in zip(gm(x, weight), function(x, weight), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_a_rectifier_of_something_else_stays_where_it_is() -> None:
    x = torch.randn(2, 3, 8, 8)

    def function(x, weight):
        values, pullback = torch.func.vjp(lambda x: F.max_pool2d(x, 2), x)
        return values, aten.threshold_backward(pullback(values * weight)[0], x.sin(), 0)

    gm = run_passes(trace(function, x, torch.tensor(2.0)), POOLED)
    (mask,) = gm.graph.find_nodes(op="call_function", target=aten.threshold_backward.default)
    assert mask.meta["val"].shape == x.shape
    torch.testing.assert_close(gm(x, torch.tensor(2.0))[1], function(x, 2.0)[1])


def test_volumes() -> None:
    x = torch.randn(2, 3, 6, 7, 5, dtype=torch.float64)
    function = _with_gradient(lambda x: F.max_pool3d(x, 3, 2, 1))
    gm = run_passes(trace(function, x, torch.tensor(2.0)), POOLED)
    assert "rooffuse.max_pool_places.default" in targets(gm)
    for ours, theirs in zip(gm(x, torch.tensor(2.0)), function(x, 2.0), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(x, 2),  # no gradient
        lambda x: F.max_pool2d(x, 2, return_indices=True),
        _with_gradient(lambda x: F.max_pool2d(x, 2, 2, 0, 2)),  # windows with gaps
        _with_gradient(lambda x: F.max_pool2d(x, 7, 2)),  # more places than are unrolled
        _with_gradient(lambda x: sum(F.max_pool2d(x, 2, return_indices=True))),  # positions count
    ],
)
def test_what_stays(function) -> None:
    x = torch.randn(1, 2, 12, 12)
    before = trace(function, x, *[torch.tensor(1.0)] * (function.__code__.co_argcount - 1))
    assert targets(run_passes(before, POOLED)) == targets(before)
