"""Reductions of the Triton printer: of the rows of a tile, of segments of them, and by accumulators over steps."""
from __future__ import annotations

from collections.abc import Sequence

from sympy import Symbol

from .ir import Kernel, Nest, Reduce
from .sweeps import strip_holder, strip_reduces
from .triton_scans import ScanTiles
from .triton_spelling import TYPES
from .triton_tiles import Tile, holder_of, neighbours


class ReductionTiles(ScanTiles):
    """Each result is a tile with one column, of segments a tile in which each result is repeated along its segment."""

    row: int
    mask_x: bool
    mask_r: bool
    reduction: frozenset[Symbol]
    padded: Sequence[int]

    def __init__(self, kernel: Kernel, nest: Nest, tile: Tile, indent: str) -> None:
        super().__init__(kernel, nest)
        self.tile, self.indent = tile, indent
        self.lines: list[str] = []

    def add(self, text: str, deeper: int = 0) -> None:
        self.lines.append(self.indent + "    " * deeper + text)

    def _accumulator(self, reduce: Reduce) -> str:
        if reduce.op in ("any", "all"):
            return "tl.int32"
        return TYPES[self.dtypes[reduce.value] if reduce.op.startswith("arg") else reduce.dtype]

    def _combine(self, reduce: Reduce) -> str:
        floating = self.dtypes[reduce.value].is_floating_point
        return {"prod": "rf_mul", "any": "rf_imax", "all": "rf_imin", "max": "rf_max" if floating else "rf_imax",
                "min": "rf_min" if floating else "rf_imin", "argmax": "rf_argmax", "argmin": "rf_argmin"}[reduce.op]

    def _row_mask(self) -> list[str]:
        return ([self.name("rmask")] if self.mask_r else []) + ([self.name("xmask")] if self.mask_x else [])

    def _is_same(self, reduce: Reduce) -> bool:
        """Whether a value is the same for all rows, and so is reduced once."""
        return not self.nest.scopes[reduce.value] - self.reduction

    def _tile_value(self, reduce: Reduce, text: str, looped: bool = False, skipped: str | None = None) -> str:
        """A value spread over the whole tile, with the neutral element, or ``skipped``, where it doesn't count: where
        the tile reaches over the edge, and, of results a segment that are reduced further, but once a segment."""
        if reduce.op in ("any", "all"):
            text = f"{text}.to(tl.int32)"
        same = self._is_same(reduce)
        full = f"tl.broadcast_to({text}, [{1 if same and not looped else self.tile.xblock}, {self.tile.rblock}])"
        masks = self._row_mask()[:1 if same and not looped and self.mask_r else None]
        if same and not looped and not self.mask_r:
            masks = []
        masks += self._repeated(reduce)
        return f"tl.where({' & '.join(masks)}, {full}, {skipped or self._start(reduce)})" if masks else full

    def _counts(self, reduce: Reduce) -> str:
        """How many elements of a row each place of a looped tile has met."""
        width, kind = self.tile.rblock, TYPES[reduce.dtype]
        if self.row % width == 0:
            return f"{self.row // width}.0"
        return f"(({self.row + width - 1} - tl.arange(0, {width})[None, :]) // {width}).to({kind})"

    def _counted(self, reduce: Reduce) -> str:
        """The same where the tile is all of a row: one, or none behind its end."""
        return f"{self.name('rmask')}.to({TYPES[reduce.dtype]})" if self.mask_r else "1.0"

    def _at_zero(self, axes: frozenset[Symbol]) -> list[str]:
        return [f"({self.spell_symbol(a.symbol)} == 0)" for a in self.nest.reduction if a.symbol in axes]

    def _repeated(self, reduce: Reduce) -> list[str]:
        """Conditions under which a value that is reduced along some axes to one result a row is met for the first
        time."""
        if not reduce.along or self.nest.scopes[reduce.name] & self.reduction:
            return []
        return self._at_zero(self.reduction - frozenset(reduce.along))

    def _position(self, reduce: Reduce, rows: int) -> str:
        """Where in what it reduces an element of ``rows`` rows is; past all others where it doesn't count."""
        text, stride = "", 1
        for axis in reversed(self.nest.reduction if reduce.along else ()):
            if axis.symbol in reduce.along:
                text = f"{self.spell_symbol(axis.symbol)} * {stride}" + (f" + {text}" if text else "")
                stride *= axis.size
        at = f"tl.broadcast_to({text or self.name('r')}, [{rows}, {self.tile.rblock}]).to(tl.int32)"
        masks = ([self.name("rmask")] if self.mask_r else []) + self._repeated(reduce)
        return f"tl.where({' & '.join(masks)}, {at}, 2147483647)" if masks else at

    def _reduce_segments(self, reduce: Reduce, value: str) -> None:
        """A result a segment, spread over the segment again."""
        name, rows = self.name(reduce.name), 1 if self._is_same(reduce) else self.tile.xblock
        shape = f"[{', '.join(map(str, (rows, *self.padded)))}]"
        along = [k + 1 for k, a in enumerate(self.nest.reduction) if a.symbol in reduce.along]
        result = self.name("part_" + reduce.name)
        self.add(f"{result} = tl.reshape({self._tile_value(reduce, value)}, {shape})")
        if reduce.op.startswith("arg"):
            at = self.name("at_" + reduce.name)
            self.add(f"{at} = tl.reshape({self._position(reduce, rows)}, {shape})")
            for k in reversed(along):
                self.add(f"{result}, {at} = tl.reduce(({result}, {at}), {k}, {self._combine(reduce)}, keep_dims=True)")
            result = f"{at}.to(tl.int64)"
        else:
            for k in reversed(along):
                self.add(f"{result} = tl.sum({result}, {k}, keep_dims=True)" if reduce.op == "sum" else
                         f"{result} = tl.reduce({result}, {k}, {self._combine(reduce)}, keep_dims=True)")
            if reduce.op == "sum":
                result = f"{result}.to({TYPES[reduce.dtype]})"
        spread = f"tl.reshape(tl.broadcast_to({result}, {shape}), [{rows}, {self.tile.rblock}])"
        self.add(f"{name} = {spread}" + (" != 0" if reduce.op in ("any", "all") else ""))

    def _reduce_tile(self, reduce: Reduce, value: str, deeper: int, accumulated: bool = False) -> None:
        if reduce.along and self.nest.scopes[reduce.name] & self.reduction:
            self._reduce_segments(reduce, value)
            return
        name, holder = self.name(reduce.name), holder_of(self.nest, reduce) if accumulated else None
        if holder and holder.op == "expsum":
            total, top = self.name("acc_" + holder.name), self.name("top_" + holder.name)
            value = f"tl.where({total} == {total}, {top}, {total})"  # a maximum is what isn't a number, too
        elif holder:
            value = f"{self.name('mean_' + holder.name)} * {self._counts(reduce)}"
        tile = value if accumulated else self._tile_value(reduce, value, looped=reduce.op == "devsum")
        if reduce.op == "expsum":
            top = self.name("top_" + reduce.name)
            if accumulated:
                self.add(f"{name} = rf_expsum({tile}, {top})[:, None]", deeper)
            else:
                self.add(f"{top} = tl.broadcast_to({value}, [{self.tile.xblock}, {self.tile.rblock}])", deeper)
                masks = self._row_mask()
                if masks:
                    self.add(f'{top} = tl.where({" & ".join(masks)}, {top}, float("-inf"))', deeper)
                self.add(f"{name} = rf_expsum(tl.where({top} == {top}, 1.0, {top}), {top})[:, None]", deeper)
        elif reduce.op == "devsum":
            mean = self.name("mean_" + reduce.name) if accumulated else tile
            start, counts = (value, self._counts(reduce)) if accumulated else ("0.0", self._counted(reduce))
            self.add(f"{name} = rf_devsum({start}, {mean}, {counts}, {self.row})[:, None]", deeper)
        elif reduce.op == "sum":
            kind = TYPES[reduce.dtype]
            self.add(f"{name} = tl.sum({tile}, 1)[:, None].to({kind})", deeper)
        elif reduce.op.startswith("arg"):
            at = self.name("at_" + reduce.name) if accumulated else self._position(
                reduce, 1 if self._is_same(reduce) else self.tile.xblock)
            self.add(f"_, {name} = tl.reduce(({tile}, {at}), 1, {self._combine(reduce)})", deeper)
            self.add(f"{name} = {name}[:, None].to(tl.int64)", deeper)
        else:
            self.add(f"{name} = tl.reduce({tile}, 1, {self._combine(reduce)})[:, None]", deeper)
            if reduce.op in ("any", "all"):
                self.add(f"{name} = {name} != 0", deeper)

    def _first_accumulators(self, reduce: Reduce) -> list[str]:
        """What a reduction's accumulators are before the first step."""
        if holder_of(self.nest, reduce):
            return []
        width = self.tile.rblock // (neighbours(self.kernel, self.nest) if reduce.op == "expsum" else 1)
        shape = f"[{self.tile.xblock}, {width}]"
        lines = [f"{self.name('acc_' + reduce.name)} = tl.full({shape}, {self._start(reduce)}, "
                 f"{self._accumulator(reduce)})"]
        if reduce.op == "expsum":
            start = f"float(\"-inf\"), {TYPES[reduce.dtype]}"
            lines.append(f"{self.name('top_' + reduce.name)} = tl.full({shape}, {start})")
        if reduce.op == "devsum":
            lines.append(f"{self.name('mean_' + reduce.name)} = tl.full({shape}, 0, {TYPES[reduce.dtype]})")
        if reduce.op.startswith("arg"):
            lines.append(f"{self.name('at_' + reduce.name)} = tl.full({shape}, 2147483647, tl.int32)")
        return lines

    def _accumulate(self, reduce: Reduce) -> None:
        if holder_of(self.nest, reduce):
            return
        top, mean = self.name("top_" + reduce.name), self.name("mean_" + reduce.name)
        skipped = {"expsum": 'float("-inf")', "devsum": mean}.get(reduce.op)
        acc = self.name("acc_" + reduce.name)
        value = self._tile_value(reduce, self.name(reduce.value), looped=True, skipped=skipped)
        if reduce.op == "devsum":
            count = f"{self.name('start')} // {self.tile.rblock} + 1"
            self.add(f"{acc}, {mean} = rf_deviate({acc}, {mean}, {value}, {count})", 1)
        elif reduce.op == "expsum":
            self.add(f"{acc}, {top} = rf_online({acc}, {top}, {value}, {neighbours(self.kernel, self.nest)})", 1)
        elif reduce.op == "sum":
            self.add(f"{acc} += {value}", 1)
        elif reduce.op.startswith("arg"):
            at = self.name("at_" + reduce.name)
            here = self._position(reduce, self.tile.xblock)
            self.add(f"{acc}, {at} = {self._combine(reduce)}({acc}, {at}, {value}, {here})", 1)
        else:
            self.add(f"{acc} = {self._combine(reduce)}({acc}, {value})", 1)

    # -- down the columns of strips -----------------------------------------------------------------------------

    def _first_in_strip(self) -> list[str]:
        """What columns have come to before the first row of a strip."""
        lines = []
        for reduce in strip_reduces(self.nest):
            width = self.tile.rblock if self.nest.scopes[reduce.value] & self.reduction else 1
            tile = f"tl.full([{self.tile.xblock}, {width}], {{}}, {TYPES[reduce.dtype]})"
            if not strip_holder(self.nest, reduce):
                lines.append(f"{self.name('strip_' + reduce.name)} = {tile.format(self._start(reduce))}")
            if reduce.op == "expsum":
                lines.append(f"{self.name('top_' + reduce.name)} = " + tile.format('float("-inf")'))
        return lines

    def _add_to_strip(self, reduce: Reduce) -> None:
        kept, value = self.name("strip_" + reduce.name), self.name(reduce.value)
        if reduce.op == "expsum":
            top = self.name("top_" + reduce.name)
            self.add(f"{kept}, {top} = rf_online({kept}, {top}, {value} + tl.zeros_like({kept}), 1)", 1)
        elif not strip_holder(self.nest, reduce):
            self.add(f"{kept} += {value}" if reduce.op == "sum" else
                     f"{kept} = {self._combine(reduce)}({kept}, {value})", 1)

    def _finish_strip(self, reduce: Reduce) -> None:
        """What columns came to, as a row."""
        holder = strip_holder(self.nest, reduce)
        of = holder or reduce
        kept, top = self.name("strip_" + of.name), self.name("top_" + of.name)
        if reduce.op == "expsum":
            total = f"rf_expsum_down({kept}, {top})"
        elif reduce.op == "sum":
            total = f"tl.sum({kept}, 0)"
        else:
            kept = f"tl.where({kept} == {kept}, {top}, {kept})" if holder else kept  # it is what isn't a number, too
            total = f"tl.reduce({kept}, 0, {self._combine(reduce)})"
        self.add(f"{self.name(reduce.name)} = {total}[None, :]")
