"""Images at other sizes, with other edges and at other places, by what each result reads.

Elements looked up at computed positions cost a GPU nothing beside the reading. On a CPU, where places are neighbours in
memory, looking up one after the other is the library's to do; but by a small whole scale each element becomes a few,
and each of those is a mean, with weights of its own, of the elements around it: shifted views, which kernels read as
they read any. So do gradients, on any device: an element gathers from the results that it has a part in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rooffuse.passes.decompose import expand
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.rule_base import Refusal, Rule, accumulate, memory_order
from rooffuse.passes.windows import whole_scales
from torch import Tensor
from torch._decomp import get_decompositions
from torch.fx import GraphModule, Node

aten = torch.ops.aten

#: Most results of an element along a dimension that are written out.
MOST_RESULTS = 4
#: Of cubic convolution, as in R. Keys, "Cubic convolution interpolation for digital image processing", 1981; the
#: framework takes −3/4 for his parameter.
_CUBIC = -0.75


def _linear(t: float) -> dict[int, float]:
    """Weights of the elements around a place that is ``t`` beyond one of them."""
    return {0: 1 - t, 1: t}


def _cubic(t: float) -> dict[int, float]:
    def near(d: float) -> float:
        return ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1

    def far(d: float) -> float:
        return ((d - 5) * d + 8) * d * _CUBIC - 4 * _CUBIC

    return {-1: far(1 + t), 0: near(t), 1: near(1 - t), 2: far(2 - t)}


_WEIGHTS = {
    aten.upsample_linear1d.default: _linear,
    aten.upsample_bilinear2d.default: _linear,
    aten.upsample_trilinear3d.default: _linear,
    aten.upsample_bicubic2d.default: _cubic,
}
_GRADIENTS = {
    aten.upsample_linear1d_backward.default: _linear,
    aten.upsample_bilinear2d_backward.default: _linear,
    aten.upsample_trilinear3d_backward.default: _linear,
    aten.upsample_bicubic2d_backward.default: _cubic,
}
_SAMPLING = aten.grid_sampler_2d.default
_REPEATED = frozenset(getattr(aten, f"replication_pad{rank}d").default for rank in (1, 2, 3))
_MIRRORED = frozenset(getattr(aten, f"reflection_pad{rank}d").default for rank in (1, 2, 3))
#: What the framework defines these operators as: sums of elements at computed positions.
_BY_POSITION: dict[Any, Rule] = get_decompositions([*_WEIGHTS, _SAMPLING, *_REPEATED, *_MIRRORED])
#: Of `_SAMPLING`'s modes that with 16 elements for each result, all at positions of their own.
_CUBIC_MODE = 2


def interpolations_pass(looks_up: bool) -> Pass:
    """The pass for a device; ``looks_up`` says that it reads elements at computed positions as fast as neighbours."""
    return Pass("interpolations", functools.partial(interpolations, looks_up=looks_up), interpolations.__doc__ or "")


def interpolations(gm: GraphModule, looks_up: bool) -> GraphModule:
    """Write out upsamplings by whole scales, their gradients, paddings by what is inside, and where elements are looked
    up fast, other upsamplings and samplings.

    Requires: ``meta["val"]`` fake tensors. Ensures: equal sizes, dtype and strides of every value.
    """

    def rule_of(node: Node) -> Rule | None:
        if node.target in _WEIGHTS:
            return functools.partial(upsampled, node.target, looks_up)
        if node.target in _GRADIENTS:
            return functools.partial(upsampled_backward, node.target)
        if node.target in _REPEATED | _MIRRORED:
            return functools.partial(padded, node.target, looks_up)
        return functools.partial(sampled, looks_up) if node.target is _SAMPLING else None

    return expand(gm, rule_of)


def upsampled(op: Any, looks_up: bool, x: Tensor, outputs: Sequence[int], align: bool, *scales: float | None) -> Tensor:
    """``x [N, C, *spatial]`` at the sizes ``outputs``, by linear or cubic interpolation as ``op`` says."""
    if looks_up:
        return _BY_POSITION[op](x, outputs, align, *scales)
    try:
        tiles = _tiles(x.shape, outputs, align, scales)
    except Refusal:
        if memory_order(x)[0][-1] != 1:
            raise
        return _BY_POSITION[op](x, outputs, align, *scales)
    result = accumulate(x)
    for dim, tile in enumerate(tiles, 2):
        if tile > 1:
            result = _enlarged(result, dim, tile, _WEIGHTS[op])
    return result


def upsampled_backward(
    op: Any, grad: Tensor, outputs: Sequence[int], inputs: Sequence[int], align: bool, *scales: float | None
) -> Tensor:
    """The gradient of `upsampled`: each element gathers from the results that it has a part in."""
    result = accumulate(grad)
    for dim, tile in enumerate(_tiles(inputs, outputs, align, scales), 2):
        if tile > 1:
            result = _gathered(result, dim, tile, _GRADIENTS[op])
    return result


def _tiles(inputs: Sequence[int], outputs: Sequence[int], align: bool, scales: Sequence[float | None]) -> list[int]:
    """How many results an element has along each dimension; raises Refusal unless they are few."""
    if align:
        raise Refusal("elements at the corners stay there")
    tiles = whole_scales(inputs, outputs, scales)
    if max(tiles) > MOST_RESULTS or any(n < 2 for n in inputs[2:]):
        raise Refusal("many results of an element, or a single element")
    return tiles


def _around(tile: int, weights: Callable[[float], dict[int, float]]) -> list[dict[int, float]]:
    """For each of the ``tile`` results of an element how many elements further on those are that it is a mean of, and
    their weights. Results are at the middles of as many equal parts of the element."""
    results = []
    for k in range(tile):
        place = (k + 0.5) / tile - 0.5
        first = math.floor(place)
        results.append({first + step: w for step, w in weights(place - first).items() if w})
    return results


def _enlarged(x: Tensor, dim: int, tile: int, weights: Callable[[float], dict[int, float]]) -> Tensor:
    results = [functools.reduce(torch.add, [_shifted(x, dim, steps) * w for steps, w in terms.items()])
               for terms in _around(tile, weights)]
    return torch.stack(results, dim + 1).flatten(dim, dim + 1)


def _gathered(grad: Tensor, dim: int, tile: int, weights: Callable[[float], dict[int, float]]) -> Tensor:
    parts = grad.unflatten(dim, (-1, tile))
    by_steps: dict[int, list[Tensor]] = {}
    for k, terms in enumerate(_around(tile, weights)):
        for steps, w in terms.items():
            by_steps.setdefault(steps, []).append(parts.select(dim + 1, k) * w)
    shifted = [_shifted_back(functools.reduce(torch.add, terms), dim, steps) for steps, terms in by_steps.items()]
    return functools.reduce(torch.add, shifted)


def _shifted(x: Tensor, dim: int, steps: int) -> Tensor:
    """For each element the one ``steps`` further on, or the outermost."""
    if steps == 0:
        return x
    n, far = x.shape[dim], min(abs(steps), x.shape[dim])
    edge = x.narrow(dim, n - 1 if steps > 0 else 0, 1)
    repeated = edge.expand([far if d == dim else -1 for d in range(x.dim())])
    if steps > 0:
        return torch.cat([x.narrow(dim, far, n - far), repeated], dim)
    return torch.cat([repeated, x.narrow(dim, 0, n - far)], dim)


def _shifted_back(x: Tensor, dim: int, steps: int) -> Tensor:
    """The gradient of `_shifted`: of those that went to the outermost element, their sum."""
    n, far = x.shape[dim], min(abs(steps), x.shape[dim])
    if far == 0:
        return x
    after = [0, 0] * (x.dim() - 1 - dim)
    inner, edge = (0, n - far) if steps > 0 else (far, 0)
    total = torch.constant_pad_nd(x.narrow(dim, inner, n - far), [*after, *((far, 0) if steps > 0 else (0, far))])
    for k in range(far):
        total = total + torch.constant_pad_nd(
            x.narrow(dim, edge + k, 1), [*after, *((n - 1, 0) if steps > 0 else (0, n - 1))])
    return total


def padded(op: Any, looks_up: bool, x: Tensor, pads: Sequence[int]) -> Tensor:
    """``x`` with its edge repeated, or what is before it mirrored, around the last dimensions."""
    if looks_up or memory_order(x)[0][-1] != x.dim() - 1 or not all(type(n) is int and n >= 0 for n in pads) or any(
            type(n) is not int for n in x.shape):
        return _BY_POSITION[op](x, pads)
    last = x.dim() - 1
    for dim in range(last, last - len(pads) // 2, -1):
        n, (before, after) = x.shape[dim], pads[2 * (last - dim) : 2 * (last - dim) + 2]
        if dim < last:  # looked up once a row, not element by element
            place = torch.arange(-before, n + after, device=x.device)
            place = torch.clamp(place, 0, n - 1) if op in _REPEATED else n - 1 - (n - 1 - place.abs()).abs()
            x = aten._unsafe_index(x, [None] * dim + [place])
        elif op in _REPEATED:
            rows = x.shape[:-1]
            x = torch.cat([x[..., :1].expand(*rows, before), x, x[..., n - 1 :].expand(*rows, after)], -1)
        else:
            x = torch.cat([x[..., 1 : before + 1].flip(-1), x, x[..., n - 1 - after : n - 1].flip(-1)], -1)
    return x


def sampled(
    looks_up: bool, x: Tensor, grid: Tensor, mode: int = 0, padding: int = 0, align: bool = False
) -> Tensor:
    """``x [N, C, H, W]`` at the places ``grid [N, h, w, 2]``, from −1 to 1."""
    if not looks_up or mode == _CUBIC_MODE:
        raise Refusal("elements looked up one after the other, or 16 for each result")
    return _BY_POSITION[_SAMPLING](x, grid, mode, padding, align)
