"""Tensors that are read and written part by part, many times in turn: memory that is written in place.

A recurrence such as the inversion of a triangular matrix, row after row, is traced as a chain of copies of the whole
tensor with a part replaced, each of which is read before the next. A kernel that reads the last through all of the
parts before it has as many inputs, and the kernels together grow with the square of their number.
"""

from __future__ import annotations

from rooffuse.passes.dce import dce
from rooffuse.passes.graph import aten, call_like, is_concrete, output_node, same_layout, tensor_meta, viewed_arg
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.reinplace import reinplace
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node

_WRITES = frozenset({aten.slice_scatter.default, aten.select_scatter.default})
#: Fewest writes that go to memory. What reads memory and what writes it are kernels of their own, twice as many: on a
#: GPU sixteen rows of a triangular matrix take longer so, and sixty-four a sixth of the time to compile.
LEAST_WRITES = 24


def filled_memory(gm: GraphModule) -> GraphModule:
    """Give long chains of ``slice_scatter`` and ``select_scatter`` that are read in between memory to be written to.

    Requires: ``meta["val"]`` fake tensors with concrete sizes (others are left alone); comes after every pass that
    needs a functional graph. Ensures: equal sizes, dtype and strides of every value.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes])
    chains = _chains(gm) if mode is not None else []
    if not chains:
        return gm
    made = []
    order = {node: k for k, node in enumerate(gm.graph.nodes)}
    for first, last in chains:
        base = first.args[0]
        until = order[first]
        with gm.graph.inserting_before(base.next):
            memory = call_like(first, mode, aten.clone.default, base)
        base.replace_all_uses_with(memory, lambda user, until=until: order.get(user, until + 1) <= until)
        with gm.graph.inserting_before(last.next):
            written = call_like(last, mode, aten.copy_.default, memory, last)
        output_node(gm.graph).replace_input_with(last, written)
        made.append((base, memory, last, written))
    reinplace(gm)
    left = set(gm.graph.find_nodes(op="call_function", target=aten.copy_.default))
    for base, memory, last, written in made:
        if written in left:
            for node, before in ((written, last), (memory, base)):
                node.replace_all_uses_with(before)
                gm.graph.erase_node(node)
    return dce(gm)


def _chains(gm: GraphModule) -> list[tuple[Node, Node]]:
    """The first and the last write of each chain that is long enough."""
    found = []
    for last in gm.graph.nodes:
        if last.target not in _WRITES or any(u.target in _WRITES and u.args[0] is last for u in last.users):
            continue
        count, read, first = 1, False, last
        while first.args[0].target in _WRITES:
            first, write = first.args[0], first
            count, read = count + 1, read or _is_read(first, write)
        base, value = tensor_meta(first.args[0]), tensor_meta(last)
        if count >= LEAST_WRITES and read and base is not None and value is not None and same_layout(base, value) and (
                is_concrete((*value.shape, *value.stride()))):
            found.append((first, last))
    return found


def _is_read(value: Node, write: Node) -> bool:
    """Whether anybody reads ``value`` but ``write``, and writes of a part of what it writes."""
    for user in value.users:
        if user is write or (user.target in _WRITES and user.args[0] is value and list(user.users) == [write]):
            continue
        if viewed_arg(user) is not value or _is_read(user, write):
            return True
    return False


FILLED_MEMORY_PASS = Pass("filled_memory", filled_memory, filled_memory.__doc__ or "")
