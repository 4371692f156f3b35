"""Complex arithmetic on pairs of real numbers, which kernels can compute.

Rotary embeddings, spectra and state spaces are often written with complex tensors. A complex number lies in memory as
its real and its imaginary part, so that what reads or makes complex tensors can as well be arithmetic on the two:

    (a + ib)(c + id) = (ac − bd) + i(ad + bc)

Each complex value gets two real ones beside it. Operators that have no rule here go on reading complex tensors, put
together from the two where those were computed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rooffuse.passes.decompose import decompose
from rooffuse.passes.graph import argument, aten, call_like, is_concrete, packet_name, tensor_meta
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

_PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}
#: Operators that do the same with real and imaginary parts.
_BOTH = frozenset(
    f"aten.{name}" for name in """view reshape _unsafe_view permute transpose t expand slice select unsqueeze squeeze
    alias detach flip roll repeat cat stack index index_select gather clone sum mean neg""".split())
#: Those of them that only look at their operand, or copy it.
_MOVES = _BOTH - {"aten.sum", "aten.mean", "aten.neg"}


@dataclass(frozen=True)
class _Pair:
    """Real nodes for the parts of a complex one; ``computed`` says that there was arithmetic on the way."""

    real: Any
    imag: Any
    computed: bool


def complex_pairs(gm: GraphModule) -> GraphModule:
    """Compute complex values by their real and imaginary parts.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone). Ensures: equal sizes, dtype and
    strides of every value that the caller or an operator without a rule receives.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None or not any(_part_type(node) for node in gm.graph.nodes):
        return gm
    rewriter = _Rewriter(mode)
    for node in list(gm.graph.nodes):
        rewriter.visit(node)
    log.debug("complex_pairs: %d values in parts", sum(p.computed for p in rewriter.pairs.values()))
    return decompose(gm)  # what lengths of pairs are made of


def _part_type(node: Any) -> torch.dtype | None:
    """The type of the parts of a complex tensor; None for others, and for sizes that aren't known."""
    value = tensor_meta(node)
    if value is None or not is_concrete((*value.shape, *value.stride())):
        return None
    return _PARTS.get(value.dtype)


class _Rewriter:
    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.pairs: dict[Node, _Pair] = {}
        self.whole: dict[Node, Node] = {}
        self.call: Callable[..., Node] = functools.partial(call_like)

    def visit(self, node: Node) -> None:
        """Compute ``node`` in parts if there is a rule, else give it whole complex operands."""
        complex_operands = [n for n in node.all_input_nodes if _part_type(n)]
        if not complex_operands and not _part_type(node):
            return
        self.call = functools.partial(call_like, node, self.mode)
        with node.graph.inserting_before(node):
            name = packet_name(node.target) if node.op == "call_function" else ""
            rule = _RULES.get(name) or (_both if name in _BOTH and _part_type(node) else None)
            try:
                if rule is not None and rule(self, node):
                    return
            except (RuntimeError, ValueError) as refusal:  # a view that the parts, which lie apart, don't have
                log.info("%s stays complex: %s", node.name, refusal)
            for operand in complex_operands:
                node.replace_input_with(operand, self._together(operand))

    def parts(self, value: Any, dtype: torch.dtype) -> tuple[Any, Any]:
        """Real and imaginary part, of type ``dtype``, of a complex or real node or number."""
        if not isinstance(value, Node):
            return (value.real, value.imag) if isinstance(value, complex) else (value, 0.0)
        if not _part_type(value):
            return self.cast(value, dtype), 0.0
        if value not in self.pairs:
            # What a caller, or autograd, hands in may be conjugated lazily, and has no parts until that was done.
            done = value.op == "call_function" and not value.meta["val"].is_conj()
            pairs = self.call(aten.view_as_real.default, value if done else self.call(aten.resolve_conj.default, value))
            real, imag = (self.call(aten.select.int, pairs, -1, k) for k in (0, 1))
            self.pairs[value] = _Pair(real, imag, False)
        pair = self.pairs[value]
        return self.cast(pair.real, dtype), self.cast(pair.imag, dtype)

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, Node) and value.meta["val"].dtype != dtype:
            return self.call(aten._to_copy.default, value, dtype=dtype)
        return value

    def arithmetic(self, op: str, x: Any, y: Any) -> Any:
        """``op`` of two parts, of which one at least is a node."""
        if isinstance(x, Node):
            return self.call(getattr(aten, op).Tensor, x, y)
        if op == "sub":
            return self.call(aten.add.Tensor, self.call(aten.neg.default, y), x)
        return self.call(getattr(aten, op).Tensor, y, x)

    def _together(self, value: Node) -> Node:
        """A complex tensor of computed parts, or the one that there is."""
        pair = self.pairs.get(value)
        if pair is None or not pair.computed or not value.meta["val"].is_contiguous() or value.meta["val"].is_conj():
            return value
        if value not in self.whole:
            stacked = self.call(aten.stack.default, [pair.real, pair.imag], -1)
            self.whole[value] = self.call(aten.view_as_complex.default, stacked)
        return self.whole[value]


def _both(rewriter: _Rewriter, node: Node) -> bool:
    dtype, name = _part_type(node), packet_name(node.target)
    assert dtype is not None
    overload: Any = node.target
    told = node.kwargs.get("dtype", node.meta["val"].dtype)
    if overload._overloadname == "dtype" or set(node.kwargs) - {"memory_format", "dtype"} or told not in (
            None, node.meta["val"].dtype):
        return False
    joins = name in ("aten.cat", "aten.stack")

    def part(operand: Node, k: int) -> Node:
        if _part_type(operand) or (joins and k == 0):
            return rewriter.parts(operand, dtype)[k]
        # What a real piece adds to the imaginary part; an index stays what it is.
        return rewriter.call(aten.zeros_like.default, operand, dtype=dtype) if joins else operand

    made = []
    for k in (0, 1):
        arguments = torch.fx.map_arg(node.args, lambda n, k=k: part(n, k))
        keywords = {key: dtype if key == "dtype" else value for key, value in node.kwargs.items()}
        made.append(rewriter.call(node.target, *arguments, **keywords))
    moved = [rewriter.pairs.get(n) for n in node.all_input_nodes if _part_type(n)]
    computed = name not in _MOVES or any(p is not None and p.computed for p in moved)
    rewriter.pairs[node] = _Pair(made[0], made[1], computed)
    return True


def _multiply(rewriter: _Rewriter, node: Node) -> bool:
    dtype = _part_type(node)
    if dtype is None or len(node.args) != 2:
        return False
    (a, b), (c, d) = (rewriter.parts(x, dtype) for x in node.args)
    product = functools.partial(rewriter.arithmetic, "mul")
    rewriter.pairs[node] = _Pair(rewriter.arithmetic("sub", product(a, c), product(b, d)),
                                 rewriter.arithmetic("add", product(a, d), product(b, c)), True)
    return True


def _add(rewriter: _Rewriter, node: Node) -> bool:
    dtype, op = _part_type(node), packet_name(node.target).removeprefix("aten.")
    if dtype is None or argument(node, "alpha") != 1:
        return False
    (a, b), (c, d) = (rewriter.parts(x, dtype) for x in node.args[:2])
    if not all(isinstance(x, Node) or isinstance(y, Node) for x, y in ((a, c), (b, d))):
        return False
    rewriter.pairs[node] = _Pair(rewriter.arithmetic(op, a, c), rewriter.arithmetic(op, b, d), True)
    return True


def _conjugate(rewriter: _Rewriter, node: Node) -> bool:
    dtype = _part_type(node)
    if dtype is None:
        return False
    real, imag = rewriter.parts(node.args[0], dtype)
    if not isinstance(node.args[0], Node):  # a gradient's number: traced as if it weren't conjugated lazily, but it is
        rewriter.pairs[node] = _Pair(real, -imag, False)
        return True
    rewriter.pairs[node] = _Pair(real, rewriter.call(aten.neg.default, imag), True)
    return True


def _polar(rewriter: _Rewriter, node: Node) -> bool:
    length, angle = node.args
    parts = (rewriter.call(f.default, angle) for f in (aten.cos, aten.sin))
    real, imag = (rewriter.call(aten.mul.Tensor, length, part) for part in parts)
    rewriter.pairs[node] = _Pair(real, imag, True)
    return True


def _cartesian(rewriter: _Rewriter, node: Node) -> bool:
    real, imag = node.args
    if tensor_meta(real) is None or tensor_meta(imag) is None or real.meta["val"].shape != imag.meta["val"].shape:
        return False
    rewriter.pairs[node] = _Pair(real, imag, True)
    return True


def _from_pairs(rewriter: _Rewriter, node: Node) -> bool:
    real, imag = (rewriter.call(aten.select.int, node.args[0], -1, k) for k in (0, 1))
    rewriter.pairs[node] = _Pair(real, imag, False)
    return True


def _to_pairs(rewriter: _Rewriter, node: Node) -> bool:
    pair = rewriter.pairs.get(node.args[0])  # type: ignore[arg-type]
    if pair is None or not pair.computed:
        return False
    stacked = rewriter.call(aten.stack.default, [pair.real, pair.imag], -1)
    if stacked.meta["val"].stride() != node.meta["val"].stride():
        return False
    node.replace_all_uses_with(stacked)
    return True


def _converted(rewriter: _Rewriter, node: Node) -> bool:
    dtype = _part_type(node)
    if dtype is None or set(node.kwargs) - {"dtype"} or not _part_type(node.args[0]):
        return False
    rewriter.pairs[node] = _Pair(*rewriter.parts(node.args[0], dtype), True)
    return True


def _angle(rewriter: _Rewriter, node: Node) -> bool:
    dtype = _part_type(node.args[0])
    if dtype is None:
        return False
    real, imag = rewriter.parts(node.args[0], dtype)
    node.replace_all_uses_with(rewriter.call(aten.atan2.default, imag, real))
    return True


def _length(rewriter: _Rewriter, node: Node) -> bool:
    dtype = _part_type(node.args[0])
    if dtype is None:
        return False
    result = rewriter.call(aten.hypot.default, *rewriter.parts(node.args[0], dtype))
    if result.meta["val"].stride() != node.meta["val"].stride():
        return False
    node.replace_all_uses_with(result)
    return True


_RULES: dict[str, Callable[[_Rewriter, Node], bool]] = {
    "aten.mul": _multiply, "aten.add": _add, "aten.sub": _add, "aten._conj": _conjugate, "aten.polar": _polar,
    "aten.complex": _cartesian, "aten.view_as_complex": _from_pairs, "aten.view_as_real": _to_pairs,
    "aten._to_copy": _converted, "aten.angle": _angle, "aten.abs": _length,
}
