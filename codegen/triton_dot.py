"""Matrix products in Triton: a tile of results a program, its factors' tiles computed and multiplied step by step."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from .contraction import Contraction, factor_type
from .index import bounds
from .ir import Axis, Compute, Kernel, Load, Nest, Reduce, Stmt, Store, operands
from .triton_spelling import TYPES, TritonStatements

#: Rows of tiles that are gone through together, so that their columns of the right factor are still in cache.
GROUPED_TILES = 8


@dataclass(frozen=True)
class DotTile:
    """``rows`` by ``columns`` results a program, ``inner`` summed elements a step, in elements. Loads of ``stages``
    steps are under way at once, of as many as Triton does by itself if None."""

    rows: int
    columns: int
    inner: int
    warps: int
    programs: int
    stages: int | None = None


def dot_tile(rows: int, columns: int, products: int, programs_wanted: int) -> DotTile:
    """Tiles of 128 by 128 results where there are enough, smaller ones where the device would stand idle.

    Matrix units take no fewer than 16 rows and columns.
    """
    def block(n: int, most: int) -> int:
        return min(most, max(16, 1 << (n - 1).bit_length()))

    m, n = block(rows, 128), block(columns, 128 if products == 1 else 64)
    while n > 16 and -(-rows // m) * -(-columns // n) < programs_wanted // 2:
        n //= 2
    while m > 64 and -(-rows // m) * -(-columns // n) < programs_wanted // 4:
        m //= 2
    inner = 64 if m * n >= 4096 else 128
    return DotTile(m, n, inner, 8 if m * n >= 128 * 128 else 4, -(-rows // m) * -(-columns // n))


class _Frame(TritonStatements):
    """Statements on a two-dimensional tile: ``across`` are the axes down the tile and those along it."""

    def __init__(self, kernel: Kernel, nest: Nest, suffix: str, shape: tuple[int, int],
                 across: tuple[Sequence[Axis], Sequence[Axis]], raw: Iterable[str] = ()) -> None:
        super().__init__(kernel, nest)
        self.suffix, self.shape, self.across, self.raw = suffix, shape, across, frozenset(raw)
        self.masks = [prod(a.size for a in axes) % size != 0 for axes, size in zip(across, shape)]
        self.wide = any(b.size >= 2**31 for b in kernel.buffers) or any(
            (extent := bounds(s.index, nest.ranges)) is not None and extent[1] >= 2**31
            for s in nest.body if isinstance(s, Load | Store))

    def opening(self, starts: tuple[str, str]) -> list[str]:
        """Lines that bind the axes, from the first position down and along the tile."""
        lines = []
        for k, (axes, start, expand) in enumerate(zip(self.across, starts, ("[:, None]", "[None, :]"))):
            flat = self.name(f"x{k}")
            lines.append(f"{flat} = ({start} + tl.arange(0, {self.shape[k]})){expand}"
                         + (".to(tl.int64)" if self.wide else ""))
            stride = prod(a.size for a in axes)
            if self.masks[k]:
                lines.append(f"{self.name(f'mask{k}')} = {flat} < {stride}")
            for j, axis in enumerate(axes):
                stride //= axis.size
                text = flat if stride == 1 else f"({flat} // {stride})"
                lines.append(f"{self.spell_symbol(axis.symbol)} = {text if j == 0 else f'{text} % {axis.size}'}")
        return lines

    def access_mask(self, stmt: Load | Store) -> list[str]:
        scope = self.nest.store_scope(stmt) if isinstance(stmt, Store) else self.nest.scopes[stmt.name]
        masks = [self.name(f"mask{k}") for k, axes in enumerate(self.across)
                 if self.masks[k] and (isinstance(stmt, Store) or any(a.symbol in scope for a in axes))]
        return [*masks, self.name(stmt.mask)] if stmt.mask else masks

    def offset(self, stmt: Load | Store) -> str:
        text = super().offset(stmt)
        if isinstance(stmt, Load) and stmt.mask is None and stmt.index.free_symbols:
            return text
        return f"tl.broadcast_to({text}, [{self.shape[0]}, {self.shape[1]}])"

    def spell_load(self, stmt: Load) -> str:
        text = super().spell_load(stmt)
        return text.removesuffix(f".to({TYPES[stmt.dtype]})") if stmt.name in self.raw else text


class DotPrinter:
    """Prints a nest that is a `Contraction`; the lines are for one program."""

    def __init__(self, kernel: Kernel, nest: Nest, form: Contraction, tile: DotTile, number: int, indent: str) -> None:
        self.kernel, self.nest, self.form, self.tile, self.indent = kernel, nest, form, tile, indent
        self.mark = f"_{number}" if len(kernel.nests) > 1 else ""
        self.made: dict[str, Stmt] = {s.name: s for s in nest.body if not isinstance(s, Store)}
        self.lines: list[str] = []

    def add(self, text: str, deeper: int = 0) -> None:
        self.lines.append(self.indent + "    " * deeper + text)

    def print(self, program: str) -> list[str]:
        t, form, mark = self.tile, self.form, self.mark
        down, along = -(-form.row_count // t.rows), -(-form.column_count // t.columns)
        group = min(GROUPED_TILES, down)
        self.add(f"first{mark} = ({program} // {group * along}) * {group}")
        self.add(f"high{mark} = tl.minimum({down} - first{mark}, {group})")
        self.add(f"within{mark} = {program} % {group * along}")
        row = f"(first{mark} + within{mark} % high{mark}) * {t.rows}"
        column = f"(within{mark} // high{mark}) * {t.columns}"
        for reduce in form.reduces:
            self.add(f"acc_{reduce.name}{mark} = tl.zeros([{t.rows}, {t.columns}], tl.float32)")
        inner = self.nest.reduction
        start = f"start{mark}"
        left = self._frame("l", (t.rows, t.inner), (form.rows, inner))
        right = self._frame("r", (t.inner, t.columns), (inner, form.columns))
        self.add(f"for {start} in range(0, {prod(a.size for a in inner)}, {t.inner}):")
        for frame, side, starts in ((left, 0, (row, start)), (right, 1, (start, column))):
            for line in frame.opening(starts):
                self.add(line, 1)
            for stmt in self._closure([f[side] for f in form.factors]):
                self.add(frame.line(stmt), 1)
        for reduce, (a, b) in zip(form.reduces, form.factors):
            acc = f"acc_{reduce.name}{mark}"
            self.add(f"{acc} = tl.dot({self._factor(left, a, 1)}, {self._factor(right, b, 0)}, {acc})", 1)
        self._print_rest(row, column)
        return self.lines

    def _frame(self, name: str, shape: tuple[int, int], across: tuple[Sequence[Axis], Sequence[Axis]]) -> _Frame:
        raw = {s.args[0] for s in self.made.values()
               if isinstance(s, Compute) and s.op == "round_to" and self._is_plain(s)}
        return _Frame(self.kernel, self.nest, f"_{name}{self.mark}", shape, across, raw)

    def _is_plain(self, rounding: Compute) -> bool:
        """Whether what is rounded is a load of just that type, used for nothing else: it is multiplied as it is."""
        source = self.made[rounding.args[0]]
        users = [s for s in self.nest.body if source.name in operands(s)]  # type: ignore[union-attr]
        return (isinstance(source, Load) and len(users) == 1
                and self.kernel.buffer(source.buffer).dtype == rounding.rounding)

    def _factor(self, frame: _Frame, name: str, summed: int) -> str:
        """A factor's tile as an operand, with zeros past the end of the summed axes."""
        stmt, dtype = self.made[name], factor_type(name, self.made)
        source = operands(stmt)[0] if getattr(stmt, "op", "") == "round_to" else name
        plain = isinstance(self.made[source], Load) and self.made[source].mask is None  # type: ignore[union-attr]
        value = frame.name(source)
        if not plain and frame.masks[summed]:
            value = f"tl.where({frame.name(f'mask{summed}')}, {value}, 0)"
        return f"tl.broadcast_to({value}, [{frame.shape[0]}, {frame.shape[1]}]).to({TYPES[dtype]})"

    def _closure(self, wanted: Iterable[str]) -> list[Stmt]:
        """The statements that these values need; their rounding is left to the operand's type."""
        needed = set(wanted)
        kept: list[Stmt] = []
        for stmt in reversed(self.nest.body):
            if not isinstance(stmt, Store) and stmt.name in needed:
                needed.update(operands(stmt))
                if not (stmt.name in wanted and getattr(stmt, "op", "") == "round_to"):
                    kept.append(stmt)
        return kept[::-1]

    def _print_rest(self, row: str, column: str) -> None:
        """What is done to the results, and their stores."""
        t, form = self.tile, self.form
        frame = _Frame(self.kernel, self.nest, self.mark, (t.rows, t.columns), (form.rows, form.columns))
        for line in frame.opening((row, column)):
            self.add(line)
        for reduce in form.reduces:
            self.add(f"{frame.name(reduce.name)} = acc_{reduce.name}{self.mark}")
        needed: set[str] = set()
        kept: list[Stmt] = []
        for stmt in reversed(self.nest.body):
            if isinstance(stmt, Store) or (not isinstance(stmt, Reduce) and stmt.name in needed):
                needed.update(operands(stmt))
                kept.append(stmt)
        for stmt in reversed(kept):
            self.add(frame.line(stmt))
