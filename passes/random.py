"""Random operators as arithmetic on counter-based bits, which a kernel computes where it needs them.

The framework's generator is asked once for each graph run, for one seed a random operator: ``torch.manual_seed`` rules
what is drawn, and each run draws anew. The numbers are others than eager's, of the same distributions.
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from rooffuse.passes.graph import argument, call_like, is_concrete
from rooffuse.passes.philox import philox
from rooffuse.passes.pipeline import Pass
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

log = logging.getLogger(__name__)
aten = torch.ops.aten

#: Random bits in a uniform number of each type: all that it holds below one, so that rounding never makes a one.
_BITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
#: Widest range of ``randint``: the odds of its numbers differ by less than a part in 4096.
_RANGE = 1 << 20
_UNIFORM = frozenset({aten.rand.default, aten.rand_like.default, aten.uniform.default})
_NORMAL = frozenset({aten.randn.default, aten.randn_like.default, aten.normal_functional.default})
_EXPONENTIAL = frozenset({aten.exponential.default})
_CHANCE = frozenset({aten.bernoulli.default, aten.bernoulli.p})
_INTEGER = frozenset({aten.randint.default, aten.randint.low, aten.randint_like.default, aten.randint_like.low_dtype})
_KNOWN = frozenset({*_UNIFORM, *_NORMAL, *_EXPONENTIAL, *_CHANCE, *_INTEGER, aten.native_dropout.default})
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def random_in_kernels(gm: GraphModule) -> GraphModule:
    """Replace random operators by arithmetic on ``rooffuse::philox`` and one draw of seeds for each device.

    Requires: ``meta["val"]`` fake tensors; comes first, while compound operators such as dropout are whole. Ensures:
    sizes, strides and types stay; operators that it doesn't know, and those of symbolic sizes, keep drawing from the
    framework's generator.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None:
        return gm
    nodes = [n for n in gm.graph.nodes if n.target in _KNOWN and _is_supported(n) and _has_default_generator(n)]
    for device in dict.fromkeys(_value(n).device for n in nodes):
        here = [n for n in nodes if _value(n).device == device]
        seeds = None
        for stream, node in enumerate(here):
            if seeds is None:
                with gm.graph.inserting_before(here[0]):
                    seeds = _Draw(gm.graph, here[0], mode).call(
                        aten.randint.default, 2**63 - 1, [len(here)], dtype=torch.int64, device=device)
            with gm.graph.inserting_before(node):
                _Draw(gm.graph, node, mode, seeds, stream).replace()
    return gm


RANDOM_PASS = Pass("random_in_kernels", random_in_kernels, random_in_kernels.__doc__ or "")


def _value(node: Node) -> torch.Tensor:
    value = node.meta["val"]
    return value[0] if isinstance(value, (tuple, list)) else value


def _has_default_generator(node: Node) -> bool:
    return node.kwargs.get("generator") is None


def _is_supported(node: Node) -> bool:
    value, target = _value(node), node.target
    if value.numel() == 0 or not is_concrete(value.shape) or value.layout != torch.strided:
        return False
    if target is aten.native_dropout.default:
        whole = all(u.target is operator.getitem for u in node.users)
        return whole and node.args[2] is not False and 0 < node.args[1] < 1 and value.dtype in _FLOATS
    if target in _INTEGER:
        low, high = _range(node)
        return value.dtype in (torch.int64, torch.int32) and 0 < high - low <= _RANGE
    return target in _CHANCE or value.dtype in _FLOATS


def _range(node: Node) -> tuple[int, int]:
    """``[low, high)`` of a ``randint``."""
    names = {a.name for a in node.target._schema.arguments}
    return argument(node, "low") if "low" in names else 0, argument(node, "high")


class _Draw:
    """Emits the arithmetic for one random operator."""

    def __init__(self, graph: Graph, node: Node, mode: FakeTensorMode, seeds: Node | None = None,
                 stream: int = 0) -> None:
        self.graph, self.node, self.mode, self.seeds, self.stream = graph, node, mode, seeds, stream

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        return call_like(self.node, self.mode, target, *args, **kwargs)

    def replace(self) -> None:
        node = self.node
        if node.target is aten.native_dropout.default:
            self._dropout()
            return
        value = _value(node)
        if node.target in _UNIFORM:
            result = self._uniform(value)
        elif node.target in _NORMAL:
            result = self._normal(value)
        elif node.target in _EXPONENTIAL:
            rate = float(argument(node, "lambd"))
            result = self.call(aten.mul.Scalar, self._log(value.shape), -1.0 / rate)
        elif node.target in _CHANCE:
            result = self._chance(value, node.args[0] if node.target is aten.bernoulli.default else argument(node, "p"))
        else:
            result = self._integer(value)
        node.replace_all_uses_with(self._as(result, value))
        self.graph.erase_node(node)

    def _as(self, result: Node, wanted: torch.Tensor) -> Node:
        """``result`` with the type and strides of ``wanted``."""
        if _value(result).dtype != wanted.dtype:
            result = self.call(aten._to_copy.default, result, dtype=wanted.dtype)
        order = _memory_order(wanted)
        if _value(result).stride() == wanted.stride() or order == list(range(wanted.dim())):
            return result
        # Numbers are drawn in row-major order; a copy in the wanted order costs nothing inside of a kernel.
        moved = self.call(aten.clone.default, self.call(aten.permute.default, result, order),
                          memory_format=torch.contiguous_format)
        return self.call(aten.permute.default, moved, [order.index(d) for d in range(len(order))])

    def _bits(self, size: Sequence[int], word: int) -> Node:
        return self.call(philox, self.seeds, self.stream, list(size), word)

    def _fraction(self, size: Sequence[int], bits: int, word: int = 0, shift: int = 0) -> Node:
        """``(n + shift) / 2**bits`` for a random number ``n`` of so many bits, exactly."""
        whole = self.call(aten.bitwise_and.Scalar, self._bits(size, word), (1 << bits) - 1)
        if shift:
            whole = self.call(aten.add.Scalar, whole, shift)
        return self.call(aten.mul.Scalar, self.call(aten._to_copy.default, whole, dtype=torch.float32), 2.0**-bits)

    def _uniform(self, value: torch.Tensor) -> Node:
        result = self._fraction(value.shape, _BITS[value.dtype])
        if self.node.target is aten.uniform.default:
            low, high = float(argument(self.node, "from")), float(argument(self.node, "to"))
            result = self.call(aten.add.Scalar, self.call(aten.mul.Scalar, result, high - low), low)
        return result

    def _log(self, size: Sequence[int]) -> Node:
        """``ln u`` for a uniform ``u`` in ``(0, 1]``, which is finite."""
        return self.call(aten.log.default, self._fraction(size, 24, shift=1))

    def _normal(self, value: torch.Tensor) -> Node:
        """Box and Muller: ``sqrt(-2 ln u) cos(2 pi v)``."""
        radius = self.call(aten.sqrt.default, self.call(aten.mul.Scalar, self._log(value.shape), -2.0))
        angle = self.call(aten.mul.Scalar, self._fraction(value.shape, 24, 1), 2 * math.pi)
        result = self.call(aten.mul.Tensor, radius, self.call(aten.cos.default, angle))
        if self.node.target is aten.normal_functional.default:
            mean, deviation = float(argument(self.node, "mean")), float(argument(self.node, "std"))
            result = self.call(aten.add.Scalar, self.call(aten.mul.Scalar, result, deviation), mean)
        return result

    def _chance(self, value: torch.Tensor, probability: Any) -> Node:
        drawn = self._fraction(value.shape, 24)
        compare = aten.lt.Tensor if isinstance(probability, Node) else aten.lt.Scalar
        return self.call(compare, drawn, probability)

    def _integer(self, value: torch.Tensor) -> Node:
        """``low + floor(n * range / 2**32)`` for 32 random bits ``n``."""
        low, high = _range(self.node)
        wide = self.call(aten._to_copy.default, self._bits(value.shape, 0), dtype=torch.int64)
        wide = self.call(aten.mul.Scalar, self.call(aten.bitwise_and.Scalar, wide, 0xFFFFFFFF), high - low)
        return self.call(aten.add.Scalar, self.call(aten.bitwise_right_shift.Tensor_Scalar, wide, 32), low)

    def _dropout(self) -> None:
        source, p = self.node.args[:2]
        result, mask = self.node.meta["val"]
        kept = self._as(self._chance(mask, 1.0 - p), mask)
        scaled = self.call(aten.mul.Scalar, self.call(aten.mul.Tensor, source, kept), 1.0 / (1.0 - p))
        parts = (self._as(scaled, result), kept)
        for user in list(self.node.users):
            user.replace_all_uses_with(parts[user.args[1]])
            self.graph.erase_node(user)
        self.graph.erase_node(self.node)


def _memory_order(value: torch.Tensor) -> list[int]:
    """Dimensions by falling stride."""
    return sorted(range(value.dim()), key=lambda d: (-value.stride(d), d))
