"""Scans of the Triton printer: along a tile's rows, carried on from tile to tile where a row has several."""
from __future__ import annotations

from collections.abc import Iterable

from .ir import Scan, Stmt
from .triton_spelling import TYPES, TritonStatements


class ScanTiles(TritonStatements):
    """Lines of ``Scan`` on tiles of ``[rows, columns]``; the last columns of a row's last tile may lie behind its
    end, where they reach nothing before them."""

    def _scan_lines(self, scan: Scan, rows: int, columns: int, carried: bool, mask: str | None) -> list[str]:
        """The scan of a tile. ``carried`` adds the total of the tiles before and makes that of the next, for which
        ``mask`` leaves out columns behind the end."""
        row = {a.symbol for a in self.nest.reduction}
        same = not self.nest.scopes[scan.value] - row  # for all rows
        tile = f"tl.broadcast_to({self.name(scan.value)}, [{1 if same else rows}, {columns}])"
        name, total, sums = self.name(scan.name), self.name("run_" + scan.name), scan.op == "sum"
        lines = [f"{name} = tl.{'cumsum' if sums else 'cumprod'}({tile}, 1).to({TYPES[scan.dtype]})"]
        if carried:
            sign, neutral = ("+", "0") if sums else ("*", "1")
            kept = tile if mask is None else f"tl.where({mask}, {tile}, {neutral})"
            whole = f"tl.sum({kept}, 1)" if sums else f"tl.reduce({kept}, 1, rf_mul)"
            lines += [f"{name} = {total} {sign} {name}",
                      f"{total} = ({total} {sign} {whole}[:, None]).to({TYPES[scan.dtype]})"]
        return lines

    def _first_totals(self, body: Iterable[Stmt], rows: int) -> list[str]:
        """What scans carry into the first tile of a row."""
        row = {a.symbol for a in self.nest.reduction}
        return [f"{self.name('run_' + s.name)} = tl.full([{rows if self.nest.scopes[s.value] - row else 1}, 1], "
                f"{0 if s.op == 'sum' else 1}, {TYPES[s.dtype]})" for s in body if isinstance(s, Scan)]
