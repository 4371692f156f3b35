"""Scans of the Triton printer: along a tile's rows, carried on from tile to tile where a row has several."""
from __future__ import annotations

from collections.abc import Iterable

import torch

from .ir import ONLINE, Reduce, Scan, Stmt
from .triton_spelling import TYPES, TritonStatements
from .triton_tiles import Tile

#: The language's own names of scans; others say how two elements are joined.
_WHOLE = {"sum": "cumsum", "prod": "cumprod"}


class ScanTiles(TritonStatements):
    """Lines of ``Scan`` on tiles of ``[rows, columns]``; the last columns of a row's last tile may lie behind its
    end, where they reach nothing before them."""

    tile: Tile

    def _start(self, stmt: Reduce | Scan) -> str:
        """The neutral element, in which a reduction or a scan begins."""
        if stmt.op in ("sum", "any", *ONLINE):
            return "0"
        if stmt.op in ("prod", "all"):
            return "1"
        largest, dtype = stmt.op in ("max", "argmax", "logsumexp"), self.dtypes[stmt.value]
        if dtype.is_floating_point:
            return 'float("-inf")' if largest else 'float("inf")'
        if dtype == torch.bool:
            return "0" if largest else "1"
        return str(torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max)

    def _scan_lines(self, scan: Scan, rows: int, columns: int, carried: bool, mask: str | None) -> list[str]:
        """The scan of a tile. ``carried`` adds the total of the tiles before and makes that of the next, for which
        ``mask`` leaves out columns behind the end."""
        row, axis = {a.symbol for a in self.nest.reduction}, 0 if scan.strip else 1
        same = not scan.strip and not self.nest.scopes[scan.value] - row  # for all rows
        tile = f"tl.broadcast_to({self.name(scan.value)}, [{1 if same else rows}, {columns}])"
        name, total, kind = self.name(scan.name), self.name("run_" + scan.name), TYPES[scan.dtype]
        joined = self._joined(scan)
        along = f"tl.{_WHOLE[scan.op]}({tile}, {axis})" if scan.op in _WHOLE else (
            f"tl.associative_scan({tile}, {axis}, {joined})")
        lines = [f"{name} = {along}.to({kind})"]
        if carried:
            kept = tile if mask is None else f"tl.where({mask}, {tile}, {self._start(scan)})"
            whole = f"tl.sum({kept}, {axis})" if scan.op == "sum" else f"tl.reduce({kept}, {axis}, {joined})"
            spread = "[None, :]" if scan.strip else "[:, None]"
            lines += [f"{name} = {joined}({total}, {name})",
                      f"{total} = {joined}({total}, {whole}{spread}).to({kind})"]
        return lines

    def _joined(self, scan: Scan) -> str:
        """The function that joins two of what is scanned."""
        integers = "" if scan.dtype.is_floating_point else "i"
        return {"sum": "rf_add", "prod": "rf_mul", "logsumexp": "rf_logaddexp", "max": f"rf_{integers}max",
                "min": f"rf_{integers}min"}[scan.op]

    def _first_totals(self, body: Iterable[Stmt], rows: int) -> list[str]:
        """What scans carry into the first tile of a row, or of a strip."""
        row = {a.symbol for a in self.nest.reduction}
        lines = []
        for scan in body:
            if isinstance(scan, Scan):
                shape = f"1, {self.tile.rblock}" if scan.strip else (
                    f"{rows if self.nest.scopes[scan.value] - row else 1}, 1")
                start, kind = self._start(scan), TYPES[scan.dtype]
                lines.append(f"{self.name('run_' + scan.name)} = tl.full([{shape}], {start}, {kind})")
        return lines
