"""Loops cut where a condition on their axis changes, so that no piece tests it: a concatenation becomes two loops, and
a row that is rolled around is read in two runs."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import MappingProxyType

from sympy import Expr, Symbol

from .conditions import MAX_CUTS, bent_places, thresholds, values_of, wraps
from .cpp_columns import ColumnForm
from .cpp_spelling import literal
from .index import FloorDiv, Mod, affine, bounds, rewrite, symbol
from .ir import Axis, Compute, Kernel, Load, Nest, Stmt, Store

#: Most conditions of which both sides are printed, one within the other.
MAX_BRANCHES = 3
#: Longest distance between lanes that g++ takes apart by itself, and longest of which it may know: at more they share
#: no cache lines.
NATIVE_STRIDE, LONGEST_STRIDE = 3, 64
#: Fewest lanes of a piece.
MIN_PIECE = 8

_OPPOSITE = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le"}


class CutLoops(ColumnForm):
    """Knows where conditions change along an axis, and prints those that are decided as constants. ``_vector`` is the
    axis whose loop is vectorised; ``_arrays`` says where values lie that were computed, and checked, before it, and
    ``_read_back`` are those of an earlier sweep, of which this one has nothing that they were made of."""

    _vector: Axis | None = None
    _read_back: frozenset[str] = frozenset()
    _arrays: Mapping[str, str] = MappingProxyType({})
    _pitches: Mapping[Expr, str] = MappingProxyType({})

    def __init__(self, kernel: Kernel, nest: Nest) -> None:
        super().__init__(kernel, nest)
        self._decided: dict[str, bool] = {}
        self._inside: dict[Symbol, tuple[int, int]] = {}  # the pieces of cut axes that are being printed
        self._straight: dict[Symbol, Expr] = {}  # what is looked up for in these, as it is in one of them

    def line(self, stmt: Stmt) -> str:
        if not isinstance(stmt, Store) and stmt.name in self._decided:
            return self.declare(stmt.name, stmt.dtype, "true" if self._decided[stmt.name] else "false")
        return super().line(stmt)

    def _pieces(self, lane: Axis, body: Sequence[Stmt], smallest: int = MIN_PIECE) -> list[tuple[int, int]]:
        """``[begin, end)`` of the pieces of an axis between which conditions of ``body`` change or its indices step, at
        least ``smallest`` long but for its borders; one piece if that can't be."""
        asked = {s.name for s in body if not isinstance(s, Store)}
        changes = {at for n, (at, _) in thresholds(self.nest, lane).items() if n in asked and 0 < at < lane.size}
        places = {s.name for stmt in body if isinstance(stmt, Load) for s in stmt.index.free_symbols}
        changes |= {low for n, bent in bent_places(self.nest, lane).items() if n in places for low, _, _ in bent[1:]}
        for cuts in (changes | wraps(body, lane), changes):
            pieces = list(pairwise([0, *sorted(cuts), lane.size]))
            sizes = [b - a for a, b in pieces]
            if len(cuts) <= MAX_CUTS and min([max(sizes), *sizes[1:-1]]) >= smallest:
                return pieces
        return [(0, lane.size)]

    def _conditions_before(self, body: Sequence[Stmt], lane: Axis, settled: Mapping[str, bool]) -> list[str]:
        """Conditions of loads in ``body``, and what those are the conjunctions of, that are known before the loop over
        ``lane`` and not ``settled`` yet: where all hold, as they do away from the border of what is padded, the loop
        needs none of them. A load under a condition that is the same for all lanes isn't vectorised."""
        made = values_of(self.nest)
        work = [s.mask for s in body if isinstance(s, Load) and s.mask is not None]
        found: dict[str, None] = {}
        while work:
            name = work.pop(0)
            stmt = made[name]
            if name in found or name in settled or name in self._decided:
                continue
            if lane.symbol not in self.nest.scopes[name]:
                found[name] = None
            if isinstance(stmt, Compute) and stmt.op == "and" and name not in self._read_back:
                work.extend(stmt.args)
        return list(found)

    def _changes_along(self, condition: str, axis: Axis) -> bool:
        """Whether a condition changes along an axis, as far as it isn't decided."""
        if condition in self._decided or axis.symbol not in self.nest.scopes[condition]:
            return False
        stmt = next(s for s in self.nest.body if not isinstance(s, Store) and s.name == condition)
        if isinstance(stmt, Compute) and stmt.op == "and":
            return any(self._changes_along(a, axis) for a in stmt.args)
        return True

    def spell_load(self, stmt: Load) -> str:
        """A conditional load whose place the loop can choose, where g++ makes no vectors of the load as it is."""
        place = self._chosen_place(stmt)
        if place is None:
            return super().spell_load(stmt)
        element = self.widen(stmt, f"{stmt.buffer}[{place}]")
        return f"rf_chosen({stmt.mask}, {element}, {literal(stmt.other, stmt.dtype)})"

    def _chosen_place(self, stmt: Load) -> str | None:
        """Where a load under a condition may read in any case; None for one that remains conditional."""
        axis = self._vector
        if axis is None or stmt.mask is None or stmt.mask in self._decided:
            return None
        index = stmt.index.xreplace(self._straight)
        step, size = affine(index)[0].get(axis.symbol, 0), self.kernel.buffer(stmt.buffer).size
        if self._changes_along(stmt.mask, axis):
            if abs(step) > 1:  # of loads side by side g++ 12 gives all vectors the condition of the first
                return f"{stmt.mask} ? {self.spell_index(index)} : 0"
            # A masked load of one element for all lanes is no vector.
            extent = None if self._depends(index, axis) else bounds(index, self.nest.ranges)
            return self.spell_index(index) if extent and extent[0] >= 0 and extent[1] < size else None
        # Nor is one under a condition that all lanes share, which is rather where all of them begin.
        begin = index - step * axis.symbol
        if step < 1 or self._depends(begin, axis) or step * (axis.size - 1) >= size:
            return None
        return f"({stmt.mask} ? {self.spell_index(begin)} : 0) + {self.spell_index(step * axis.symbol)}"

    def _depends(self, index: Expr, axis: Axis) -> bool:
        """Whether a place varies along an axis, as what is looked up for it may."""
        return any(s == axis.symbol or (s not in self.nest.ranges and axis.symbol in self.nest.scopes[s.name])
                   for s in index.free_symbols)

    def _settled(self, body: Sequence[Stmt], lane: Axis) -> Iterator[None]:
        """A loop for each outcome of the conditions that are known before it: the sides of a concatenation, or whether
        all hold. One condition that all lanes share makes g++ add one by one."""
        conditions = self._conditions_before(body, lane, {})
        sides = self._opposites(conditions)
        for holds in (True, False) if conditions else ():
            if sides is not None:
                now = self._following({sides[0]: holds, sides[1]: not holds}, conditions)
            else:  # where not all of several hold, any of them may
                now = dict.fromkeys(conditions, holds) if holds or len(conditions) == 1 else {}
            asked = [sides[0]] if sides is not None else conditions
            self.open(f"if ({' & '.join(asked)})" if holds else "else")
            if now:
                self.add("const bool " + ", ".join(f"{n} = {str(t).lower()}" for n, t in now.items()) + ";")
            yield
            self.close()
        if not conditions:
            yield

    def _print_block(self, varying: Sequence[Stmt], lane: Axis, shared: list[str], step: int, inside_sweep: bool
                     ) -> None:
        for _ in self._settled(varying, lane):
            super()._print_block(varying, lane, shared, step, inside_sweep)

    def _opposites(self, conditions: Sequence[str]) -> tuple[str, str] | None:
        """Two of ``conditions`` of which always exactly one holds: the sides of a concatenation."""
        made = values_of(self.nest)
        sides: dict[tuple[str, ...], str] = {}
        for name in conditions:
            stmt = made[name]
            if isinstance(stmt, Compute) and stmt.op in _OPPOSITE:
                other = sides.get((_OPPOSITE[stmt.op], *stmt.args))
                if other is not None:
                    return other, name
                sides[(stmt.op, *stmt.args)] = name
        return None

    def _following(self, settled: Mapping[str, bool], conditions: Sequence[str]) -> dict[str, bool]:
        """``settled`` with the conjunctions among ``conditions`` that it settles."""
        result = dict(settled)
        for stmt in self.nest.body:
            if isinstance(stmt, Compute) and stmt.op == "and" and stmt.name in conditions:
                known = [result.get(a) for a in stmt.args]
                if False in known or None not in known:
                    result[stmt.name] = False not in known
        return result

    def _print_points(self, lane: Axis, first: str, last: str, body: Sequence[Stmt],
                      settled: Mapping[str, bool] | None = None, branches: int = MAX_BRANCHES) -> None:
        """The loop over ``[first, last)`` of the lane axis, twice if conditions on other axes may all hold, and apart
        for each side of what is concatenated along those."""
        settled = settled or {}
        conditions = self._conditions_before(body, lane, settled)
        sides = self._opposites(conditions) if branches else None
        if sides is not None:
            for holds in (True, False):
                now = self._following({**settled, sides[0]: holds, sides[1]: not holds}, conditions)
                self.open(f"if ({sides[0]})" if holds else "else")
                self.add("const bool " + ", ".join(
                    f"{n} = {str(t).lower()}" for n, t in now.items() if n not in settled) + ";")
                self._print_points(lane, first, last, body, now, branches - 1)
                self.close()
            return
        if conditions:
            self.open(f"if ({' & '.join(conditions)})")
            self.add("const bool " + ", ".join(f"{name} = true" for name in conditions) + ";")
            self._print_loop(lane, first, last, body)
            self.close()
            self.open("else")
        self._print_loop(lane, first, last, body)
        self.close(bool(conditions))

    def _print_loop(self, lane: Axis, first: str, last: str, body: Sequence[Stmt]) -> None:
        piece = self._inside.get(lane.symbol, (0, lane.size))
        with self._lane_blocks(lane, first, last, self._streamed(lane, body, *piece)) as (control, start):
            self._print_lane_loop(lane, control, body, start)

    def _print_lane_loop(self, lane: Axis, control: str, body: Sequence[Stmt], start: str = "") -> None:
        """A loop over lanes, which are vectors where no two store to one place."""
        with self._looking_up(body), self._far_apart(lane, body):
            if lane.symbol not in self.colliding:
                self.add(f"#pragma omp simd{self._asked}")
            self.open(f"for ({control})")
            if start:
                self.add(start)
            self.add_all(body)
            self.close()

    @contextmanager
    def _far_apart(self, lane: Axis, body: Sequence[Stmt]) -> Iterator[None]:
        """Around a loop over lanes: distances between lanes that several accesses of a buffer share are not for g++ to
        know if they are long."""
        seen = Counter((s.buffer, affine(s.index)[0].get(lane.symbol, 0)) for s in body
                       if isinstance(s, Store) or (isinstance(s, Load) and s.name not in self._arrays))
        far = sorted({step for (_, step), count in seen.items() if count > 1 and step > LONGEST_STRIDE})
        outside = self._pitches
        if far and lane.symbol not in self.colliding:
            self.open("")
            for k, step in enumerate(far):
                self.add(f"const int64_t pitch{k} = rf_pitch({step});")
            self._pitches = {step * lane.symbol: f"(pitch{k} * {lane.symbol})" for k, step in enumerate(far)}
        yield
        if self._pitches is not outside:
            self.close()
        self._pitches = outside

    @contextmanager
    def _looking_up(self, body: Sequence[Stmt]) -> Iterator[None]:
        """Around loops over lanes: whether a place that is looked up is out of range is asked of all of them together,
        as a branch for each would leave them no vectors."""
        self._gathers = any(isinstance(s, Compute) and s.op == "bounded" and s.name not in self._arrays for s in body)
        if self._gathers:
            self.open("")
            self.add("int outside = 0;")
        yield
        if self._gathers:
            self.add("if (outside) rf_status = 1;")
            self.close()
        self._gathers = False

    @property
    def _asked(self) -> str:
        """The clause of a vectorised loop for what is asked of its lanes."""
        return " reduction(| : outside)" if self._gathers else ""

    @contextmanager
    def _in_piece(self, axis: Axis, piece: tuple[int, int]) -> Iterator[None]:
        """What holds throughout a piece of an axis: conditions as constants, indices without what doesn't step."""
        decided, inside, straight = dict(self._decided), dict(self._inside), dict(self._straight)
        low, high = piece
        if high - low < axis.size:
            self._inside[axis.symbol] = piece
            self._decided.update((n, before == (low < at)) for n, (at, before) in thresholds(self.nest, axis).items())
            self._straight.update((symbol(n), place) for n, bent in bent_places(self.nest, axis).items()
                                  for begin, end, place in bent if begin <= low and high <= end)
        yield
        self._decided, self._inside, self._straight = decided, inside, straight

    def spell_index(self, expr: Expr) -> str:
        if self._straight and not self._straight.keys().isdisjoint(expr.free_symbols):
            expr = expr.xreplace(self._straight)
        for axis, (low, high) in self._inside.items() if expr.has(FloorDiv, Mod) else ():
            if axis in expr.free_symbols:
                offset = symbol(f"{axis.name}o")
                expr = rewrite(expr, {axis: offset + low}, {**self.nest.ranges, offset: high - low})
                expr = expr.xreplace({offset: axis - low})
        return self._pitches[expr] if expr in self._pitches else super().spell_index(expr)

    def spell_place(self, stmt: Load | Store) -> str:
        text = super().spell_place(stmt)
        values = stmt.index.free_symbols - self.nest.ranges.keys()
        looked_up = bool(values) and (self._gathers or any(v.name in self._arrays for v in values))
        small = self.kernel.buffer(stmt.buffer).size < 1 << 31
        return f"(int32_t){text}" if looked_up and small else text  # of wider places g++ makes no vectors
