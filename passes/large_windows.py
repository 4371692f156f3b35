"""Poolings whose windows are too large to be unrolled: by rows where windows lie side by side, else, for averages on a
CPU, along one dimension after the other.

Windows that cover each element once are short rows, reduced like others. Those that overlap share most of what they
read: the sum of ``k · k`` places is that of ``k`` sums of ``k`` places, which neighbouring windows have in common. A
GPU's kernel would compute these again for each, or take two launches where the library's call takes one.
"""

from __future__ import annotations

import functools
from math import prod
from typing import Any

import torch
from rooffuse.passes.decompose import expand
from rooffuse.passes.graph import aten
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.rule_base import Refusal, Rule, accumulate
from rooffuse.passes.windows import MAX_PLACES, Windows, at_places, cut_in_parts, window_sizes, windows_over
from torch import Tensor
from torch.fx import GraphModule, Node

_AVERAGES = frozenset({aten.avg_pool2d.default, aten.avg_pool3d.default})
_LARGEST = frozenset({aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default})
#: Most places of a window.
_MANY_PLACES = 1 << 24


def large_windows_pass(in_turn: bool) -> Pass:
    """The pass for a device; ``in_turn`` says that overlapping windows are summed along one dimension after another."""
    return Pass("large_windows", functools.partial(large_windows, in_turn=in_turn), large_windows.__doc__ or "")


def large_windows(gm: GraphModule, in_turn: bool) -> GraphModule:
    """Expand poolings with windows of many places; comes before `decompose`, which unrolls the others, and has its
    conditions. Places of largest elements are left to the library where they are asked for."""

    def rule_of(node: Node) -> Rule | None:
        if node.target in _AVERAGES:
            return functools.partial(averages, in_turn)
        alone = node.target in _LARGEST and not any(user.args[1] == 1 and _is_read(user) for user in node.users)
        return largest if alone else None

    return expand(gm, rule_of)


def _is_read(node: Node) -> bool:
    return node.op == "output" or any(map(_is_read, node.users))


def averages(in_turn: bool, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
             count_include_pad: bool = True, divisor: int | None = None) -> Tensor:
    """The sum of each window over how many elements it has, or over ``divisor``."""
    w = _large(x, kernel, stride, padding, 1, ceil_mode)
    total = accumulate(x)
    if _covers_once(w):
        total = torch.sum(*side_by_side(total, w))
    elif in_turn:
        for dim, (k, s, p) in enumerate(zip(w.kernel, w.stride, w.padding, strict=True)):
            k1, s1, p1 = ([n if d == dim else other for d in range(len(w.kernel))]
                          for n, other in ((k, 1), (s, 1), (p, 0)))
            first, *others = at_places(total, windows_over(total.shape, k1, s1, p1, 1, ceil_mode), 0)
            total = sum(others, first)
    else:
        raise Refusal("overlapping windows of many places")
    return total / window_sizes(w, count_include_pad, divisor, x.device)


def largest(x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
            ceil_mode: bool = False) -> tuple[Tensor, Tensor]:
    """The largest element of each window; the second result, of where they are, nobody asks for."""
    parts, places = side_by_side(x, _large(x, kernel, stride, padding, dilation, ceil_mode))
    found = torch.amax(parts, places)
    return found, torch.zeros_like(found, dtype=torch.int64)


def side_by_side(x: Tensor, w: Windows) -> tuple[Tensor, list[int]]:
    """``x`` with each of its last dimensions in two, windows and places in a window, and which dimensions the places
    are. Raises Refusal for windows that don't lie next to each other and within the input."""
    if not _covers_once(w):
        raise Refusal("overlapping windows of many places")
    for dim, (o, k) in enumerate(zip(w.outputs, w.kernel, strict=True)):
        x = x.narrow(dim - len(w.kernel), 0, o * k)
    return cut_in_parts(x, w.outputs)


def _covers_once(w: Windows) -> bool:
    return w.stride == w.kernel and not any(w.padding) and all(d == 1 for d in w.dilation) and w.whole


def _large(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Windows:
    w = windows_over(x.shape, kernel, stride, padding, dilation, ceil_mode, most=_MANY_PLACES)
    if prod(w.kernel) <= MAX_PLACES:
        raise Refusal("windows of few places, which are unrolled")
    return w
