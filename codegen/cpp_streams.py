"""Results written past the caches: a line that is stored whole needn't be read first, nor does it displace another.

Which buffers that suits is the schedule's to say (``streamed``); here blocks of lanes are computed into arrays, and
those copied line by line.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sympy import Expr

from .cpp_loops import LoopWriter
from .cpp_spelling import STORAGE
from .index import affine, symbol
from .ir import Axis, Stmt, Store

#: Lanes computed before they are written: 512 bytes of the narrower types, arrays that stay in the first-level cache.
STREAMED_LANES = 256
#: Most results of a loop that are written so: processors have some ten buffers for lines that are on their way.
MOST_STREAMED = 4
LINE_BYTES = 64


class StreamedStores(LoopWriter):
    """Prints loops over lanes in blocks where they fill buffers of ``schedule.streamed``."""

    _streams = False

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._blocks: dict[tuple[str, Expr], str] = {}

    def _streamed(self, lane: Axis, body: Sequence[Stmt], start: int, end: int) -> list[Store]:
        """The stores of whole lines, one after the other along ``lane``, from ``start`` to ``end``."""
        if lane.symbol in self.colliding or lane.size < STREAMED_LANES or end - start < LINE_BYTES:
            return []
        found = [s for s in body if isinstance(s, Store) and self._fills_lines(s, lane, start)]
        others = {s.buffer for s in self.nest.body if isinstance(s, Store) and all(s is not f for f in found)}
        return [s for s in found if s.buffer not in others][:MOST_STREAMED]

    def _fills_lines(self, store: Store, lane: Axis, start: int) -> bool:
        if store.buffer not in self.schedule.streamed or store.mask is not None or store.accumulate:
            return False
        coefficients, constant, others = affine(store.index)
        line = LINE_BYTES // self.kernel.buffer(store.buffer).dtype.itemsize
        if others or coefficients.get(lane.symbol) != 1 or not coefficients.keys() <= self.nest.ranges.keys():
            return False
        # A store that loops of a row repeat is only done in the first of them.
        if not {a.symbol for a in self.nest.reduction if a.size > 1} <= coefficients.keys():
            return False
        steps = [c for s, c in coefficients.items() if s != lane.symbol]
        return not any(n % line for n in (*steps, constant, start))

    @contextmanager
    def _in_blocks(self, lane: Axis, stores: Sequence[Store], size: int, place: str, start: str, count: str
                   ) -> Iterator[None]:
        """Around a loop over at most ``size`` lanes, ``count`` from ``start`` on: what ``stores`` store goes to arrays
        at ``place`` first."""
        blocks = {(s.buffer, s.index): f"line{k}" for k, s in enumerate(stores)}
        for store, name in zip(stores, blocks.values()):
            kind = STORAGE[self.kernel.buffer(store.buffer).dtype]
            self.add(f"alignas({LINE_BYTES}) {kind} {name}[{size}];")
        self._blocks = {at: f"{name}[{place}]" for at, name in blocks.items()}
        yield
        self._blocks = {}
        for store, name in zip(stores, blocks.values()):
            first = self.spell_index(store.index.xreplace({lane.symbol: symbol(start)}))
            self.add(f"rf_stream(&{store.buffer}[{first}], {name}, {count});")
            self._streams = True

    @contextmanager
    def _lane_blocks(self, lane: Axis, first: str, last: str, stores: Sequence[Store]) -> Iterator[tuple[str, str]]:
        """Around a loop over ``[first, last)`` of the lanes: what controls it, and the line that it begins with."""
        axis = lane.symbol
        if not stores:
            yield f"int64_t {axis} = {first}; {axis} < {last}; ++{axis}", ""
            return
        self.open(f"for (int64_t base = {first}; base < {last}; base += {STREAMED_LANES})")
        self.add(f"const int64_t lanes = RF_MIN(INT64_C({STREAMED_LANES}), {last} - base);")
        with self._in_blocks(lane, stores, STREAMED_LANES, "l", "base", "lanes"):
            yield "int64_t l = 0; l < lanes; ++l", f"const int64_t {axis} = base + l;"
        self.close()

    def _end_streams(self) -> None:
        """Each thread waits for its own lines before the others go on."""
        if not self._streams:
            return
        if self._shared_at is None:
            self.add("rf_streams_end();")
            return
        pragma = self.lines[self._shared_at]
        indent = pragma[:len(pragma) - len(pragma.lstrip())]
        self.lines[self._shared_at] = indent + "#pragma omp for schedule(static) nowait"
        self.lines[self._shared_at:self._shared_at] = [indent + "#pragma omp parallel", indent + "{"]
        self.add("rf_streams_end();")
        self.add("}")

    def spell_store(self, stmt: Store) -> str:
        block = self._blocks.get((stmt.buffer, stmt.index))
        if block is None:
            return super().spell_store(stmt)
        return f"{block} = {self.narrow(stmt.value, stmt.value, self.kernel.buffer(stmt.buffer).dtype)};"
