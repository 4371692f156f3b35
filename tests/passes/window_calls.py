"""Calls of poolings, depthwise convolutions and upsamplings by repetition, in all the forms that windows come in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from conftest import draw
from rooffuse.passes.max_pool_places import max_pool_places, max_pool_places_backward

aten = torch.ops.aten


def convolution_calls(dt: torch.dtype) -> Iterator[tuple[Any, ...]]:
    image, line, bias = draw(2, 6, 9, 8, dtype=dt), draw(2, 6, 20, dtype=dt), draw(6, dtype=dt)
    for w, b, stride, padding, dilation in (
        (draw(6, 1, 3, 3, dtype=dt), bias, [1, 1], [1, 1], [1, 1]),
        (draw(6, 1, 3, 2, dtype=dt), None, [2, 1], [1, 0], [2, 1]),
    ):
        yield aten.convolution.default, image, w, b, stride, padding, dilation, False, [0, 0], 6
    for x in (line, draw(2, 20, 6, dtype=dt).mT):  # places, then channels, as neighbours in memory
        yield aten.convolution.default, x, draw(6, 1, 4, dtype=dt), bias, [1], [3], [1], False, [0], 6


def window_calls(dt: torch.dtype) -> Iterator[tuple[Any, ...]]:
    image, volume = draw(2, 3, 12, 10, dtype=dt), draw(2, 3, 6, 8, 4, dtype=dt)
    image[0, 0, 3, 3], image[0, 1] = torch.nan, -torch.inf
    for x in (image, image.to(memory_format=torch.channels_last)):
        for window in (([2, 2],), ([3, 3], [2, 2], [1, 1]), ([3, 2], [1, 2], [1, 0], [1, 1], True), ([1, 1],)):
            yield aten.max_pool2d_with_indices.default, x, *window
        yield aten.max_pool2d_with_indices.default, x, [2, 2], [1, 1], [0, 0], [2, 2]
        yield aten.max_pool2d_with_indices.default, x, [4, 3], [2, 1], [2, 1], [2, 3]
        for window in (([2, 2],), ([3, 3], [2, 2], [1, 1], False, True), ([3, 3], [2, 2], [1, 1], False, False)):
            yield aten.avg_pool2d.default, x, *window
        yield aten.avg_pool2d.default, x, [3, 2], [1, 2], [1, 0], False, True, 5
        for counted in (True, False):  # the last windows reach beyond the padding
            yield aten.avg_pool2d.default, x, [3, 3], [2, 2], [1, 1], True, counted
            yield aten.avg_pool2d.default, x, [5, 4], [4, 3], [0, 0], True, counted
        for outputs in ([7, 4], [5, 10], [13, 3]):  # parts of different sizes, which overlap
            yield aten._adaptive_avg_pool2d.default, x, outputs
            yield aten.adaptive_max_pool2d.default, x, outputs
        for outputs in ([3, 5], [1, 1], [2, 1]):
            yield aten._adaptive_avg_pool2d.default, x, outputs
            yield aten._adaptive_avg_pool2d_backward.default, draw(2, 3, *outputs, dtype=dt), x
        for outputs in ([6, 5], [1, 1]):
            yield aten.adaptive_max_pool2d.default, x, outputs
        yield aten.upsample_nearest2d.default, x, [24, 30]
        yield aten.upsample_nearest2d.default, x, [17, 10]
        yield aten._upsample_nearest_exact2d.default, x, [17, 20]
        for op in (aten.upsample_nearest2d_backward, aten._upsample_nearest_exact2d_backward):
            yield op.default, draw(2, 3, 24, 30, dtype=dt), [24, 30], [2, 3, 12, 10]
    for window in (([2, 2], [2, 2], [0, 0]), ([3, 3], [2, 2], [1, 1]), ([3, 2], [1, 2], [1, 0])):
        values, places = aten.max_pool2d_with_indices.default(x := image.nan_to_num(), *window)
        grad = draw(*values.shape, dtype=dt)
        yield max_pool_places, x, *window, False
        yield max_pool_places_backward, grad, max_pool_places(x, *window, False)[1], list(x.shape), *window, False
        yield aten.max_pool2d_with_indices_backward.default, grad, x, *window, [1, 1], False, places
        for counted in (True, False):
            yield aten.avg_pool2d_backward.default, grad, x, *window, False, counted, None
            wide = draw(2, 3, 7, 6, dtype=dt)
            yield aten.avg_pool2d_backward.default, wide, x, [3, 3], [2, 2], [1, 1], True, counted, None
    yield aten.max_pool3d_with_indices.default, volume, [2, 2, 2]
    values, places = aten.max_pool3d_with_indices.default(volume, [3, 3, 3], [2, 2, 2], [1, 1, 1])
    arguments = ([3, 3, 3], [2, 2, 2], [1, 1, 1], [1, 1, 1], False, places)
    yield aten.max_pool3d_with_indices_backward.default, draw(*values.shape, dtype=dt), volume, *arguments
    if dt != torch.bfloat16:
        yield aten.avg_pool3d.default, volume, [2, 2, 2]
        yield aten.avg_pool3d_backward.default, values, volume, [3, 3, 3], [2, 2, 2], [1, 1, 1], False, True, None
    yield aten._adaptive_avg_pool3d.default, volume, [2, 2, 2]
    yield aten._adaptive_avg_pool3d.default, volume, [4, 3, 3]
    yield aten._adaptive_avg_pool3d_backward.default, draw(2, 3, 2, 2, 2, dtype=dt), volume
    yield aten.adaptive_max_pool3d.default, volume, [3, 4, 2]
    line = image.nan_to_num()[0]
    for outputs in ([20], [13]):
        yield aten.upsample_nearest1d.default, line, outputs
        yield aten._upsample_nearest_exact1d.default, line, outputs
    for op in (aten.upsample_nearest1d_backward, aten._upsample_nearest_exact1d_backward):
        yield op.default, draw(3, 12, 20, dtype=dt), [20], [3, 12, 10]
    yield aten.upsample_nearest3d.default, volume, [12, 8, 8]
    yield aten._upsample_nearest_exact3d.default, volume, [9, 8, 8]
    for op in (aten.upsample_nearest3d_backward, aten._upsample_nearest_exact3d_backward):
        yield op.default, draw(2, 3, 12, 8, 8, dtype=dt), [12, 8, 8], [2, 3, 6, 8, 4]
