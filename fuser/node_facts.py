"""What single nodes cost, and what the prices of all groups that they may be in need to know of them."""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from rooffuse.codegen.fxinfo import op_name
from rooffuse.codegen.lower_contractions import is_matrix_product
from rooffuse.codegen.lower_domain import MOST_COLUMNS
from rooffuse.codegen.lower_pieces import PASSED_ON
from rooffuse.codegen.lower_reductions import Reduction, is_reduction, reduction_of
from rooffuse.codegen.lower_scans import is_scan
from rooffuse.codegen.lower_stores import accumulates, is_store, iterated
from rooffuse.codegen.operations import operation_cost
from rooffuse.cost_model import Device, Price, price
from rooffuse.passes.graph import argument, is_concrete, tensor_meta, viewed_arg
from torch.fx import Node
from torch.fx.node import map_arg

from .units import Units

#: Operators whose operands are evaluated under conditions, each apart, unless it is stored piece by piece.
PIECEWISE = frozenset({"cat", "concat", "stack", "constant_pad_nd", "slice_scatter", "select_scatter"})
#: Operators that read the rows of their first argument that others choose.
LOOKUPS = frozenset({"embedding", "index_select", "gather", "index", "_unsafe_index"})


def node_price(node: Node) -> Price:
    """The registry's price of one call, from the fake values of its arguments and result."""

    def value(n: Node):
        return n.meta.get("val")

    found = price(node.target, map_arg(node.args, value), map_arg(node.kwargs, value), value(node))
    again = _read_again(node) if found.kind == "matmul" else 0
    return replace(found, cost=replace(found.cost, bytes_read=found.cost.bytes_read - again)) if again else found


def _read_again(node: Node) -> int:
    """Bytes of operands whose memory is that of other operands, too, as of both factors of a Gram matrix."""
    sizes: dict[Node, list[int]] = {}
    for operand in node.all_input_nodes:
        value = tensor_meta(operand)
        if value is None or not is_concrete((*value.shape, *value.stride())):
            return 0
        root = operand
        while (source := viewed_arg(root)) is not None and tensor_meta(source) is not None:
            root = source
        sizes.setdefault(root, []).append(distinct_bytes(operand))
    return sum(sum(found) - min(sum(found), max(*found, distinct_bytes(root)))
               for root, found in sizes.items() if len(found) > 1)


def _of_columns(node: Node) -> bool:
    """Whether a concatenation is of the few columns of short rows, each of which a kernel has as a value of its own."""
    last = node.meta["val"].dim() - 1
    if op_name(node) == "constant_pad_nd":
        along = last if not any(node.args[1][2:]) else 0
    else:
        along = argument(node, "dim") % (last + 1)
    return last > 0 and along == last and node.meta["val"].shape[last] <= MOST_COLUMNS


def distinct_bytes(node: Node) -> int:
    """Bytes of the different elements of a tensor: expanded dimensions count once."""
    value = node.meta["val"]
    return prod(n for n, s in zip(value.shape, value.stride()) if s != 0) * value.dtype.itemsize


def visited(node: Node) -> torch.Tensor:
    """What a kernel goes through, element by element, for a node: a store's written rows, and not their destination."""
    value: torch.Tensor = (iterated(node) if is_store(node) else node).meta["val"]
    return value


@dataclass(frozen=True)
class NodeFacts:
    """One unit on one device. Groups are priced thousands of times, their nodes looked at once."""

    node: Node
    units: Units
    device: Device

    # -- which rules are its own --------------------------------------------------------------------------------

    @cached_property
    def stores(self) -> bool:
        return is_store(self.node)

    @cached_property
    def reduces(self) -> bool:
        return is_reduction(self.node)

    @cached_property
    def product(self) -> bool:
        """Whether it is a matrix product."""
        return is_matrix_product(self.node)

    @cached_property
    def looks_up(self) -> bool:
        return op_name(self.node) in LOOKUPS

    @cached_property
    def passes_on(self) -> bool:
        """Whether it is a concatenation that may be stored piece by piece."""
        return op_name(self.node) in PASSED_ON

    @cached_property
    def needs_lowering(self) -> bool:
        """Whether a merge with it can fail or compute more than the graph says."""
        return self.stores or self.reduces or is_scan(self.node) or op_name(self.node) in PIECEWISE

    # -- its values ---------------------------------------------------------------------------------------------

    @cached_property
    def elements(self) -> int:
        return visited(self.node).numel()

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(visited(self.node).shape)

    @cached_property
    def reduction(self) -> Reduction | None:
        """The rows that it reduces."""
        return reduction_of(self.node) if self.reduces and not self.product else None

    @cached_property
    def row_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of a reduction's results, without the reduced dimensions and with them as ones."""
        if self.reduction is None:
            return ()
        shape, dims = self.reduction.shape, self.reduction.dims
        kept = tuple(1 if d in dims else n for d, n in enumerate(shape))
        return kept, tuple(n for d, n in enumerate(shape) if d not in dims)

    @cached_property
    def once_a_row(self) -> bool:
        return self.elements > 1 and self.shape[-1] == 1

    @cached_property
    def flops(self) -> int:
        """Of one evaluation of all elements; 0 for matrix products, which ``product_flops`` are of."""
        if self.product:
            return 0
        # A power by a number is a multiplication or a root nearly always; a remainder of whole numbers is a division.
        name = "mul" if op_name(self.node) == "pow" else op_name(self.node)
        if name in ("fmod", "remainder") and not self.node.meta["val"].is_floating_point():
            name = "div"
        heavy = operation_cost(name, self.device.kind != "cpu")
        return max(int(node_price(self.node).cost.flops),
                   self.node.meta["val"].numel() * heavy if heavy > 1 else 0)

    @cached_property
    def product_flops(self) -> int:
        return int(node_price(self.node).cost.flops) if self.product else 0

    # -- who reads it -------------------------------------------------------------------------------------------

    @cached_property
    def readers(self) -> tuple[tuple[Node, bool], ...]:
        """Units that read it and don't reduce, and whether they do so piece by piece."""
        return tuple((u, op_name(u) in PIECEWISE and u not in self.column_of) for u in self.units.users(self.node)
                     if not is_reduction(u))

    @cached_property
    def column_of(self) -> frozenset[Node]:
        """Concatenations of columns that it is one of."""
        return frozenset(u for u in self.units.users(self.node) if op_name(u) in PIECEWISE and _of_columns(u))

    @cached_property
    def spread(self) -> tuple[tuple[Node, tuple[int, ...]], ...]:
        """Units that read it, and the shapes as which they see it."""
        return tuple((u, tuple(r.argument.meta["val"].shape)) for u in self.units.users(self.node)
                     for r in self.units.reads(u) if r.source is self.node)

    @cached_property
    def passed_on(self) -> tuple[tuple[Node, int], ...]:
        """Concatenations that read it, and how many elements of it they put in."""
        return tuple((u, prod(shape)) for u, shape in self.spread if op_name(u) in PASSED_ON)

    # -- what it reads and writes -------------------------------------------------------------------------------

    @cached_property
    def reads(self) -> tuple[tuple[Node, Node, int], ...]:
        """Buffer, view of it, bytes."""
        found = []
        for read in self.units.reads(self.node):
            if self.units.is_constant(read.source):
                continue
            size = distinct_bytes(read.argument)
            if self.looks_up and read.argument is self.node.args[0]:
                value = visited(self.node)
                size = min(size, value.numel() * value.dtype.itemsize)
            found.append((read.source, read.argument, size))
        return tuple(found)

    @cached_property
    def parts_of(self) -> frozenset[Node]:
        """Values of which it reads a part, or some elements again and again."""
        return frozenset(r.source for r in self.units.reads(self.node) if r.argument is not r.source
                         and r.argument.meta["val"].numel() != r.source.meta["val"].numel())

    @cached_property
    def written(self) -> int:
        """Bytes that it stores into a buffer that is there already."""
        return distinct_bytes(iterated(self.node)) if self.stores else 0

    @cached_property
    def added(self) -> int:
        """Bytes of ``written`` that are read first, to be added to."""
        return self.written if self.stores and accumulates(self.node) else 0
