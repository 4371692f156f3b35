"""Elements that lie a short row apart, moved through arrays of lanes: the points of many short rows side by side.

A vector with one element of each of sixteen rows of ten is as many loads, and g++ leaves a loop scalar that stores such
a vector. Loops of their own move some lanes' rows into arrays and results back; what is computed between is vectors. So
is what lanes look up for themselves in a table of elements that are too narrow to be gathered.
"""
from __future__ import annotations

from collections.abc import Sequence

from sympy import Expr

from .cpp_cuts import LONGEST_STRIDE, NATIVE_STRIDE, CutLoops
from .cpp_spelling import STORAGE
from .index import affine
from .ir import Axis, Compute, Load, Stmt, Store, operands
from .operations import operation_cost
from .turned_rows import Place

#: Lanes whose elements are moved at a time: arrays of a few KiB.
STAGED_LANES = 64
#: Operations of a function of a library's.
COSTLY = 16


class StagedLoops(CutLoops):
    """Prints the loop over a lane axis; ``_staged`` has the elements that it finds in an array, with their names."""

    def _print_loop(self, lane: Axis, first: str, last: str, body: Sequence[Stmt]) -> None:
        loaded = [s for s in body if isinstance(s, Load) and s.name not in self._arrays]
        loads, stores = (self._row_apart(lane, found) for found in (
            loaded, [s for s in body if isinstance(s, Store)]))
        loads |= self._far_loads(lane, body, loaded)
        shared = {buffer for buffer, _ in loads} & {buffer for buffer, _ in stores}
        looked_up = self._narrow_gathers(lane, loaded)
        outside = self._staged
        moved = {p: f"stage{k}[l]" for k, p in enumerate((*looked_up, *loads, *stores))
                 if p[0] not in shared and p not in outside and p not in self._blocks}
        if not moved or lane.symbol in self.colliding:
            super()._print_loop(lane, first, last, body)
            return
        self.open(f"for (int64_t base = {first}; base < {last}; base += {STAGED_LANES})")
        self.add(f"const int64_t lanes = RF_MIN(INT64_C({STAGED_LANES}), {last} - base);")
        for (buffer, _), name in moved.items():
            self.add(f"{STORAGE[self.kernel.buffer(buffer).dtype]} {name.removesuffix('[l]')}[{STAGED_LANES}];")
        elements = {(b, i): f"{b}[{self.spell_index(i)}]" for b, i in moved}
        before = [self.line(s) for s in self._needed(body, [p for p in looked_up if p in moved])]
        moves = [f"{name} = {elements[p]};" for p, name in moved.items() if p in loads or p in looked_up]
        self._move(lane, [*before, *moves])
        self._staged = {**outside, **moved}
        self._print_lane_loop(lane, "int64_t l = 0; l < lanes; ++l", body, f"const int64_t {lane.symbol} = base + l;")
        self._staged = outside
        self._move(lane, [f"{elements[p]} = {name};" for p, name in moved.items() if p in stores])
        self.close()

    def _row_apart(self, lane: Axis, accesses: Sequence[Load | Store]) -> dict[Place, None]:
        """Places of those accesses that are a short row apart from lane to lane, and together about all of that row,
        known before the lanes are computed."""
        groups: dict[tuple[str, int, Expr], dict[Place, None]] = {}
        for stmt in accesses:
            coefficients, constant, others = affine(stmt.index)
            stride = coefficients.get(lane.symbol, 0)
            plain = stmt.mask is None and not (isinstance(stmt, Store) and stmt.accumulate)
            known = not others and coefficients.keys() <= self.nest.ranges.keys()
            if plain and known and NATIVE_STRIDE < stride <= LONGEST_STRIDE:
                group = groups.setdefault((stmt.buffer, stride, stmt.index - constant), {})
                group[stmt.buffer, stmt.index] = None
        return {p: None for (_, stride, _), group in groups.items() if 2 * len(group) >= stride for p in group}

    def _far_loads(self, lane: Axis, body: Sequence[Stmt], loads: Sequence[Load]) -> dict[Place, None]:
        """Places of what lies apart where much is computed of it: g++ calls no vector of a library's functions on lanes
        that it would gather."""
        if not any(isinstance(s, Compute) and operation_cost(s.op) >= COSTLY for s in body):
            return {}
        strides = [(s, affine(s.index)) for s in loads if s.mask is None]
        return {(s.buffer, s.index): None for s, (coefficients, _, others) in strides
                if not others and coefficients.keys() <= self.nest.ranges.keys()
                and coefficients.get(lane.symbol, 0) > NATIVE_STRIDE}

    def _narrow_gathers(self, lane: Axis, loads: Sequence[Load]) -> dict[Place, None]:
        """Places of elements of less than four bytes that each lane looks up: processors gather none."""
        def varies(stmt: Load) -> bool:
            values = [s.name for s in stmt.index.free_symbols if s not in self.nest.ranges]
            return any(lane.symbol in self.nest.scopes[v] for v in values)

        return {(s.buffer, s.index): None for s in loads if s.mask is None
                and self.kernel.buffer(s.buffer).dtype.itemsize < 4 and s.buffer not in self.kernel.written
                and varies(s)}

    def _needed(self, body: Sequence[Stmt], places: Sequence[Place]) -> list[Stmt]:
        """What of ``body`` the places that are looked up hang on."""
        wanted = {s.name for _, index in places for s in index.free_symbols}
        found: list[Stmt] = []
        for stmt in reversed(body):
            if not isinstance(stmt, Store) and stmt.name in wanted:
                found.append(stmt)
                wanted.update(operands(stmt))
        return found[::-1]

    def _move(self, lane: Axis, lines: Sequence[str]) -> None:
        if not lines:
            return
        self.open("for (int64_t l = 0; l < lanes; ++l)")
        self.add(f"const int64_t {lane.symbol} = base + l;")
        for line in lines:
            self.add(line)
        self.close()
