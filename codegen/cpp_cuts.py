"""Loops cut where a condition on their axis changes, so that no piece tests it: a concatenation becomes two loops."""
from __future__ import annotations

from itertools import pairwise

from .cpp_columns import ColumnForm
from .index import affine
from .ir import Axis, Compute, Const, Index, Kernel, Nest, Stmt, Store

#: Most places at which the lane axis is cut, and the fewest lanes of a piece.
MAX_CUTS, MIN_PIECE = 4, 8


class CutLoops(ColumnForm):
    """Knows where conditions change along an axis, and prints those that are decided as constants."""

    def __init__(self, kernel: Kernel, nest: Nest) -> None:
        super().__init__(kernel, nest)
        self._decided: dict[str, bool] = {}

    def line(self, stmt: Stmt) -> str:
        if not isinstance(stmt, Store) and stmt.name in self._decided:
            return self.declare(stmt.name, stmt.dtype, "true" if self._decided[stmt.name] else "false")
        return super().line(stmt)

    def _thresholds(self, lane: Axis) -> dict[str, tuple[int, bool]]:
        """Conditions that change once along the lane axis: name to (position, truth before it)."""
        made = {s.name: s for s in self.nest.body if not isinstance(s, Store)}
        found: dict[str, tuple[int, bool]] = {}
        for stmt in self.nest.body:
            if not (isinstance(stmt, Compute) and stmt.op in ("lt", "le", "gt", "ge")):
                continue
            position, limit = (made[a] for a in stmt.args)
            if not (isinstance(position, Index) and isinstance(limit, Const)):
                continue
            coefficients, constant, others = affine(position.expr)
            if coefficients == {lane.symbol: 1} and not others:
                at = int(limit.value) - constant + (stmt.op in ("le", "gt"))
                found[stmt.name] = (at, stmt.op in ("lt", "le"))
        return found

    def _pieces(self, lane: Axis, smallest: int = MIN_PIECE) -> list[tuple[int, int]]:
        """``[begin, end)`` of the pieces of an axis, at least ``smallest`` long; one piece if that can't be."""
        cuts = sorted({at for at, _ in self._thresholds(lane).values() if 0 < at < lane.size})
        edges = [0, *cuts, lane.size]
        if len(cuts) > MAX_CUTS or any(b - a < smallest for a, b in pairwise(edges)):
            return [(0, lane.size)]
        return list(pairwise(edges))

    def _decide(self, axis: Axis, low: int, pieces: list[tuple[int, int]]) -> None:
        """Fix the conditions that hold throughout the piece that begins at ``low``."""
        if len(pieces) > 1:
            self._decided.update((n, before == (low < at)) for n, (at, before) in self._thresholds(axis).items())
