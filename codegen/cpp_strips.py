"""Sums, extrema and scans down the columns of a strip of rows, in arrays of a row's length that stay in cache."""
from __future__ import annotations

from math import prod

from .cpp_scans import STEPS
from .cpp_spelling import COMPUTE
from .cpp_turned import TurnedTiles
from .ir import Reduce
from .sweeps import finale, strip_reduces, strip_scans


class StripForm(TurnedTiles):
    """Declares, fills and stores what the columns of a nest with strip axes come to."""

    def _open_strip(self, k: int) -> None:
        """The loop over the strip's axis ``k``, outside of the first of which what the columns come to begins."""
        row = prod(a.size for a in self.nest.reduction)
        for reduce in strip_reduces(self.nest) if k == 0 else ():
            self.add(f"{COMPUTE[reduce.dtype]} strip_{reduce.name}[{row}];")
            self.add(f"for (int64_t l = 0; l < {row}; ++l) strip_{reduce.name}[l] = {self._start(reduce)};")
        for scan in strip_scans(self.nest) if k == 0 else ():
            self.add(f"{self._total_type(scan)} strip_{scan.name}[{row}];")
            self.add(f"for (int64_t l = 0; l < {row}; ++l) strip_{scan.name}[l] = {self._start(scan)};")
        self.open(self._loop(self.nest.strip[k]))

    def _add_to_strip(self, reduce: Reduce) -> None:
        kept = f"strip_{reduce.name}[{self._row_position()}]"
        if reduce.value in self.products:
            self._add_product(reduce, kept)
        else:
            self.add(f"{kept} = {STEPS[reduce.op].format(kept, reduce.value)};")

    def _print_finale(self) -> None:
        """What is known after the last row, column by column."""
        if not strip_reduces(self.nest):
            return
        axes = list(self.nest.reduction)
        self.open("")  # a scope of its own: what the rows needed, too, is declared again
        levels = self._by_depth(finale(self.nest), axes)
        for k, statements in enumerate(levels):
            if k == len(axes):
                for reduce in strip_reduces(self.nest):
                    total = f"strip_{reduce.name}[{self._row_position()}]"
                    self.add(self.declare(reduce.name, reduce.dtype, total))
            for stmt in statements:
                self.put(stmt)
            if k < len(axes):
                if k == len(axes) - 1:
                    self.add("#pragma omp simd")
                self.open(self._loop(axes[k]))
        self.close(len(axes) + 1)
