"""Sums, extrema and scans down the columns of a strip of rows, in arrays of a row's length that stay in cache."""
from __future__ import annotations

from math import prod

from .cpp_scans import STEPS
from .cpp_spelling import COMPUTE, literal
from .cpp_turned import TurnedTiles
from .ir import Reduce
from .sweeps import finale, strip_holder, strip_reduces, strip_scans


class StripForm(TurnedTiles):
    """Declares, fills and stores what the columns of a nest with strip axes come to."""

    def _open_strip(self) -> None:
        """What the columns come to begins, outside of the loops over a strip's rows."""
        row = prod(a.size for a in self.nest.reduction)
        arrays = [(f"strip_{r.name}", r, self._start(r)) for r in strip_reduces(self.nest)
                  if not strip_holder(self.nest, r)]
        arrays += [(f"top_{r.name}", r, literal(float("-inf"), r.dtype)) for _, r, _ in arrays if r.op == "expsum"]
        for name, reduce, start in arrays:
            self.add(f"{COMPUTE[reduce.dtype]} {name}[{row}];")
            self.add(f"for (int64_t l = 0; l < {row}; ++l) {name}[l] = {start};")
        for scan in strip_scans(self.nest):
            self.add(f"{self._total_type(scan)} strip_{scan.name}[{row}];")
            self.add(f"for (int64_t l = 0; l < {row}; ++l) strip_{scan.name}[l] = {self._start(scan)};")

    def _add_to_strip(self, reduce: Reduce) -> None:
        place = f"[{self._row_position()}]"
        kept = f"strip_{reduce.name}{place}"
        if reduce.op == "expsum":
            top, name, x = f"top_{reduce.name}{place}", reduce.name, reduce.value
            kind, low = COMPUTE[reduce.dtype], literal(float("-inf"), reduce.dtype)
            # Relative to the larger of the two, which counts one, the smaller takes the only exponential of a step.
            self.add(f"const {kind} was_{name} = {top}, less_{name} = {x} > was_{name} ? was_{name} : {x}, "
                     f"more_{name} = {x} > was_{name} ? {x} : was_{name};")
            self.add(f"const {kind} away_{name} = rf_exp_below(less_{name} - more_{name});")
            self.add(f"const {kind} part_{name} = less_{name} == {low} ? 0 : less_{name} == more_{name} ? 1 : "
                     f"away_{name};")
            self.add(f"{kept} = {x} > was_{name} ? {kept} * part_{name} + 1 : {kept} + part_{name};")
            self.add(f"{top} = more_{name};")
        elif strip_holder(self.nest, reduce):
            return
        elif reduce.value in self.products:
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
                    self.add(self.declare(reduce.name, reduce.dtype, self._strip_result(reduce)))
            for stmt in statements:
                self.put(stmt)
            if k < len(axes):
                if k == len(axes) - 1:
                    self.add("#pragma omp simd")
                self.open(self._loop(axes[k]))
        self.close(len(axes) + 1)

    def _strip_result(self, reduce: Reduce) -> str:
        """What a column came to; sums of exponentials of infinity, whose maximum counts as zero, are infinite."""
        place = f"[{self._row_position()}]"
        holder = strip_holder(self.nest, reduce)
        total, top = (f"{kind}_{(holder or reduce).name}{place}" for kind in ("strip", "top"))
        if holder:
            return f"{total} == {total} ? {top} : {total}"  # a maximum is what isn't a number, too
        high = literal(float("inf"), reduce.dtype)
        return f"{top} == {high} && {total} == {total} ? {high} : {total}" if reduce.op == "expsum" else total
