"""Segment reductions of the C++ printer: a row's results in an array, filled in one sweep, read in later ones."""
from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

import torch
from sympy import Symbol

from .cpp_reduce import Accumulators
from .ir import Axis, Reduce, Stmt, Store


class SegmentArrays(Accumulators):
    """``_summed`` are the segment reductions that are done: from then on they are read, not added to."""

    _summed: frozenset[str] = frozenset()

    def _results(self, reduce: Reduce) -> list[Axis]:
        """The reduction axes over which a segment reduction has a result each."""
        return [a for a in self.nest.reduction if a.symbol in self.nest.scopes[reduce.name]]

    def _at(self, reduce: Reduce) -> str:
        """The place of a result in its array."""
        return f"[{self._place_along(self._results(reduce))}]"

    def _declare_segments(self, reduce: Reduce) -> None:
        count = prod(a.size for a in self._results(reduce))
        names = [(f"acc_{reduce.name}", self._accumulator_type(reduce), self._start(reduce))]
        if reduce.op.startswith("arg"):
            names.append((f"at_{reduce.name}", self._place_type(), "0"))
        for name, kind, start in names:
            self.add(f"{kind} {name}[{count}];")
            self.add(f"for (int64_t l = 0; l < {count}; ++l) {name}[l] = {start};")

    def _in_lanes(self, reduce: Reduce) -> bool:
        """Whether the innermost loop adds up a segment, in a variable of its own."""
        lane = self.nest.reduction[-1].symbol
        return bool(reduce.along) and lane in reduce.along and not reduce.op.startswith("arg")

    def _open_lanes(self, reduces: Sequence[Reduce], lanes: int | None = None) -> None:
        """Before the innermost loop: the parts of segments that it adds up, each in a variable or in ``lanes``."""
        for reduce in reduces:
            if lanes is not None:
                self.add(f"{self._accumulator_type(reduce)} part_{reduce.name}[{lanes}];")
                self.add(f"for (int64_t l = 0; l < {lanes}; ++l) part_{reduce.name}[l] = {self._start(reduce)};")
                continue
            self.add(f"{self._accumulator_type(reduce)} part_{reduce.name} = {self._start(reduce)};")
            if self._watches_nan(reduce):
                self.add(f"int nan_{reduce.name} = 0;")

    def _close_lanes(self, reduces: Sequence[Reduce], lanes: int | None = None) -> None:
        """After it: the parts into the arrays."""
        for reduce in reduces:
            part = f"part_{reduce.name}"
            if lanes is not None:
                part = f"rf_{reduce.op}_of<{lanes}>({part})"
            elif self._watches_nan(reduce):
                suffix = "" if reduce.dtype == torch.float64 else "f"
                self.add(f'if (nan_{reduce.name}) {part} = __builtin_nan{suffix}("");')
            self._add_to_segment(reduce, part)

    def _is_added(self, stmt: Stmt) -> bool:
        """Whether a statement is a segment reduction that is being computed."""
        return isinstance(stmt, Reduce) and bool(stmt.along) and stmt.name not in self._summed

    def _segments_read(self, names: Collection[str]) -> list[Reduce]:
        """The finished ones among ``names`` that have several results a row."""
        return [r for r in self.nest.segmented if r.name in names and r.name in self._summed and self._results(r)]

    def _finish_segments(self, reduce: Reduce) -> None:
        self._summed |= {reduce.name}
        if not self._results(reduce):
            self.add(self.line(reduce))

    def _repeating(self, stmt: Stmt) -> list[str]:
        """Reduction axes whose loops repeat a store that is inside of them."""
        if not isinstance(stmt, Store):
            return []
        axes, scope = self.nest.reduction, self._scope(stmt)
        inside = max((k for k, a in enumerate(axes) if a.symbol in scope), default=0)
        return [a.symbol.name for a in axes[:inside] if a.symbol not in scope]

    def spell_store(self, stmt: Store) -> str:
        again = self._repeating(stmt)
        text = super().spell_store(stmt)
        return f"if ({' && '.join(f'{name} == 0' for name in again)}) {{ {text} }}" if again else text

    def _add_to_segment(self, reduce: Reduce, value: str) -> None:
        """Take a value into its segment's result, once where loops further out repeat it."""
        needed = self.nest.scopes[reduce.value] | set(reduce.along)
        axes = self.nest.reduction
        inside = max(k for k, a in enumerate(axes) if a.symbol in needed)
        again = [a.symbol.name for a in axes[:inside] if a.symbol not in needed]
        if again:
            self.open(f"if ({' && '.join(f'{name} == 0' for name in again)})")
        self._accumulate(reduce, False, self._at(reduce), value)
        self.close(bool(again))

    def _position(self, reduce: Reduce) -> str:
        if not reduce.along:
            return super()._position(reduce)
        return self._place_along(a for a in self.nest.reduction if a.symbol in reduce.along)

    def _scope(self, stmt: Stmt) -> frozenset[Symbol]:
        if self._is_added(stmt):
            assert isinstance(stmt, Reduce)
            return self.nest.scopes[stmt.value] | set(stmt.along)
        return super()._scope(stmt)

    def line(self, stmt: Stmt) -> str:
        if not isinstance(stmt, Reduce):
            return super().line(stmt)
        array = "at" if stmt.op.startswith("arg") else "acc"
        return self.declare(stmt.name, stmt.dtype, f"{array}_{stmt.name}{self._at(stmt)}")
