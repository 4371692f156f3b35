"""Other tiles than those chosen by price, for a search that measures them: few, and all of them correct."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log2, prod

from .contraction import Contraction, contraction_of
from .ir import Kernel, Nest
from .sweeps import strip_reduces, strip_scans
from .triton_dot import DotTile, dot_tile
from .triton_tiles import (
    MAX_WARPS,
    PERSISTENT_ELEMENTS,
    Tile,
    accumulators,
    choose_tile,
    kept_tiles,
    memory_along_rows,
    power_of_two,
)

#: Most tilings of a kernel, the default among them.
MOST_TILINGS = 6
WARP = 32
#: Elements that a thread keeps: those of a program that keeps as many as it may, in as many warps as it may.
THREAD_ELEMENTS = PERSISTENT_ELEMENTS // (WARP * MAX_WARPS)
#: Most warps of a program of which each thread has as many registers as it can address.
FULL_WARPS = 8
#: Elements a thread at which 16-byte accesses and enough of them under way are had at once.
BUSY_ELEMENTS = 16
#: Results of matrix products that a thread keeps: 128 by 128 in 8 warps.
THREAD_RESULTS = 64
#: Fewest row elements a step that are worth a loop.
LEAST_LOOPED = 1024


@dataclass(frozen=True)
class Tiling:
    """``tiles`` cut the nests of a kernel, in their order; ``name`` says what is other than the price's choice."""

    name: str
    tiles: tuple[Tile | DotTile, ...]


def default_tiles(kernel: Kernel, programs_wanted: int) -> tuple[Tile | DotTile, ...]:
    """For each nest the tile that suits a device filled by ``programs_wanted`` programs."""
    return tuple(_default_tile(kernel, nest, programs_wanted) for nest in kernel.nests)


def _default_tile(kernel: Kernel, nest: Nest, programs_wanted: int) -> Tile | DotTile:
    form = contraction_of(nest)
    if form is None:
        return choose_tile(kernel, nest, programs_wanted)
    return dot_tile(form.row_count, form.column_count, len(form.reduces), programs_wanted)


def tilings(kernel: Kernel, programs_wanted: int) -> tuple[Tiling, ...]:
    """At most `MOST_TILINGS` tilings, "default" first and the others by `_rank`. Only the largest nest is cut
    otherwise, and only so that a thread keeps what fits in its registers by the rule that the default obeys."""
    tiles = default_tiles(kernel, programs_wanted)
    largest = max(range(len(tiles)), key=lambda k: prod(a.size for a in kernel.nests[k].axes))
    nest, default = kernel.nests[largest], tiles[largest]
    form = contraction_of(nest)
    found: dict[Tile | DotTile, str] = {}
    others: Iterator[tuple[str, Tile]] | Iterator[tuple[str, DotTile]]
    if isinstance(default, DotTile):
        assert form is not None
        others = _other_products(form, default)
    else:
        others = _other_tiles(kernel, nest, default)
    for name, tile in others:
        if tile != default:
            found.setdefault(tile, name)
    ranked = sorted(found, key=lambda tile: (*_rank(tile, programs_wanted), found[tile]))
    return (Tiling("default", tiles), *(Tiling(found[t], (*tiles[:largest], t, *tiles[largest + 1:]))
                                        for t in ranked[:MOST_TILINGS - 1]))


def _rank(tile: Tile | DotTile, programs_wanted: int) -> tuple[float, ...]:
    """Cheapest first: whether rows are read once, what part of the device the last wave of programs leaves idle, and
    how far from `BUSY_ELEMENTS` the elements a thread are, in doublings. Of matrix products, what is loaded for each
    result comes in the place of the first."""
    waves = -(-tile.programs // programs_wanted)
    idle = round(1 - tile.programs / (waves * programs_wanted), 1)
    if isinstance(tile, DotTile):
        return (round(1 / tile.rows + 1 / tile.columns, 3), idle, abs(log2(_results(tile) / THREAD_RESULTS)))
    elements = tile.xblock * max(tile.rblock, 1) / (WARP * tile.warps)
    return (float(tile.rblock > 0 and not tile.persistent), idle, abs(log2(elements / BUSY_ELEMENTS)))


# -- tiles of elements and rows ---------------------------------------------------------------------------------------

#: Name, and the factors of rows, of row elements and of warps.
_Change = tuple[str, float, float, float]
_POINTWISE: tuple[_Change, ...] = (
    ("twice the elements", 2, 1, 1), ("twice the elements and warps", 2, 1, 2), ("half the elements", 0.5, 1, 1),
    ("half the elements and warps", 0.5, 1, 0.5), ("twice the warps", 1, 1, 2), ("half the warps", 1, 1, 0.5))
_ROWS: tuple[_Change, ...] = (
    ("twice the rows and warps", 2, 1, 2), ("twice the rows", 2, 1, 1), ("half the rows and warps", 0.5, 1, 0.5),
    ("half the rows", 0.5, 1, 1), ("twice the warps", 1, 1, 2), ("half the warps", 1, 1, 0.5))
_LOOPED: tuple[_Change, ...] = (
    ("twice the row elements a step", 1, 2, 1), ("twice the row elements a step and warps", 1, 2, 2),
    ("half the row elements a step and warps", 1, 0.5, 0.5), ("half the row elements a step", 1, 0.5, 1),
    ("twice the warps", 1, 1, 2), ("half the warps", 1, 1, 0.5))
_COLUMNS: tuple[_Change, ...] = (
    ("half the columns, twice their elements a step", 0.5, 2, 1),
    ("twice the columns, half their elements a step", 2, 0.5, 1), ("twice the elements a step", 1, 2, 1),
    ("half the elements a step", 1, 0.5, 1), ("twice the warps", 1, 1, 2), ("half the warps", 1, 1, 0.5))


def _other_tiles(kernel: Kernel, nest: Nest, default: Tile) -> Iterator[tuple[str, Tile]]:
    row = prod(a.size for a in nest.reduction)
    if not nest.reduction:
        changes = _POINTWISE
    elif nest.strip or nest.segmented or (default.persistent and memory_along_rows(nest)):
        changes = _ROWS
    else:
        changes = _LOOPED if memory_along_rows(nest) else _COLUMNS
    for name, x, r, w in changes:
        tile = replace(default, xblock=int(default.xblock * x), rblock=int(default.rblock * r),
                       warps=int(default.warps * w))
        if _fits(nest, tile, default):
            yield name, _counted(nest, replace(tile, persistent=tile.rblock >= row > 0 and default.rblock > 0))
    if default.resident:
        yield "a program for each row", _counted(nest, replace(default, resident=False))
    if changes is _ROWS and not nest.strip and not nest.segmented:
        step = min(default.rblock // 2, 4096)
        looped = Tile(1, step, False, max(1, step // (WARP * BUSY_ELEMENTS // 2)), 0)
        if step >= LEAST_LOOPED and _fits(nest, looped, default):
            yield f"rows gone through {step} elements at a time", _counted(nest, looped)


def _counted(nest: Nest, tile: Tile) -> Tile:
    """``tile`` with its number of programs; of resident ones it stays."""
    rows = prod(a.size for a in nest.parallel)
    if tile.resident:
        return tile
    return replace(tile, programs=-(-rows // (tile.strip or tile.xblock)))


def _fits(nest: Nest, tile: Tile, default: Tile) -> bool:
    """Whether a tile is no larger than the work, gives every thread something, and keeps in each no more than
    `THREAD_ELEMENTS`, or than the default does."""
    rows, row = (prod(a.size for a in axes) for axes in (nest.parallel, nest.reduction))
    if tile.xblock < 1 or not 1 <= tile.warps <= MAX_WARPS or (tile.strip and tile.strip % tile.xblock):
        return False
    if tile.xblock > max(power_of_two(rows), default.xblock) or (nest.reduction and tile.rblock < 16):
        return False
    if tile.rblock > max(power_of_two(row), default.rblock) or tile.xblock * max(tile.rblock, 1) < WARP * tile.warps:
        return False
    # More warps have fewer registers each, from a number on.
    most = _kept(nest, default) if tile.warps <= max(default.warps, FULL_WARPS) else 0
    return _kept(nest, tile) <= max(THREAD_ELEMENTS, most)


def _kept(nest: Nest, tile: Tile) -> float:
    """Elements that a thread keeps: of rows that several sweeps need and of strips' column sums, or of accumulators and
    what is added to them."""
    kept = kept_tiles(nest) if tile.persistent or tile.strip else accumulators(nest) + 1
    kept += len(strip_reduces(nest)) + len(strip_scans(nest))
    return tile.xblock * max(tile.rblock, 1) * kept / (WARP * tile.warps)


# -- tiles of matrix products -----------------------------------------------------------------------------------------

def _results(tile: DotTile) -> float:
    return tile.rows * tile.columns / (WARP * tile.warps)


def _other_products(form: Contraction, default: DotTile) -> Iterator[tuple[str, DotTile]]:
    products = len(form.reduces)
    for name, m, n, k, warps in (
            ("half the columns", 1.0, 0.5, 1.0, 1.0), ("half the rows", 0.5, 1.0, 1.0, 1.0),
            ("twice the columns and warps", 1.0, 2.0, 1.0, 2.0),
            ("half the summed elements a step", 1.0, 1.0, 0.5, 1.0),
            ("twice the warps", 1.0, 1.0, 1.0, 2.0), ("half the warps", 1.0, 1.0, 1.0, 0.5)):
        rows, columns, inner = int(default.rows * m), int(default.columns * n), int(default.inner * k)
        tile = replace(default, rows=rows, columns=columns, inner=inner, warps=int(default.warps * warps),
                       programs=-(-form.row_count // rows) * -(-form.column_count // columns))
        small = min(rows, columns) < 16 or inner < 32 or tile.warps < 2 or columns > power_of_two(form.column_count)
        if not small and tile.warps <= 8 and _results(tile) * products <= max(
                THREAD_RESULTS, _results(default) * products):
            yield name, tile
    yield "four steps of loads under way", replace(default, stages=4)
