"""Questions the passes ask of an ATen graph: aliasing, mutation, randomness, user-visible values.

Everything is read off operator schemas (``alias_info`` and tags); no tensor is computed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

# Their schemas declare a fresh result, yet the result shares the storage of the first argument.
_UNDECLARED_VIEWS = frozenset({aten._unsafe_view.default})
#: Metadata of a cast to bfloat16 or float16 that nobody wrote: the result of a decomposed operator has that type.
#: Inside of a kernel it needn't round.
IMPLIED_CAST = "rooffuse_implied_cast"
#: Metadata of a product inside of a decomposed operator that is only added to something, or subtracted: inside of a
#: kernel it needn't be rounded, as it isn't inside of the framework's own kernel for the operator.
INNER_PRODUCT = "rooffuse_inner_product"
_ROUNDING_MARKS = (IMPLIED_CAST, INNER_PRODUCT)
_SYM_TYPES = (torch.SymInt, torch.SymFloat, torch.SymBool)


def schema_of(node: Node) -> Any:
    """The ``FunctionSchema`` of a call to an ATen-style overload, or None for any other node."""
    target = node.target
    return target._schema if isinstance(target, torch._ops.OpOverload) else None


def packet_name(target: Any) -> str:
    """``aten.add`` for any overload of it; ``""`` for callables that are no operator overload."""
    if not isinstance(target, torch._ops.OpOverload):
        return ""
    namespace, _, name = target._schema.name.partition("::")
    return f"{namespace}.{name}"


def rounding_marks(node: Node) -> tuple[bool, bool]:
    """What is known of how the node's value may be rounded: calls that differ in it aren't equal."""
    return IMPLIED_CAST in node.meta, INNER_PRODUCT in node.meta


def is_random(node: Node) -> bool:
    """Whether the call draws from a random number generator."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def written_args(node: Node) -> tuple[Node, ...]:
    """The argument nodes that the call mutates according to its schema."""
    schema = schema_of(node)
    if schema is None or not schema.is_mutable:
        return ()
    written: list[Node] = []
    for position, argument in enumerate(schema.arguments):
        info = argument.alias_info
        if info is None or not info.is_write:
            continue
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, Node):
                written.append(item)
    return tuple(written)


def reads_first_again(node: Node) -> bool:
    """Whether the call's first argument is among its others, too."""
    return any(item is node.args[0] for item in argument_nodes((node.args[1:], tuple(node.kwargs.values()))))


def is_opaque(node: Node) -> bool:
    """Whether the call is something other than an operator overload or a plain Python/sympy operator.

    Higher-order operators and user kernels declare no schema that says what they mutate.
    """
    if node.op != "call_function":
        return node.op in ("call_module", "call_method")
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return False
    return getattr(target, "__module__", "") not in ("_operator", "math", "torch", "torch.sym")


def is_impure(node: Node) -> bool:
    """Whether the node must stay even without users: it mutates, asserts, draws random numbers or is opaque.

    A random draw without users stays because it advances the generator that later draws read.
    """
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function":
        return node.op != "get_attr"
    schema = schema_of(node)
    if schema is None:
        return is_opaque(node)
    return schema.is_mutable or len(schema.returns) == 0 or is_random(node) or "_sync" in schema.name


def viewed_arg(node: Node) -> Node | None:
    """The node whose storage the result of ``node`` shares (or may share), if any."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        source = node.args[0]
        return source if isinstance(source, Node) else None
    schema = schema_of(node)
    if schema is None:
        return None
    if node.target in _UNDECLARED_VIEWS:
        return node.args[0] if isinstance(node.args[0], Node) else None
    if not any(result.alias_info is not None for result in schema.returns):
        return None
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None:
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            if isinstance(value, Node):
                return value
    return None


def storage_roots(graph: Graph) -> dict[Node, Node]:
    """For every node, the node that owns the storage its value lives in (itself unless it is a view)."""
    roots: dict[Node, Node] = {}
    for node in graph.nodes:
        source = viewed_arg(node)
        roots[node] = node if source is None else roots[source]
    return roots


def graph_device(graph: Graph) -> torch.device:
    """Where the graph computes: the first accelerator that any of its tensors is on, else the CPU."""
    devices = (value.device for node in graph.nodes if (value := tensor_meta(node)) is not None)
    return next((device for device in devices if device.type not in ("cpu", "meta")), torch.device("cpu"))


def output_node(graph: Graph) -> Node:
    """The graph's single output node."""
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def returned_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes that the graph returns, in order, repeats included."""
    return argument_nodes(output_node(graph).args)


def argument_nodes(value: Any) -> tuple[Node, ...]:
    """The nodes in a nested argument, in order, repeats included."""
    found: list[Node] = []

    def note(node: Node) -> Node:
        found.append(node)
        return node

    torch.fx.map_arg(value, note)
    return tuple(found)


def tensor_meta(node: Any) -> torch.Tensor | None:
    """The fake tensor in ``node.meta["val"]``, or None where the value is not one tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def is_concrete(sizes: Iterable[Any]) -> bool:
    """Whether every size is a plain integer."""
    return all(isinstance(size, int) for size in sizes)


def same_sizes(left: Iterable[Any], right: Iterable[Any]) -> bool:
    """Whether two size tuples are known equal, adding no guard: symbols match by expression."""
    left, right = tuple(left), tuple(right)
    return len(left) == len(right) and all(size_key(a) == size_key(b) for a, b in zip(left, right))


def size_key(size: Any) -> Any:
    """A hashable stand-in for an integer or symbolic size."""
    return str(size.node.expr) if isinstance(size, _SYM_TYPES) else size


def same_layout(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors are known to agree in dtype, device, sizes and (where it matters) strides."""
    if left.dtype != right.dtype or left.device != right.device or left.layout != right.layout:
        return False
    if left.layout != torch.strided:
        return False
    return same_sizes(left.shape, right.shape) and same_strides(left, right)


def same_strides(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether strides agree in every dimension longer than one (of tensors of equal sizes)."""
    if is_concrete(left.shape) and 0 in left.shape:
        return True
    return all(
        (isinstance(size, int) and size == 1) or size_key(a) == size_key(b)
        for size, a, b in zip(left.shape, left.stride(), right.stride())
    )


def hazard_edges(gm: GraphModule) -> Iterator[tuple[Node, Node]]:
    """Pairs ``(before, after)`` whose order the data flow does not show but storage does.

    Yields read-after-write, write-after-read and write-after-write pairs on one storage, where at least one
    of the two mutates it. A reordering of the graph that keeps these and the data edges is safe.
    """
    graph = gm.graph
    mutated = set(mutated_roots(graph))
    if not mutated:
        return
    roots = storage_roots(graph)
    last_write: dict[Node, Node] = {}
    reads: dict[Node, list[Node]] = {root: [] for root in mutated}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            continue
        written = {roots[argument] for argument in written_args(node)}
        touched = dict.fromkeys(roots[argument] for argument in node.all_input_nodes if roots[argument] in mutated)
        for root in touched:
            if root in last_write:
                yield last_write[root], node
            if root in written:
                yield from ((reader, node) for reader in reads[root] if reader is not node)
                last_write[root] = node
                reads[root] = []
            else:
                reads[root].append(node)


def mutated_roots(graph: Graph) -> tuple[Node, ...]:
    """The storage owners that some node of the graph writes in place, in order of first write."""
    writes = [argument for node in graph.nodes for argument in written_args(node)]
    if not writes:
        return ()
    roots = storage_roots(graph)
    return tuple(dict.fromkeys(roots[argument] for argument in writes))


def argument(node: Node, name: str) -> Any:
    """The value bound to the schema argument ``name`` of a call, its default if it was left out."""
    schema = schema_of(node)
    for position, parameter in enumerate(schema.arguments):
        if parameter.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, parameter.default_value if parameter.has_default_value() else None)
    raise KeyError(f"{node.target} has no argument {name!r}; its schema is {schema}")


def permutation(node: Node) -> list[int]:
    """The argument's dimensions in the order in which ``permute``, ``transpose`` or ``t`` gives them."""
    rank = node.meta["val"].dim()
    if node.target is aten.permute.default:
        return [dim % rank for dim in argument(node, "dims")]
    order = list(range(rank))
    if rank > 1:
        first, second = (0, 1) if node.target is aten.t.default else (argument(node, "dim0"), argument(node, "dim1"))
        order[first % rank], order[second % rank] = order[second % rank], order[first % rank]
    return order


def argument_key(value: Any, node_key: Callable[[Node], Any]) -> Any:
    """A hashable key under which equal arguments meet; 1, 1.0 and True stay apart, and so do 0.0 and -0.0."""
    if isinstance(value, Node):
        return node_key(value)
    if isinstance(value, (list, tuple)):
        return ("seq", *(argument_key(item, node_key) for item in value))
    if isinstance(value, dict):
        return ("map", *((name, argument_key(item, node_key)) for name, item in value.items()))
    if isinstance(value, slice):
        return ("slice", *(argument_key(item, node_key) for item in (value.start, value.stop, value.step)))
    if isinstance(value, _SYM_TYPES):
        return ("sym", size_key(value))
    return (type(value).__name__, repr(value))


class Forwarding:
    """Decides when a node may be replaced by another that holds the same value, and does it.

    Replacing a fresh tensor by one that others hold too is seen by whoever mutates one of them: so a storage that
    the graph writes is never shared anew, and nor are two tensors that the caller receives, or one that it receives
    and one that it passed in.
    """

    def __init__(self, graph: Graph) -> None:
        self.roots = storage_roots(graph)
        self._mutated = set(mutated_roots(graph))
        self._returned = set(returned_nodes(graph))
        self._returned_roots = {self.roots[node] for node in self._returned}

    def is_private(self, node: Node) -> bool:
        """Whether neither the caller nor a mutation in the graph ever reaches the node's storage."""
        root = self.roots[node]
        return root not in self._mutated and root not in self._returned_roots

    def is_mutated(self, node: Node) -> bool:
        """Whether the graph writes the node's storage in place."""
        return self.roots[node] in self._mutated

    def allowed(self, node: Node, source: Node) -> bool:
        """Whether every use of ``node`` may become a use of ``source``, which holds the same value."""
        root, source_root = self.roots[node], self.roots[source]
        if root is source_root:
            return node not in self._returned or (source not in self._returned and source.op != "placeholder")
        if root is not node or root in self._mutated or source_root in self._mutated:
            return False
        if any(packet_name(user.target).startswith("aten.as_strided") for user in node.users):
            return False  # they count elements from where the storage begins
        if node not in self._returned_roots:
            return True
        return source_root.op not in ("placeholder", "get_attr") and source_root not in self._returned_roots

    def replace(self, node: Node, source: Node) -> bool:
        """Replace ``node`` by ``source`` and erase it if that is allowed; returns whether it was."""
        if not self.allowed(node, source):
            return False
        if node in self._returned:
            self._returned.add(source)
        source_root = self.roots[source]
        if node in self._returned_roots:
            self._returned_roots.add(source_root)
        pending = [node] if source_root is not self.roots[node] else []
        while pending:
            for user in pending.pop().users:
                if self.roots.get(user) is node:
                    self.roots[user] = source_root
                    pending.append(user)
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)
        del self.roots[node]
        return True


def call_like(origin: Node, mode: FakeTensorMode, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new call of ``target`` at the insertion point of ``origin``'s graph, with its fake value.

    Everything else that is known of ``origin`` (stack trace, module path) is taken over: the call stands for a part of
    it. How its value may be rounded is known of other calls of the same target only. ``args`` and ``kwargs`` hold nodes
    of the same graph, each with ``meta["val"]``. Where the target raises, there is no node.
    """
    values, keywords = torch.fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
    with mode, torch.no_grad():
        value = target(*values, **keywords)
    made = origin.graph.call_function(target, args, kwargs)
    other = ("val", "tensor_meta") if target == origin.target else ("val", "tensor_meta", *_ROUNDING_MARKS)
    made.meta = {**{k: v for k, v in origin.meta.items() if k not in other}, "val": value}
    return made
