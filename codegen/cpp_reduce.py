"""Accumulators of the C++ printer: how each reduction starts, takes a value, and finishes."""
from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from .cpp_scans import ScanLoops
from .cpp_spelling import COMPUTE, literal
from .ir import Reduce

#: Elements of a row after which an online sum goes on: their maximum is known before their exponentials are added up,
#: while they are in the first-level cache.
ONLINE_BLOCK = 1024


class Accumulators(ScanLoops):
    """Reductions in scalars (row form) or in arrays over a block of lanes (column form). ``_short`` says that lanes of
    several short loops keep parts apart, ``_apart`` how many lanes of one loop do, and ``_taken`` how many of a step's
    have been taken before and keep what they had."""

    _short = False
    _apart: int | None = None
    _taken = 0

    def _place_type(self) -> str:
        """The narrowest integer that holds places in a row: as many lanes as floats have."""
        return "int32_t" if prod(a.size for a in self.nest.reduction) < 1 << 31 else "int64_t"

    def _position(self, reduce: Reduce) -> str:
        """Position of an element among those that are reduced to one result."""
        return self._row_position()

    def _declare_accumulator(self, reduce: Reduce, lanes: int | None = None) -> None:
        if reduce.op == "expsum":
            kind, low = COMPUTE[reduce.dtype], literal(float("-inf"), reduce.dtype)
            self.add(f"{kind} acc_{reduce.name} = 0, top_{reduce.name} = {low};")
            return
        array = "" if lanes is None else f"[{lanes}]"
        names = [(f"acc_{reduce.name}", self._accumulator_type(reduce), self._start(reduce))]
        if reduce.op in ("argmax", "argmin"):
            # A row of nothing but -inf has its first element: none is better than where its lane begins.
            names.append((f"at_{reduce.name}", self._place_type(), "0" if self._apart is None else "j"))
        elif self._watches_nan(reduce) and lanes is None:
            names.append((f"nan_{reduce.name}", "int", "0"))
        for name, kind, start in names:
            if lanes is None:
                self.add(f"{kind} {name} = {start};")
            else:
                self.add(f"{kind} {name}{array};")
                self.add(f"for (int64_t j = 0; j < {lanes}; ++j) {name}[j] = {start};")

    def _accumulator_type(self, reduce: Reduce) -> str:
        if reduce.op in ("any", "all"):
            return "int"
        return COMPUTE[self.dtypes[reduce.value] if reduce.op.startswith("arg") else reduce.dtype]

    def _watches_nan(self, reduce: Reduce) -> bool:
        return reduce.op in ("max", "min") and reduce.dtype.is_floating_point

    def _clauses(self, reduces: Sequence[Reduce], blocked: bool) -> str | None:
        """OpenMP reduction clauses, or None where the loop can't be vectorised."""
        if any(r.op.startswith("arg") for r in reduces):
            return None
        groups: dict[str, list[str]] = {}
        for reduce in reduces:
            kind = {"sum": "+", "prod": "*", "any": "|", "all": "&"}.get(reduce.op, reduce.op)
            if reduce.op == "expsum":  # of a block, first of all its largest element
                groups.setdefault("max", []).append(f"high_{reduce.name}")
                continue
            if self._watches_nan(reduce):
                kind = {"max": "RF_TOP", "min": "RF_LOW"}[kind]
            part = bool(reduce.along) or (blocked and reduce.op in ("sum", "prod"))
            groups.setdefault(kind, []).append(f"part_{reduce.name}" if part else f"acc_{reduce.name}")
            if self._watches_nan(reduce):
                groups.setdefault("|", []).append(f"nan_{reduce.name}")
        return "".join(f" reduction({kind} : {', '.join(names)})" for kind, names in groups.items())

    def _accumulate(self, reduce: Reduce, blocked: bool, lane: str = "", value: str = "", acc: str = "") -> None:
        """Take ``value``, by default the one that is reduced, into the accumulator, or ``acc``; ``blocked`` into a part
        of it, and at index ``lane`` where each lane has its own."""
        value = value or reduce.value
        acc = acc or f"{'part' if self._short and lane else 'acc'}_{reduce.name}{lane}"
        if self._taken and lane:
            self.add(f"const {self._accumulator_type(reduce)} before_{reduce.name} = {acc};")
        self._take(reduce, blocked, lane, value, acc)
        if self._taken and lane:
            self.add(f"{acc} = l < {self._taken} ? before_{reduce.name} : {acc};")

    def _take(self, reduce: Reduce, blocked: bool, lane: str, value: str, acc: str) -> None:
        """Print how an accumulator comes to its next value."""
        if reduce.op == "expsum":
            high = f"high_{reduce.name}"
            self.add(f"kept_{reduce.name}[{self.nest.reduction[-1].symbol} - block] = {value};")
            self.add(f"{high} = {value} > {high} ? {value} : {high};")
        elif reduce.op in ("sum", "prod"):
            target = f"part_{reduce.name}{lane}" if blocked else acc
            if value in self.products:
                self._add_product(reduce, target)
            else:
                self.add(f"{target} {'+' if reduce.op == 'sum' else '*'}= {value};")
        elif reduce.op in ("any", "all"):
            self.add(f"{acc} {'|' if reduce.op == 'any' else '&'}= (int){value};")
        elif reduce.op in ("argmax", "argmin"):
            better = f"{value} {'>' if reduce.op == 'argmax' else '<'} {acc}"
            if self.dtypes[value].is_floating_point:
                better = f"({better}) | (({value} != {value}) & ({acc} == {acc}))"
            self.add(f"const bool better_{reduce.name} = {better};")
            at, chosen = f"at_{reduce.name}{lane}", f"better_{reduce.name} ?"
            self.add(f"{at} = {chosen} ({self._place_type()})({self._position(reduce)}) : {at};")
            self.add(f"{acc} = {chosen} {value} : {acc};")
        elif self._watches_nan(reduce) and not lane:
            self.add(f"nan_{reduce.name} |= ({value} != {value});")
            self.add(f"{acc} = {value} {'>' if reduce.op == 'max' else '<'} {acc} ? {value} : {acc};")
        else:
            self.add(f"{acc} = rf_{reduce.op}({acc}, {value});")

    def _open_online(self, reduces: Sequence[Reduce], size: int) -> None:
        """Before a block of a row: the values that online sums take from it, and the largest."""
        for reduce in reduces:
            kind = COMPUTE[reduce.dtype]
            self.add(f"{kind} kept_{reduce.name}[{size}], high_{reduce.name} = top_{reduce.name};")

    def _close_online(self, reduces: Sequence[Reduce], count: str) -> None:
        """After it: sums relative to the largest element so far, that of the row before it included. Where that isn't
        finite nothing is subtracted, so that it doesn't become a number that it isn't."""
        for reduce in reduces:
            name, kind = reduce.name, COMPUTE[reduce.dtype]
            self.add(f"const {kind} base_{name} = high_{name} - high_{name} == 0 ? high_{name} : 0;")
            self.add(f"{kind} more_{name} = 0;")
            self.add(f"#pragma omp simd reduction(+ : more_{name})")
            self.add(f"for (int64_t l = 0; l < {count}; ++l) "
                     f"more_{name} += rf_exp_below(kept_{name}[l] - base_{name});")
            self.add(f"acc_{name} = acc_{name} * rf_exp_below(top_{name} - base_{name}) + more_{name};")
            self.add(f"top_{name} = high_{name};")

    def _add_product(self, reduce: Reduce, total: str) -> None:
        """Add up the product that ``reduce`` sums, which isn't rounded before."""
        a, b = self.products[reduce.value]
        self.add(f"{total} = __builtin_fma{'' if reduce.dtype == torch.float64 else 'f'}({a}, {b}, {total});")

    def _finish(self, reduce: Reduce, lanes: int | None = None) -> None:
        """Declare the result; ``lanes`` accumulators are taken together as a tree."""
        result = f"acc_{reduce.name}"
        if lanes is not None and reduce.op in ("argmax", "argmin"):
            result = f"rf_first_{reduce.op[3:]}_of<{lanes}>({result}, at_{reduce.name})"
        elif lanes is not None and reduce.op in ("any", "all"):
            result = f"rf_{'max' if reduce.op == 'any' else 'min'}_of<{lanes}>({result}) != 0"
        elif lanes is not None:
            result = f"rf_{reduce.op}_of<{lanes}>({result})"
        elif reduce.op == "expsum":
            top = f"top_{reduce.name}"  # without a finite maximum to subtract, as of -inf only, it is no number
            result = f"{top} - {top} == 0 ? acc_{reduce.name} : {top} - {top}"
        elif reduce.op in ("argmax", "argmin"):
            result = f"at_{reduce.name}"
        elif self._watches_nan(reduce):
            suffix = "" if reduce.dtype == torch.float64 else "f"
            result = f'nan_{reduce.name} ? __builtin_nan{suffix}("") : acc_{reduce.name}'
        elif reduce.op in ("any", "all"):
            result += " != 0"
        self.add(self.declare(reduce.name, reduce.dtype, result))
