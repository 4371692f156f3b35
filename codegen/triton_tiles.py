"""How Triton programs cut a nest: rows and row elements a program, and the warps that share them."""
from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from .crossed_axes import SIDE, crossed_axes
from .index import affine
from .interleaved import interleaved
from .ir import Axis, Compute, Kernel, Load, Nest, Reduce, Scan, Store, operands
from .operations import operation_cost
from .sweeps import inner_values, plan_phases, strip_holder, strip_reduces, strip_scans
from .traffic import row_bytes, sweeps

#: Elements that a program keeps in registers: 32 in each of 1024 threads, half of what the register file has.
PERSISTENT_ELEMENTS = 32768
#: Values that a thread has loaded at once, at most, of 255 registers.
MOST_LOADED = 48
#: The same where a program keeps the sums of a strip's columns beside a row: 40 registers of 64, as sm_80 to sm_100
#: compile them for norms' gradients without spilling.
STRIP_ELEMENTS = 40960
MAX_WARPS = 32
#: Programs of a looped kernel that a multiprocessor runs at once unless it says how many.
RUNNING_PROGRAMS = 2
#: Longest rows that several programs of a multiprocessor read again: those of two for each of a hundred and more then
#: fit into second-level caches of 32 MiB. Of longer ones a multiprocessor goes through one at a time.
SHARED_ROW_BYTES = 1 << 17
#: Most values a place of a row from which a program sums a matrix's row times a vector with many elements a thread:
#: the vector, weights of which two share a byte, their scales.
MOST_FACTORS = 4
#: Fewest neighbours that a program takes across rows whose elements lie apart: what memory hands out at once, 32 bytes
#: of bfloat16.
NARROWEST = 16
#: Most neighbours that a program takes, but of rows so short that it would have fewer elements than these: eight for
#: each of 256 threads.
WIDEST, LEAST = 64, 2048
#: Cost in plain operations from which on values are worth being shared, the most rows side by side that share them, and
#: elements of those that a thread keeps: a row among few threads takes fewer steps to add up, 96 registers on sm_90.
COSTLY, MOST_BESIDE, BESIDE_LANE = 16, 8, 64
#: Elements of a tile of two axes.
CROSSING_ELEMENTS = SIDE * SIDE


@dataclass(frozen=True)
class Tile:
    """How one nest is cut: ``xblock`` rows by ``rblock`` row elements a program, ``rblock`` 0 without a reduction.
    ``strip`` is how many rows a program goes through, ``xblock`` at a time, 0 without strip axes. ``resident`` programs
    are one a multiprocessor and take rows until none is left."""

    xblock: int
    rblock: int
    persistent: bool
    warps: int
    programs: int
    strip: int = 0
    resident: bool = False


def power_of_two(n: int) -> int:
    """The smallest power of two that isn't below ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def row_tile(nest: Nest) -> int:
    """Elements of a tile that holds a whole row: a power of two, of each axis where segments are reduced."""
    if nest.segmented:
        return prod(power_of_two(a.size) for a in nest.reduction)
    return power_of_two(prod(a.size for a in nest.reduction))


def memory_along_rows(nest: Nest) -> bool:
    """Whether neighbouring row elements are neighbours in memory for at least half of the elements accessed."""
    row = nest.reduction[-1].symbol
    together = {id(s) for run in interleaved(nest, nest.body) for s in run.members}
    along = across = 0
    for stmt in nest.body:
        if isinstance(stmt, Load | Store):
            coefficients = affine(stmt.index)[0]
            elements = prod(nest.ranges[s] for s in coefficients if s in nest.ranges)
            beside = coefficients.get(row) == 1 or id(stmt) in together
            along += elements * beside
            across += elements * (not beside and row in coefficients)
    return along >= across


def kept_tiles(nest: Nest) -> int:
    """How many row-wide values have to be kept across a reduction, at least one; a scan keeps its value beside its
    result."""
    inner = inner_values(nest)
    last_use = {name: k for k, s in enumerate(nest.body) for name in operands(s)}
    made = {s.name: k for k, s in enumerate(nest.body) if not isinstance(s, Store) and s.name in inner}
    barriers = [k for k, s in enumerate(nest.body) if isinstance(s, Reduce) and not s.strip]
    scans = any(isinstance(s, Scan) for s in nest.body)
    return (max((sum(made[n] < k < last_use.get(n, 0) for n in made) for k in barriers), default=1) or 1) + scans


def _lanes_held(nest: Nest, lanes: int, places: int) -> int:
    """Lanes of a thread, ``lanes`` or fewer, whose values of all that varies from point to point stay in registers,
    with so many ``places`` of the row at a time: of a window's taps there are many."""
    row = {a.symbol for a in nest.reduction}
    loads = sum(bool(nest.scopes[s.name] & row) for s in nest.body if isinstance(s, Load))
    while lanes > 1 and lanes * places * loads > MOST_LOADED:
        lanes //= 2
    return lanes


def _loaded_at_once(nest: Nest) -> int:
    """How many values of each element of a row are under way where a single sweep goes through it: all that it loads.
    What is kept from one sweep to the next is in `kept_tiles`."""
    row = {a.symbol for a in nest.reduction}
    return sum(bool(nest.scopes[s.name] & row) for s in nest.body if isinstance(s, Load)) if sweeps(nest) == 1 else 0


def accumulators(nest: Nest) -> int:
    """How many values for each place of a tile the sweep with the most keeps from tile to tile; sums of exponentials
    keep two for several places."""
    return max(sum(1 + (r.op.startswith("arg") or r.op == "devsum") for r in p.reduces if not holder_of(nest, r))
               for p in plan_phases(nest))


def holder_of(nest: Nest, reduce: Reduce) -> Reduce | None:
    """The sum of exponentials whose accumulators hold the maximum ``reduce`` as well, or the sum of squared deviations
    whose ones hold the sum; or None."""
    op = {"max": "expsum", "sum": "devsum"}.get(reduce.op)
    if reduce.dtype not in (torch.float32, torch.float64) or reduce.strip or reduce.fold > 1:
        return None
    return next((r for r in nest.body if isinstance(r, Reduce) and r.op == op
                 and (r.value, r.along, r.dtype) == (reduce.value, reduce.along, reduce.dtype)), None)


def neighbours(kernel: Kernel, nest: Nest) -> int:
    """How many elements of a row a thread has next to each other where it loads 16 bytes at once, at most eight: their
    sums of exponentials share a maximum."""
    row = {a.symbol for a in nest.reduction}
    widths = [kernel.buffer(s.buffer).dtype.itemsize for s in nest.body
              if isinstance(s, Load) and s.index.free_symbols & row]
    return min(8, 16 // max(widths, default=4))


def _shares_rows(nest: Nest) -> bool:
    """Whether some load is the same for all rows, such as a vector that multiplies each: several rows share it."""
    row = {a.symbol for a in nest.reduction}
    whole = {a.symbol for a in nest.axes}
    scopes = [nest.scopes[s.name] & whole for s in nest.body if isinstance(s, Load)]
    return any(s and s <= row for s in scopes) and any(s >= row and s - row for s in scopes) and not any(
        isinstance(s, Store) and nest.store_scope(s) & row for s in nest.body)


def _multiplies(nest: Nest) -> bool:
    """Whether rows are summed once with a vector that all of them share, as a matrix is multiplied by one: the fewer
    threads a row has, the less of their time goes into adding up what each has come to. What is reduced of the vector
    alone, as its norm is, doesn't count."""
    row = {a.symbol for a in nest.reduction}
    loads = sum(bool(nest.scopes[s.name] & row) for s in nest.body if isinstance(s, Load))
    sums = sum(any(nest.scopes[r.value] - row for r in p.reduces) for p in plan_phases(nest))
    return _shares_rows(nest) and sums == 1 and loads <= MOST_FACTORS and not nest.segmented


def _same_rows(nest: Nest) -> int:
    """How many neighbouring results are reduced from the same row each, as counts of several numbers in one; 1 where
    neighbours have rows of their own, or not only sums are made of them."""
    row = {a.symbol for a in nest.reduction}
    loads = [s for s in nest.body if isinstance(s, Load) and s.index.free_symbols & row]
    stored = any(isinstance(s, Scan) or (isinstance(s, Store) and nest.store_scope(s) & row) for s in nest.body)
    inner = nest.parallel[-1] if nest.parallel else None
    if inner is None or not loads or stored or nest.segmented or sweeps(nest) > 1 or any(
            inner.symbol in s.index.free_symbols for s in loads):
        return 1
    return inner.size


def rows_beside(size: int, most: int) -> int:
    """The largest power of two by which ``size`` rows can be divided, at most ``most`` and `MOST_BESIDE`."""
    return next((n for n in (8, 4, 2) if n <= min(most, MOST_BESIDE) and size % n == 0), 1)


def shared_cost(nest: Nest, axis: Axis) -> int:
    """Cost at each point of a row of the operations whose results are the same along a parallel ``axis``."""
    row = {a.symbol for a in nest.reduction}
    return sum(operation_cost(s.op, special_units=True) for s in nest.body
               if isinstance(s, Compute) and nest.scopes[s.name] & row and axis.symbol not in nest.scopes[s.name])


def _beside(nest: Nest) -> int:
    """How many rows are along the last parallel axis if they share what is costly; else 1."""
    last = nest.parallel[-1] if nest.parallel else None
    if last is None or rows_beside(last.size, last.size) != last.size:
        return 1
    return last.size if shared_cost(nest, last) >= COSTLY else 1


def widest_run(nest: Nest) -> int:
    """How many elements a tile has, at most, for each of its places."""
    return max((run.width for run in interleaved(nest, nest.body)), default=1)


def choose_tile(kernel: Kernel, nest: Nest, programs_wanted: int) -> Tile:
    """Tile sizes from the work: enough programs to fill the device, 16 bytes a thread and access, rows in registers.
    Rows of which segments are reduced are persistent, whether registers hold them or not.

    ``programs_wanted`` is the number of programs that fill the device (its streaming multiprocessors, times a few).
    """
    rows = prod(a.size for a in nest.parallel)
    widths = [kernel.buffer(s.buffer).dtype.itemsize for s in nest.body if isinstance(s, Load | Store)]
    vector = 16 // max(min(widths, default=4), 2)
    if not nest.reduction:
        block = 128 * max(vector // widest_run(nest), 1)
        while block > 128 and rows // block < programs_wanted:
            block //= 2
        block = min(block, power_of_two(rows))
        return Tile(block, 0, False, max(1, min(4, block // 32)), -(-rows // block))
    row = prod(a.size for a in nest.reduction)
    full = row_tile(nest)
    if nest.strip:
        return _strip_tile(nest, rows, full)
    crossed = crossed_axes(kernel, nest) if nest.parallel else None
    crossing = crossed is not None and set(crossed) == {nest.parallel[-1], nest.reduction[-1]}
    if not any(isinstance(s, Reduce | Scan) for s in nest.body):
        if crossing:
            return _crossing_tile(nest, rows, full, programs_wanted)
        # Rows of a map are gone through two places at a time: as many loads under way, and each thread has the row's
        # values to itself.
        block = min(128 * _lanes_held(nest, vector, 2), power_of_two(rows))
        return Tile(block, 2 if row % 2 == 0 else 1, False, max(1, min(4, block // 32)), -(-rows // block))
    if memory_along_rows(nest):
        if (xblock := min(power_of_two(_same_rows(nest)), WIDEST)) > 1:
            rblock = min(full, 8192 // xblock)
            return Tile(xblock, rblock, rblock == full, max(1, min(8, xblock * rblock // 512)), -(-rows // xblock))
        beside, kept = 1 if nest.segmented else _beside(nest), full * kept_tiles(nest)
        if beside > 1 and beside * kept <= PERSISTENT_ELEMENTS:
            return Tile(beside, full, True, max(1, beside * kept // (32 * BESIDE_LANE)), rows // beside)
        if nest.segmented or full * max(kept_tiles(nest), _loaded_at_once(nest)) <= PERSISTENT_ELEMENTS:
            xblock, wanted, programs, lane = 1, 8192 if _shares_rows(nest) else 1024, programs_wanted, 16
            if _multiplies(nest):
                wanted, programs, lane = 16384, 4 * programs_wanted, 128  # of fewer warps, more programs run at once
            least, held = 1, full * max(kept_tiles(nest), _loaded_at_once(nest))
            while crossing and 2 * least * held <= PERSISTENT_ELEMENTS and least < min(NARROWEST, rows):
                least *= 2
            while xblock < least or (xblock * full < wanted and rows // (2 * xblock) >= programs):
                xblock *= 2
            warps = max(1, min(MAX_WARPS, xblock * full // (32 * lane)))
            while warps * (rows // xblock) < programs and xblock * full >= 1024 * warps and warps < MAX_WARPS:
                warps *= 2  # few rows: the device is filled by the threads that share one
            return Tile(xblock, full, True, warps, -(-rows // xblock))
        processors = max(programs_wanted // RUNNING_PROGRAMS, 1)
        if sweeps(nest) > 1 and (rows <= processors or row_bytes(kernel, nest)[0] > SHARED_ROW_BYTES):
            # A multiprocessor that has nothing else to run streams at its rate with some 32 KiB of loads under way. A
            # scan has more of each element in registers.
            scans = any(isinstance(s, Scan) for s in nest.body)
            warps, lane = (MAX_WARPS // 2, 8) if scans else (MAX_WARPS, 16 if accumulators(nest) <= 2 else 8)
            return Tile(1, 32 * warps * lane, False, warps, min(rows, processors), resident=True)
        return Tile(1, 4096, False, 16, rows)
    xblock = min(power_of_two(rows), max(WIDEST, LEAST // full))
    while xblock > 16 and rows // xblock < programs_wanted:
        xblock //= 2
    rblock = min(full, max(4096 // xblock, 16))
    if rblock < full and (sweeps(nest) > 1 or nest.segmented):
        held = xblock
        while held > (1 if nest.segmented else NARROWEST) and held * full * kept_tiles(nest) > PERSISTENT_ELEMENTS:
            held //= 2
        if nest.segmented or held * full * kept_tiles(nest) <= PERSISTENT_ELEMENTS:
            xblock, rblock = held, full
    return Tile(xblock, rblock, rblock >= row, max(1, min(MAX_WARPS, xblock * rblock // 512)), -(-rows // xblock))


def _crossing_tile(nest: Nest, rows: int, full: int, programs_wanted: int) -> Tile:
    """A tile of two axes, along each of which some of what is accessed lies: 64 by 64 elements, fewer for few."""
    rblock = min(full, SIDE)
    xblock = min(CROSSING_ELEMENTS // rblock, power_of_two(rows))
    while xblock > NARROWEST and rows // xblock < programs_wanted:
        xblock //= 2
    loads = sum(isinstance(s, Load) for s in nest.body)
    lane = _lanes_held(nest, 16, 1) if loads else 16
    return Tile(xblock, rblock, rblock == full, max(1, min(8, xblock * rblock // (32 * lane))), -(-rows // xblock))


def _strip_tile(nest: Nest, rows: int, full: int) -> Tile:
    """Rows of a strip side by side as long as they and their column sums stay in registers."""
    strip = prod(a.size for a in nest.strip)
    row = {a.symbol for a in nest.reduction}
    reduced = [r for r in strip_reduces(nest) if nest.scopes[r.value] & row and not strip_holder(nest, r)]
    columns = sum(1 + (r.op == "expsum") for r in reduced) + len(strip_scans(nest))
    kept, most, lane = kept_tiles(nest) + columns, PERSISTENT_ELEMENTS // 2 if columns else 2048, 8 if columns else 16
    xblock = 1
    while 2 * xblock * full * kept <= most and strip % (2 * xblock) == 0:
        xblock *= 2
    warps = max(1, min(MAX_WARPS, xblock * full // (32 * lane)))
    return Tile(xblock, full, full * kept <= STRIP_ELEMENTS, warps, rows // strip, strip)
