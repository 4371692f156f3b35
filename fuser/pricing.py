"""What nodes and groups cost: registry prices for single nodes, unique bytes for groups."""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from rooffuse.codegen.contraction import contraction_of
from rooffuse.codegen.fxinfo import op_name
from rooffuse.codegen.invariant_axes import ACROSS, places_along
from rooffuse.codegen.ir import Kernel, Nest
from rooffuse.codegen.lower_contractions import is_matrix_product
from rooffuse.codegen.lower_pieces import PASSED_ON
from rooffuse.codegen.lower_reductions import Reduction, is_reduction, reduction_of
from rooffuse.codegen.lower_stores import accumulates, is_store, iterated
from rooffuse.codegen.operations import operation_cost
from rooffuse.codegen.traffic import kernel_traffic
from rooffuse.codegen.triton_tiles import PERSISTENT_ELEMENTS, RUNNING_PROGRAMS, power_of_two, rows_beside
from rooffuse.cost_model import Cost, Device, Estimate, Price, estimate, price
from torch.fx import Node
from torch.fx.node import map_arg

from .computing import ISSUE_FACTOR, computing_seconds, rereading_seconds
from .matrix_prices import by_library, in_kernel
from .units import Units

#: Operators whose operands are evaluated under conditions, each apart, unless it is stored piece by piece.
PIECEWISE = frozenset({"cat", "concat", "stack", "constant_pad_nd", "slice_scatter", "select_scatter"})
#: Neighbouring elements that a thread of a GPU's kernel takes together: 16 bytes of bfloat16.
THREAD_ELEMENTS = 8
#: Operators that read the rows of their first argument that others choose.
LOOKUPS = frozenset({"embedding", "index_select", "gather", "index", "_unsafe_index"})


def node_price(node: Node) -> Price:
    """The registry's price of one call, from the fake values of its arguments and result."""

    def value(n: Node):
        return n.meta.get("val")

    return price(node.target, map_arg(node.args, value), map_arg(node.kwargs, value), value(node))


def distinct_bytes(node: Node) -> int:
    """Bytes of the different elements of a tensor: expanded dimensions count once."""
    value = node.meta["val"]
    return prod(n for n, s in zip(value.shape, value.stride()) if s != 0) * value.dtype.itemsize


def _visited(node: Node) -> torch.Tensor:
    """What a kernel goes through, element by element, for a node: a store's written rows, and not their destination."""
    visited: torch.Tensor = (iterated(node) if is_store(node) else node).meta["val"]
    return visited


@dataclass(frozen=True)
class _Facts:
    """What the price of every group with a node needs to know of it: its elements, its shape and, of a reduction, the
    shapes that have an element for each of its rows, its FLOPs, which units read it and whether piece by piece, how
    many elements of a view of it those put into a concatenation that may be stored so, the shapes as which they see it,
    the rows that it reduces, what it reads (buffer, view of it, bytes), and the bytes that it stores or adds to."""

    elements: int
    shape: tuple[int, ...]
    row_shapes: tuple[tuple[int, ...], ...]
    once_a_row: bool
    flops: int
    readers: tuple[tuple[Node, bool], ...]
    passed_on: tuple[tuple[Node, int], ...]
    spread: tuple[tuple[Node, tuple[int, ...]], ...]
    reduction: Reduction | None
    reads: tuple[tuple[Node, Node, int], ...]
    written: int
    added: int


def _row_shapes(node: Node) -> tuple[tuple[int, ...], ...]:
    """Shapes of a reduction's results, without the reduced dimensions and with them as ones."""
    if not is_reduction(node) or is_matrix_product(node):
        return ()
    reduction = reduction_of(node)
    kept = tuple(1 if d in reduction.dims else n for d, n in enumerate(reduction.shape))
    return kept, tuple(n for d, n in enumerate(reduction.shape) if d not in reduction.dims)


class GroupPricer:
    """Prices sets of fusible units on one device, by the bytes that the merged kernel moves. ``holds`` says whether a
    nest keeps its rows on chip from one sweep to the next."""

    def __init__(self, units: Units, device: Device,
                 holds: Callable[[Kernel, Nest], bool] = lambda kernel, nest: True) -> None:
        self.units, self.device, self.holds = units, device, holds
        self._known: dict[Node, _Facts] = {}
        self._known_sharing: dict[tuple[Node, Node], int] = {}
        self._kernel_prices: dict[tuple[str, int], tuple[Kernel, float]] = {}

    def _node_flops(self, node: Node) -> int:
        # A power by a number is a multiplication or a root nearly always; a remainder of whole numbers is a division.
        name = "mul" if op_name(node) == "pow" else op_name(node)
        if name in ("fmod", "remainder") and not node.meta["val"].is_floating_point():
            name = "div"
        heavy = operation_cost(name, self.device.kind != "cpu")
        return max(int(node_price(node).cost.flops), node.meta["val"].numel() * heavy if heavy > 1 else 0)

    def _evaluations(self, members: Collection[Node]) -> dict[Node, int]:
        """How many times the merged kernel evaluates each member's expression.

        A value that a consumer broadcasts over leading dimensions is evaluated anew for each of their positions; one
        that is broadcast along rows only, or along what the group reduces, is evaluated once a row. Each piece of a
        concatenation is evaluated, and thrown away, at the places of all others, and apart from what else needs it: a
        recurrence whose steps are stacked and then read would be quadratic work in one kernel. A concatenation that
        only goes to memory is
        stored piece by piece and asks each piece for its own elements.
        """
        counts: dict[Node, int] = {}
        passing: set[Node] = set()
        rows = {shape for n in members for shape in self._facts(n).row_shapes}
        reductions = [r for n in members if (r := self._facts(n).reduction) is not None]
        for node in sorted(members, key=self.units.position.__getitem__, reverse=True):
            facts = self._facts(node)
            count = facts.elements
            if op_name(node) in PASSED_ON and self._passes(node, members, passing):
                passing.add(node)
            if count > 1 and not facts.once_a_row and facts.shape not in rows:
                inside = [(u, piecewise) for u, piecewise in facts.readers if u in counts and u not in passing]
                count = max([count, *(counts[u] // self._shared(node, u, reductions)
                                      for u, piecewise in inside if not piecewise)])
                count = max([count, *(size for u, size in facts.passed_on if u in passing)])
                apart = sum(counts[u] for u, piecewise in inside if piecewise)
                count = max(count, apart) if len(inside) == 1 else count + apart
            counts[node] = min([count, *(max(n, facts.elements) for n in self._rows_over(facts, members, reductions))])
        return counts

    def _shared(self, node: Node, user: Node, reductions: Sequence[Reduction]) -> int:
        """How many elements of ``user`` have the same element of a value that a GPU evaluates but once for them: the
        few neighbours that a thread takes together, and as many places along another axis as a program goes along, or
        as it has rows of ``reductions`` side by side."""
        if self.device.kind == "cpu":
            return 1
        if reductions:
            return self._sharing(node, user, reductions)
        if (node, user) not in self._known_sharing:
            self._known_sharing[node, user] = self._sharing(node, user, ())
        return self._known_sharing[node, user]

    def _sharing(self, node: Node, user: Node, reductions: Sequence[Reduction]) -> int:
        value, found = _visited(user), 0
        order = sorted((d for d, n in enumerate(value.shape) if n > 1), key=value.stride)
        for seen in (seen for u, seen in self._facts(node).spread if u is user):
            seen = (1,) * (value.dim() - len(seen)) + seen
            near = order[:next((k for k, d in enumerate(order) if seen[d] != 1), len(order))]
            places = self._places(tuple(value.shape), [d for d in order[len(near):] if seen[d] == 1], reductions)
            run = min(prod(value.shape[d] for d in near), THREAD_ELEMENTS) * max(places, default=1)
            found = min(found or run, run)
        return max(found, 1)

    def _places(self, shape: tuple[int, ...], dims: Sequence[int], reductions: Sequence[Reduction]) -> list[int]:
        """How many places along each of ``dims`` a program takes at once, for values of ``shape``."""
        programs = RUNNING_PROGRAMS * self.device.sms
        if not reductions:
            return [places_along(shape[d], prod(shape) // (ACROSS * programs)) for d in dims]
        along = next((r for r in reductions if r.shape == shape), None)
        if along is None:
            return []
        most = min(PERSISTENT_ELEMENTS // (2 * power_of_two(along.count)), prod(shape) // along.count // programs)
        return [rows_beside(shape[d], most) for d in dims if d not in along.dims]

    def _rows_over(self, facts: _Facts, members: Collection[Node], reductions: Sequence[Reduction]) -> Iterator[int]:
        """Numbers of rows, for each reduction of the group along whose rows a value is spread and not read otherwise:
        it is evaluated once a row."""
        spread = [shape for user, shape in facts.spread if user in members] if reductions else []
        for reduction in reductions if spread else ():
            row = tuple(1 if d in reduction.dims else n for d, n in enumerate(reduction.shape))
            if all(len(shape) <= len(row) and all(n in (1, most) for n, most in zip(reversed(shape), reversed(row)))
                   for shape in spread):
                yield prod(reduction.shape) // reduction.count

    def _passes(self, node: Node, members: Collection[Node], passing: Collection[Node]) -> bool:
        """Whether a concatenation goes to memory without being read: as an output, or through one that does."""
        users = self.units.users(node)
        if not any(u in members for u in users):
            return True
        return len(users) == 1 and users[0] in passing and all(
            size == self._facts(node).elements for _, size in self._facts(node).passed_on)

    def cost(self, members: Collection[Node], outputs: Iterable[Node]) -> Cost:
        """Each outside buffer once (as much of it as is looked at), each output once, FLOPs of all members."""
        touched: dict[Node, dict[Node, int]] = {}
        flops = written = added = 0
        outputs = frozenset(outputs)
        evaluations, sought = self._evaluations(members), self._sought(members, outputs)
        for node in members:
            facts = self._facts(node)
            flops += facts.flops * min(evaluations[node], sought.get(node, evaluations[node])) // max(facts.elements, 1)
            for source, argument, size in facts.reads:
                if source not in members:
                    parts = touched.setdefault(source, {})
                    if node in sought:
                        size = min(size, sought[node] * argument.meta["val"].dtype.itemsize)
                    parts[argument] = max(parts.get(argument, 0), size)
            written += facts.written
            added += facts.added
        bytes_read = sum(min(sum(parts.values()), max(distinct_bytes(source), max(parts.values())))
                         for source, parts in touched.items())
        written += sum(distinct_bytes(o) for o in outputs)
        return Cost(flops, bytes_read + added, written)

    def _sought(self, members: Collection[Node], outputs: Collection[Node]) -> dict[Node, int]:
        """How many elements of a member are computed where the group only looks some up, as a loss those of its labels:
        no more than these are read for it."""
        found: dict[Node, int] = {}
        if not any(op_name(n) in LOOKUPS for n in members):
            return found
        for node in sorted(members, key=self.units.position.__getitem__, reverse=True):
            users = [u for u in self.units.users(node) if u in members]
            if not users or node in outputs or is_reduction(node) or is_store(node):
                continue
            looks = [found.get(u, self._looks_up(u, node)) for u in users]
            if None not in looks:
                found[node] = sum(n for n in looks if n is not None)
        return found

    def _looks_up(self, user: Node, node: Node) -> int | None:
        """How many elements of ``node`` a user looks up, if that is all that it reads of it."""
        if op_name(user) not in LOOKUPS:
            return None
        only = all(r.argument is user.args[0] for r in self.units.reads(user) if r.source is node)
        return self._facts(user).elements if only else None

    def _facts(self, node: Node) -> _Facts:
        if node not in self._known:
            value = _visited(node)
            reads: list[tuple[Node, Node, int]] = []
            for read in self.units.reads(node):
                if self.units.is_constant(read.source):
                    continue
                size = distinct_bytes(read.argument)
                if op_name(node) in LOOKUPS and read.argument is node.args[0]:
                    size = min(size, value.numel() * value.dtype.itemsize)
                reads.append((read.source, read.argument, size))
            stored = distinct_bytes(iterated(node)) if is_store(node) else 0
            self._known[node] = _Facts(
                value.numel(), tuple(value.shape), _row_shapes(node), value.numel() > 1 and value.shape[-1] == 1,
                0 if is_matrix_product(node) else self._node_flops(node),
                tuple((u, op_name(u) in PIECEWISE) for u in self.units.users(node) if not is_reduction(u)),
                tuple((u, r.argument.meta["val"].numel()) for u in self.units.users(node) if op_name(u) in PASSED_ON
                      for r in self.units.reads(u) if r.source is node),
                tuple((u, tuple(r.argument.meta["val"].shape)) for u in self.units.users(node)
                      for r in self.units.reads(u) if r.source is node),
                reduction_of(node) if is_reduction(node) and not is_matrix_product(node) else None,
                tuple(reads), stored, stored if is_store(node) and accumulates(node) else 0)
        return self._known[node]

    @staticmethod
    def is_library_call(members: Collection[Node]) -> bool:
        """Whether a group is a matrix product alone: the library's is better than a kernel's."""
        return len(members) == 1 and all(map(is_matrix_product, members))

    def seconds(self, members: Collection[Node], outputs: Iterable[Node]) -> float:
        """Seconds of one kernel of these members that stores these outputs."""
        found = self.time(self.cost(members, outputs))
        products = [n for n in members if is_matrix_product(n)]
        if not products:
            return found.seconds
        flops = {n: int(node_price(n).cost.flops) for n in products}
        if self.is_library_call(members):
            return max(by_library(products, flops, self.device), found.memory_s) + found.launch_s
        computed = {n: any(r.source in members for r in self.units.reads(n)) for n in products}
        work = in_kernel(computed, flops, self.device)
        return max(work.seconds, found.compute_s, found.memory_s / work.busy) + found.launch_s

    def time(self, cost: Cost) -> Estimate:
        """Seconds of a kernel of this cost, its operations at the rate of ``computing``."""
        operations = Cost(ISSUE_FACTOR * cost.flops, cost.bytes_read, cost.bytes_written)
        return estimate(operations, self.device, torch.float32, "vector")

    def moving(self, kernel: Kernel) -> float:
        """Seconds that a kernel moves bytes, with its launch; 0 for matrix products, whose price is another."""
        return self._of_kernel("moving", kernel, self._moving)

    def _moving(self, kernel: Kernel) -> float:
        if any(contraction_of(nest) is not None for nest in kernel.nests):
            return 0.0
        return self.time(Cost(0, *kernel_traffic(kernel, self.holds))).seconds

    def computing(self, kernel: Kernel) -> float:
        """Seconds that the operations of a kernel take by themselves."""
        return self._of_kernel("computing", kernel, lambda k: computing_seconds(k, self.device))

    def rereading(self, kernel: Kernel) -> float:
        """Seconds in which a kernel's programs read rows that several of them share."""
        return self._of_kernel("rereading", kernel, lambda k: rereading_seconds(k, self.device))

    def _of_kernel(self, what: str, kernel: Kernel, price: Callable[[Kernel], float]) -> float:
        """A price of a kernel, once for each: groups of equal structure share one object, whose contents are long."""
        key = (what, id(kernel))
        if key not in self._kernel_prices:
            self._kernel_prices[key] = (kernel, price(kernel))
        return self._kernel_prices[key][1]
