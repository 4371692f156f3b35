"""Scans of the C++ printer: a running total that each point of a row joins and reads."""
from __future__ import annotations

from collections.abc import Iterable

import torch

from .cpp_spelling import COMPUTE, literal
from .cpp_streams import StreamedStores
from .ir import Axis, Kernel, Nest, Reduce, Scan, Stmt

STEPS = {"sum": "{0} + {1}", "prod": "{0} * {1}", "max": "rf_max({0}, {1})", "min": "rf_min({0}, {1})",
          "logsumexp": "rf_logaddexp({0}, {1})"}


class ScanLoops(StreamedStores):
    """Running totals in scalars, or, for scans that go side by side in neighbouring lanes, in arrays over the lanes."""

    column: Axis | None = None

    def __init__(self, kernel: Kernel, nest: Nest) -> None:
        super().__init__(kernel, nest)
        self._totals: dict[str, str] = {}
        self._starts = 0

    def _row_position(self) -> str:
        """Position in the row, counted over all reduction axes."""
        return self._place_along(self.nest.reduction)

    @staticmethod
    def _place_along(axes: Iterable[Axis]) -> str:
        """Row-major position along ``axes``."""
        text = "0"
        for axis in axes:
            text = axis.symbol.name if text == "0" else f"({text}) * {axis.size} + {axis.symbol}"
        return text

    def _start(self, stmt: Reduce | Scan) -> str:
        """The neutral element, in which a reduction or a scan begins."""
        dtype = self.dtypes[stmt.value]
        if stmt.op in ("sum", "prod", "expsum"):
            return literal(1 if stmt.op == "prod" else 0, stmt.dtype)
        if stmt.op in ("any", "all"):
            return "0" if stmt.op == "any" else "1"
        largest = stmt.op in ("max", "argmax", "logsumexp")
        if dtype == torch.bool:
            return "false" if largest else "true"
        if dtype.is_floating_point:
            return literal(float("-inf") if largest else float("inf"), dtype)
        limits = torch.iinfo(dtype)
        return literal(limits.min if largest else limits.max, dtype)

    def _by_lane(self, scan: Scan) -> bool:
        return self.column is not None and self.column.symbol in self.nest.scopes[scan.name]

    def _start_scans(self, body: Iterable[Stmt], lanes: int = 0) -> None:
        """Declare the totals of the scans in ``body``, before the loops over a row. float32 adds up and multiplies in
        float64: a row's end has been rounded at every element before it. Each sweep that goes over a scan again has a
        total of its own, since all sweeps of a row share a scope."""
        self._starts += 1
        for scan in body:
            if not isinstance(scan, Scan) or scan.strip:
                continue
            kind, start = self._total_type(scan), self._start(scan)
            total = self._totals[scan.name] = f"run{self._starts}_{scan.name}"
            if self._by_lane(scan):
                self.add(f"{kind} {total}[{lanes}];")
                self.add(f"for (int64_t j = 0; j < {lanes}; ++j) {total}[j] = {start};")
            else:
                self.add(f"{kind} {total} = {start};")

    @staticmethod
    def _total_type(scan: Scan) -> str:
        exact = scan.op in ("max", "min") or scan.dtype != torch.float32
        return COMPUTE[scan.dtype] if exact else "double"

    def line(self, stmt: Stmt) -> str:
        if not isinstance(stmt, Scan):
            return super().line(stmt)
        if stmt.strip:
            total = f"strip_{stmt.name}[{self._row_position()}]"
        else:
            total = f"{self._totals[stmt.name]}{'[j]' if self._by_lane(stmt) else ''}"
        step = f"{total} = {STEPS[stmt.op].format(total, stmt.value)};"
        return f"{step} {self.declare(stmt.name, stmt.dtype, f'({COMPUTE[stmt.dtype]}){total}')}"
