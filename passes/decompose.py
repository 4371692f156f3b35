"""Expansion of compound operators into the primitives that kernels are generated from.

A rule is recorded once per distinct call (operator, operands' metadata, constants) and its nodes are copied in
place of every such call, so a stack of equal layers is traced for one of them.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from rooffuse.passes.graph import (
    IMPLIED_CAST,
    INNER_PRODUCT,
    argument_key,
    argument_nodes,
    aten,
    is_random,
    packet_name,
    size_key,
)
from rooffuse.passes.op_sets import LIBRARY, PRIMITIVES, aot_decompositions
from rooffuse.passes.rule_base import Refusal, Rule, conform
from rooffuse.passes.rules import RULES
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

log = logging.getLogger(__name__)


def decompose(gm: GraphModule) -> GraphModule:
    """Replace compound operators by primitives.

    Requires: ``meta["val"]`` fake tensors on every node. Ensures: each replaced value keeps its sizes, dtype and
    strides; random draws stay calls to the framework's own generator; a call whose rule does not apply stays whole
    and the reason is logged at debug level.
    """
    return expand(gm, lambda node: _rule(node.target))


def expand(gm: GraphModule, rule_of: Callable[[Node], Rule | None]) -> GraphModule:
    """Replace each call by what ``rule_of`` says that it is made of; under the conditions of `decompose`."""
    templates: dict[Any, Graph | None] = {}
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    if mode is None:
        return gm
    expanded = 0
    for node in list(gm.graph.nodes):
        rule = rule_of(node) if node.op == "call_function" else None
        if rule is None or not _is_replaceable(node):
            continue
        key = _call_key(node)
        if key not in templates:
            templates[key] = _record(node, rule, mode)
        template = templates[key]
        if template is not None:
            _inline(gm.graph, node, template)
            expanded += 1
    log.debug("decompose: expanded %d calls from %d templates", expanded, len(templates))
    return gm


@functools.cache
def _fallback_rules() -> dict[Any, Rule]:
    """The framework's own decompositions of operators that this package neither keeps nor has a rule for."""
    return {op: function for op, function in aot_decompositions().items() if not op._schema.is_mutable}


def _rule(target: Any) -> Rule | None:
    rule = RULES.get(target)
    if rule is not None or packet_name(target) in PRIMITIVES or packet_name(target) in LIBRARY:
        return rule
    return _fallback_rules().get(target) if isinstance(target, torch._ops.OpOverload) else None


def _is_replaceable(node: Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return value.layout == torch.strided and not (is_random(node) and node.target not in RULES)
    if not isinstance(value, (tuple, list)):
        return False
    if not all(item is None or isinstance(item, torch.Tensor) for item in value):
        return False
    return all(user.target is operator.getitem for user in node.users)


def _call_key(node: Node) -> Any:
    def describe(source: Node) -> Any:
        value = source.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return (type(value).__name__, size_key(value))
        sizes, strides = (tuple(map(size_key, item)) for item in (value.shape, value.stride()))
        return (sizes, strides, value.dtype, value.device)

    return (node.target, argument_key(node.args, describe), argument_key(node.kwargs, describe))


class _Recorder(TorchDispatchMode):
    """Records the operator calls that reach the dispatcher, expanding those that have a rule of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.values: dict[int, tuple[torch.Tensor, Node]] = {}
        self.symbols: dict[str, Callable[[], Node]] = {}

    def bind(self, value: Any) -> Any:
        """Make a placeholder for an operand and return the operand."""
        node = self.graph.placeholder("operand")
        node.meta["val"] = value
        if isinstance(value, torch.SymInt):
            self.symbols[size_key(value)] = lambda: node
        elif isinstance(value, torch.Tensor):
            self.values[id(value)] = (value, node)
            for dim, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    self.symbols.setdefault(size_key(size), functools.partial(self._size_node, node, dim, size))
        return value

    def _size_node(self, source: Node, dim: int, size: torch.SymInt) -> Node:
        node = self.graph.call_function(torch.ops.aten.sym_size.int, (source, dim))
        node.meta["val"] = size
        self.symbols[size_key(size)] = lambda: node
        return node

    def node_of(self, value: Any) -> Any:
        """The node, or the constant, that stands for a value in the recorded graph."""
        if isinstance(value, torch.Tensor):
            if id(value) not in self.values:
                raise Refusal("the decomposition makes a tensor constant")
            return self.values[id(value)][1]
        if isinstance(value, torch.SymInt):
            expression = value.node.expr
            if expression.is_number:
                return int(expression)
            if size_key(value) not in self.symbols:
                raise Refusal(f"no node holds the size {expression}")
            return self.symbols[size_key(value)]()
        if isinstance(value, (torch.SymFloat, torch.SymBool)):
            raise Refusal(f"no node holds {value}")
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            raise Refusal(f"the decomposition calls {func}, which mutates")
        result = func(*args, **kwargs)
        if func.namespace == "prim":
            return result  # a question about a fake tensor (its device, its sizes), not a computation
        rule = RULES.get(func)
        if rule is not None:
            try:
                with self:
                    return _conform_all(rule(*args, **kwargs), result, ())
            except Refusal as reason:  # what it recorded has no readers and goes with the rest of those
                if packet_name(func) not in PRIMITIVES:
                    raise Refusal(f"{func}: {reason}") from reason
        node = self.graph.call_function(
            func, pytree.tree_map(self.node_of, tuple(args)), pytree.tree_map(self.node_of, kwargs)
        )
        node.meta["val"] = result
        if func is torch.ops.aten._to_copy.default and result.dtype in (torch.bfloat16, torch.float16):
            node.meta[IMPLIED_CAST] = True
        self._name_results(node, result)
        return result

    def _name_results(self, node: Node, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            self.values[id(result)] = (result, node)
        elif isinstance(result, (tuple, list)):
            for index, item in enumerate(result):
                part = self.graph.call_function(operator.getitem, (node, index))
                part.meta["val"] = item
                self._name_results(part, item)


def _conform_all(results: Any, expected: Any, operands: tuple[torch.Tensor, ...]) -> Any:
    """``results`` with the declared dtypes and strides, none of them an operand itself or given out twice."""
    if isinstance(expected, torch.Tensor):
        return _conform_all((results,), (expected,), operands)[0]
    taken = {id(operand) for operand in operands}
    conformed: list[torch.Tensor | None] = []
    for result, wanted in zip(results, expected, strict=True):
        if wanted is None or result is None:
            if wanted is not result:
                raise Refusal("a result is missing")
            conformed.append(None)
            continue
        value = conform(result, wanted)
        if id(value) in taken:
            value = value.clone()
        taken.add(id(value))
        conformed.append(value)
    return tuple(conformed)


def _record(node: Node, rule: Rule, mode: FakeTensorMode) -> Graph | None:
    """The graph of ``rule`` on the call's operands (one placeholder for each node argument, one output each)."""
    recorder = _Recorder()
    operands: list[Any] = []

    def bind(source: Node) -> Any:
        value = source.meta["val"]
        if isinstance(value, torch.Tensor):
            # A distinct object for each operand, so that identity tells them apart.
            with mode:
                value = value.detach()
        operands.append(value)
        return recorder.bind(value)

    try:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), bind)
        tensors = tuple(operand for operand in operands if isinstance(operand, torch.Tensor))
        with torch.no_grad(), mode, recorder:
            results = _conform_all(rule(*args, **kwargs), node.meta["val"], tensors)
        flat = (results,) if isinstance(results, torch.Tensor) else results
        recorder.graph.output(tuple(None if item is None else recorder.node_of(item) for item in flat))
        if any(_is_foreign(call) for call in recorder.graph.nodes):
            foreign = next(str(call.target) for call in recorder.graph.nodes if _is_foreign(call))
            raise Refusal(f"the decomposition uses {foreign}, which is neither ATen's nor this package's")
    except Exception as error:
        # Decompositions are other people's code run on symbolic sizes: whatever they raise, the call is still valid.
        log.debug("decompose: %s (%s) stays whole: %s", node.name, node.target, error)
        return None
    for call in reversed(recorder.graph.nodes):
        if call.op == "call_function" and not call.users and not is_random(call):
            recorder.graph.erase_node(call)
    for call in recorder.graph.nodes:
        if call.target is aten.mul.Tensor and call.users and all(
                user.target in (aten.add.Tensor, aten.sub.Tensor) for user in call.users):
            call.meta[INNER_PRODUCT] = True
    return recorder.graph


def _is_foreign(call: Node) -> bool:
    return isinstance(call.target, torch._ops.OpOverload) and call.target.namespace not in (
        "aten", "rooffuse")


def _inline(graph: Graph, node: Node, template: Graph) -> None:
    inherited = {name: value for name, value in node.meta.items() if name not in ("val", "tensor_meta")}
    inherited.setdefault("original_aten", node.target)
    copies: dict[Node, Node] = {}
    operands = iter(argument_nodes((node.args, node.kwargs)))
    results: tuple[Node | None, ...] = ()
    with graph.inserting_before(node):
        for inner in template.nodes:
            if inner.op == "placeholder":
                copies[inner] = next(operands)
            elif inner.op == "output":
                results = tuple(None if item is None else copies[item] for item in inner.args[0])
            else:
                copies[inner] = graph.node_copy(inner, copies.__getitem__)
                copies[inner].meta = {**inherited, **inner.meta}
    if isinstance(node.meta["val"], torch.Tensor):
        node.replace_all_uses_with(results[0])
    else:
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)
