"""Scans of the C++ printer: a running total that each point of a row adds to and reads."""
from __future__ import annotations

from collections.abc import Iterable

import torch

from .cpp_loops import LoopWriter
from .cpp_spelling import COMPUTE
from .ir import Axis, Kernel, Nest, Scan, Stmt


class ScanLoops(LoopWriter):
    """Running totals in scalars, or, for scans that go side by side in neighbouring lanes, in arrays over the lanes."""

    column: Axis | None = None

    def __init__(self, kernel: Kernel, nest: Nest) -> None:
        super().__init__(kernel, nest)
        self._totals: dict[str, str] = {}
        self._starts = 0

    def _by_lane(self, scan: Scan) -> bool:
        return self.column is not None and self.column.symbol in self.nest.scopes[scan.name]

    def _start_scans(self, body: Iterable[Stmt], lanes: int = 0) -> None:
        """Declare the totals of the scans in ``body``, before the loops over a row. float32 runs in float64: a row's
        end has been rounded at every element before it. Each sweep that goes over a scan again has a total of its
        own, since all sweeps of a row share a scope."""
        self._starts += 1
        for scan in body:
            if not isinstance(scan, Scan):
                continue
            kind = "double" if scan.dtype == torch.float32 else COMPUTE[scan.dtype]
            start = 0 if scan.op == "sum" else 1
            total = self._totals[scan.name] = f"run{self._starts}_{scan.name}"
            if self._by_lane(scan):
                self.add(f"{kind} {total}[{lanes}];")
                self.add(f"for (int64_t j = 0; j < {lanes}; ++j) {total}[j] = {start};")
            else:
                self.add(f"{kind} {total} = {start};")

    def line(self, stmt: Stmt) -> str:
        if not isinstance(stmt, Scan):
            return super().line(stmt)
        total = f"{self._totals[stmt.name]}{'[j]' if self._by_lane(stmt) else ''}"
        step = f"{total} {'+' if stmt.op == 'sum' else '*'}= {stmt.value};"
        return f"{step} {self.declare(stmt.name, stmt.dtype, f'({COMPUTE[stmt.dtype]}){total}')}"
