"""What groups cost: unique bytes, and the operations of their members."""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from math import prod

import torch
from rooffuse.codegen.contraction import contraction_of
from rooffuse.codegen.invariant_axes import ACROSS, places_along
from rooffuse.codegen.ir import Kernel, Nest
from rooffuse.codegen.lower_domain import MOST_COLUMNS
from rooffuse.codegen.lower_reductions import Reduction
from rooffuse.codegen.traffic import kernel_traffic
from rooffuse.codegen.triton_tiles import PERSISTENT_ELEMENTS, RUNNING_PROGRAMS, power_of_two, rows_beside
from rooffuse.cost_model import Cost, Device, Estimate, estimate
from torch.fx import Node

from .computing import ISSUE_FACTOR, computing_seconds, rereading_seconds
from .matrix_prices import by_library, in_kernel
from .node_facts import NodeFacts, distinct_bytes, visited
from .units import Units

#: Neighbouring elements that a thread of a GPU's kernel takes together: 16 bytes of bfloat16.
THREAD_ELEMENTS = 8
#: Part of the time for bytes that counts even where operations hide it: loads and stores are operations, too, and no
#: processor hides all that they wait for. So of merges that save the same, the one that moves fewer bytes comes first,
#: and bytes spared by computing a value again are worth something to a kernel that operations bound.
HIDDEN = 0.25


class GroupPricer:
    """Prices sets of fusible units on one device, by the bytes that the merged kernel moves. ``holds`` says whether a
    nest keeps its rows on chip from one sweep to the next."""

    def __init__(self, units: Units, device: Device,
                 holds: Callable[[Kernel, Nest], bool] = lambda kernel, nest: True) -> None:
        self.units, self.device, self.holds = units, device, holds
        self._known: dict[Node, NodeFacts] = {}
        self._sizes: dict[Node, int] = {}
        self._known_sharing: dict[tuple[Node, Node], int] = {}
        self._kernel_prices: dict[tuple[str, int], tuple[Kernel, float]] = {}

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
        reductions = [r for n in members if (r := self.facts(n).reduction) is not None]
        shapes = {shape for n in members for shape in self.facts(n).row_shapes}
        rows = {self.facts(n).row_shapes[0] for n in members if self.facts(n).row_shapes}
        for node in sorted(members, key=self.units.position.__getitem__, reverse=True):
            facts = self.facts(node)
            count = facts.elements
            if facts.passes_on and self._passes(node, members, passing):
                passing.add(node)
            if count > 1 and not facts.once_a_row and facts.shape not in shapes:
                inside = [(u, piecewise) for u, piecewise in facts.readers if u in counts and u not in passing]
                count = max([count, *(counts[u] // self._shared(node, u, reductions)
                                      for u, piecewise in inside if not piecewise)])
                count = max([count, *(size for u, size in facts.passed_on if u in passing)])
                apart = sum(counts[u] for u, piecewise in inside if piecewise)
                count = max(count, apart) if len(inside) == 1 else count + apart
            counts[node] = min([count, *(max(n, facts.elements) for n in self._rows_over(facts, members, rows))])
        return counts

    def _shared(self, node: Node, user: Node, reductions: Sequence[Reduction]) -> int:
        """How many elements of ``user`` have the same element of a value that is evaluated but once for them: the
        columns of short rows, on a GPU the few neighbours that a thread takes together, and as many places along
        another axis as a program goes along, or as it has rows of ``reductions`` side by side."""
        if user in self.facts(node).column_of:
            return max(self.facts(user).elements // max(self.facts(node).elements, 1), 1)
        if self.device.kind == "cpu":
            last = visited(user).shape[-1:]
            seen = [shape[-1:] for u, shape in self.facts(node).spread if u is user]
            return last[0] if last and last[0] <= MOST_COLUMNS and all(n == (1,) for n in seen) else 1
        if reductions:
            return self._sharing(node, user, reductions)
        if (node, user) not in self._known_sharing:
            self._known_sharing[node, user] = self._sharing(node, user, ())
        return self._known_sharing[node, user]

    def _sharing(self, node: Node, user: Node, reductions: Sequence[Reduction]) -> int:
        value, found = visited(user), 0
        order = sorted((d for d, n in enumerate(value.shape) if n > 1), key=value.stride)
        for seen in (seen for u, seen in self.facts(node).spread if u is user):
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

    def _rows_over(self, facts: NodeFacts, members: Collection[Node], rows: Iterable[tuple[int, ...]]) -> Iterator[int]:
        """Numbers of rows, for each of the group's reductions along whose rows a value is spread and not read
        otherwise: it is evaluated once a row."""
        spread = [shape for user, shape in facts.spread if user in members] if rows else []
        for row in rows if spread else ():
            if all(len(shape) <= len(row) and all(n in (1, most) for n, most in zip(reversed(shape), reversed(row)))
                   for shape in spread):
                yield prod(row)

    def _passes(self, node: Node, members: Collection[Node], passing: Collection[Node]) -> bool:
        """Whether a concatenation goes to memory without being read: as an output, or through one that does."""
        users = self.units.users(node)
        if not any(u in members for u in users):
            return True
        return len(users) == 1 and users[0] in passing and all(
            size == self.facts(node).elements for _, size in self.facts(node).passed_on)

    def cost(self, members: Collection[Node], outputs: Iterable[Node]) -> Cost:
        """Each outside buffer once (as much of it as is looked at), each output once, FLOPs of all members."""
        touched: dict[Node, dict[Node, int]] = {}
        flops = written = added = 0
        outputs = frozenset(outputs)
        evaluations, sought = self._evaluations(members), self._sought(members, outputs)
        for node in members:
            facts = self.facts(node)
            flops += facts.flops * min(evaluations[node], sought.get(node, evaluations[node])) // max(facts.elements, 1)
            for source, argument, size in facts.reads:
                if source not in members:
                    parts = touched.setdefault(source, {})
                    if node in sought:
                        size = min(size, sought[node] * argument.meta["val"].dtype.itemsize)
                    parts[argument] = max(parts.get(argument, 0), size)
            written += facts.written
            added += facts.added
        bytes_read = sum(min(sum(parts.values()), max(self._size(source), max(parts.values())))
                         for source, parts in touched.items())
        written += sum(map(self._size, outputs))
        return Cost(flops, bytes_read + added, written)

    def _sought(self, members: Collection[Node], outputs: Collection[Node]) -> dict[Node, int]:
        """How many elements of a member are computed where the group only looks some up, as a loss those of its labels:
        no more than these are read for it."""
        found: dict[Node, int] = {}
        if not any(self.facts(n).looks_up for n in members):
            return found
        for node in sorted(members, key=self.units.position.__getitem__, reverse=True):
            users = [u for u in self.units.users(node) if u in members]
            if not users or node in outputs or self.facts(node).reduces or self.facts(node).stores:
                continue
            looks = [found.get(u, self._looks_up(u, node)) for u in users]
            if None not in looks:
                found[node] = sum(n for n in looks if n is not None)
        return found

    def _looks_up(self, user: Node, node: Node) -> int | None:
        """How many elements of ``node`` a user looks up, if that is all that it reads of it."""
        if not self.facts(user).looks_up:
            return None
        only = all(r.argument is user.args[0] for r in self.units.reads(user) if r.source is node)
        return self.facts(user).elements if only else None

    def _size(self, node: Node) -> int:
        if node not in self._sizes:
            self._sizes[node] = distinct_bytes(node)
        return self._sizes[node]

    def facts(self, node: Node) -> NodeFacts:
        """What prices need to know of one node."""
        if node not in self._known:
            self._known[node] = NodeFacts(node, self.units, self.device)
        return self._known[node]

    def is_library_call(self, members: Collection[Node]) -> bool:
        """Whether a group is a matrix product alone: the library's is better than a kernel's."""
        return len(members) == 1 and all(self.facts(n).product for n in members)

    def seconds(self, members: Collection[Node], outputs: Iterable[Node]) -> tuple[float, float]:
        """Seconds of one kernel of these members that stores these outputs, and how many its bytes take by
        themselves."""
        found = self.time(self.cost(members, outputs))
        products = [n for n in members if self.facts(n).product]
        if not products:
            return found.seconds, found.memory_s
        flops = {n: self.facts(n).product_flops for n in products}
        if self.is_library_call(members):
            body = max(by_library(products, flops, self.device), found.memory_s)
        else:
            computed = {n: any(r.source in members for r in self.units.reads(n)) for n in products}
            work = in_kernel(computed, flops, self.device)
            body = max(work.seconds, found.compute_s, found.memory_s / work.busy)
        return body + found.launch_s, found.memory_s

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
