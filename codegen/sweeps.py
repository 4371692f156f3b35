"""In what order a nest's statements run: work once a row, sweeps over the reduction axes, and what each sweep needs.

A value's *level* is how many reductions lie below it: a softmax's maximum is read from level 0 and known at level 1,
its sum read at level 1 and known at level 2, its quotient stored at level 2: three sweeps. A value that several sweeps
need is computed again in each unless the printer holds it.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .ir import Load, Nest, Reduce, Scan, Stmt, Store, operands


@dataclass(frozen=True)
class Phase:
    """Statements that run together: once a row (``sweep`` False), or at every point of a row (``sweep`` True)."""

    sweep: bool
    body: tuple[Stmt, ...]

    @property
    def reduces(self) -> tuple[Reduce, ...]:
        """Reductions along the row."""
        return tuple(s for s in self.body if isinstance(s, Reduce) and not s.strip)


def inner_values(nest: Nest) -> frozenset[str]:
    """Names of the values that vary over a reduction axis."""
    reduction = {a.symbol for a in nest.reduction}
    return frozenset(n for n, scope in nest.scopes.items() if scope & reduction)


def _is_inner_store(nest: Nest, store: Store) -> bool:
    return bool(nest.store_scope(store) & {a.symbol for a in nest.reduction})


def levels(nest: Nest) -> dict[str, int]:
    """How many reductions lie below each value."""
    result: dict[str, int] = {}
    for stmt in nest.body:
        if not isinstance(stmt, Store):
            below = max((result[n] for n in operands(stmt)), default=0)
            result[stmt.name] = below + 1 if isinstance(stmt, Reduce) else below
    return result


def _closure(nest: Nest, wanted: Iterable[Stmt], inner: frozenset[str]) -> tuple[Stmt, ...]:
    """``wanted`` and the inner statements that they need, in the order of the body."""
    roots = list(wanted)
    needed = {n for s in roots for n in operands(s) if n in inner}
    kept: list[Stmt] = []
    for stmt in reversed(nest.body):
        if any(stmt is r for r in roots):
            kept.append(stmt)
        elif not isinstance(stmt, Store | Reduce) and stmt.name in needed:
            needed.update(n for n in operands(stmt) if n in inner)
            kept.append(stmt)
    return tuple(reversed(kept))


def strip_reduces(nest: Nest) -> tuple[Reduce, ...]:
    """The sums and extrema over the rows of a strip."""
    return tuple(s for s in nest.body if isinstance(s, Reduce) and s.strip)


def strip_holder(nest: Nest, reduce: Reduce) -> Reduce | None:
    """The sum of exponentials down a strip that knows the maximum ``reduce`` as well, or None."""
    return next((r for r in strip_reduces(nest) if (r.op, r.value, r.dtype) == ("expsum", reduce.value, reduce.dtype)
                 and reduce.op == "max"), None)


def strip_scans(nest: Nest) -> tuple[Scan, ...]:
    """The scans down the columns of a strip."""
    return tuple(s for s in nest.body if isinstance(s, Scan) and s.strip)


def names_after_strips(nest: Nest) -> frozenset[str]:
    """Values that are known only once all rows of a strip are done, the sums over them included."""
    names: set[str] = set()
    for stmt in nest.body:
        if (isinstance(stmt, Reduce) and stmt.strip) or (
                not isinstance(stmt, Store) and any(n in names for n in operands(stmt))):
            names.add(stmt.name)
    return frozenset(names)


def after_strips(nest: Nest) -> tuple[Stmt, ...]:
    """The statements of those values, and the stores of them."""
    names = names_after_strips(nest)
    return tuple(s for s in nest.body if (any(n in names for n in operands(s)) if isinstance(s, Store)
                                          else s.name in names))


def stored_again(nest: Nest) -> tuple[Store, ...]:
    """The stores that several rows make at the same places, as those of a strip do before its end: what they overwrite,
    the next row can't read."""
    late = after_strips(nest)
    return tuple(s for s in nest.body if isinstance(s, Store) and not nest.store_scope(s) >= {
        a.symbol for a in nest.axes if not a.reduction and not (a.strip and s in late)})


def finale(nest: Nest) -> tuple[Stmt, ...]:
    """What runs once a column after the last row of a strip: the stores of its sums and all that they need, the sums
    themselves left out."""
    names = names_after_strips(nest)
    ending = [s for s in nest.body if isinstance(s, Store) and any(n in names for n in operands(s))]
    needed = {n for s in ending for n in operands(s)}
    kept: list[Stmt] = []
    for stmt in reversed(nest.body):
        if any(stmt is s for s in ending):
            kept.append(stmt)
        elif not isinstance(stmt, Store | Reduce) and stmt.name in needed:
            needed.update(operands(stmt))
            kept.append(stmt)
    return tuple(reversed(kept))


def _without(nest: Nest, left_out: tuple[Stmt, ...]) -> Nest:
    """``nest`` without these statements and what only they needed."""
    if not left_out:
        return nest
    needed: set[str] = set()
    kept: list[Stmt] = []
    for stmt in reversed(nest.body):
        if not any(stmt is s for s in left_out) and (
                isinstance(stmt, Store) or stmt.name in needed or (isinstance(stmt, Reduce) and stmt.strip)):
            needed.update(operands(stmt))
            kept.append(stmt)
    return Nest(nest.axes, tuple(reversed(kept)))


def plan_phases(nest: Nest) -> tuple[Phase, ...]:
    """Phases in order; without reduction axes there is one, that runs at every point."""
    return nest.once(_planned)


def _planned(nest: Nest) -> tuple[Phase, ...]:
    if not nest.reduction:
        return (Phase(False, nest.body),)
    nest = _without(nest, tuple(s for s in after_strips(nest) if not isinstance(s, Reduce)))
    inner, level = inner_values(nest), levels(nest)
    depth = max((level[s.name] for s in nest.body if isinstance(s, Reduce) and not s.strip), default=0)
    sweeps: list[list[Stmt]] = [[] for _ in range(depth + 1)]
    for stmt in nest.body:
        if isinstance(stmt, Reduce):
            sweeps[level[stmt.value]].append(stmt)
    for stmt in nest.body:
        if isinstance(stmt, Store) and _is_inner_store(nest, stmt):
            sweeps[max(level[n] for n in operands(stmt))].append(stmt)
    _overwrite_last(nest, sweeps, inner)
    before = _outer_levels(nest, sweeps, level, inner)
    phases: list[Phase] = []
    for k, wanted in enumerate([*sweeps, []]):
        outer = tuple(s for s, place in zip(nest.body, before) if place == k)
        if outer:
            phases.append(Phase(False, outer))
        if wanted:
            phases.append(Phase(True, _closure(nest, wanted, inner)))
    return tuple(phases)


def _overwrite_last(nest: Nest, sweeps: list[list[Stmt]], inner: frozenset[str]) -> None:
    """Move every store to a buffer that a later sweep reads into the last one that does."""
    moved = True
    while moved:
        moved = False
        reads = [{s.buffer for s in _closure(nest, wanted, inner) if isinstance(s, Load)} for wanted in sweeps]
        for k, wanted in enumerate(sweeps):
            for stmt in [s for s in wanted if isinstance(s, Store)]:
                last = max((j for j in range(k + 1, len(sweeps)) if stmt.buffer in reads[j]), default=k)
                if last > k:
                    wanted.remove(stmt)
                    sweeps[last].append(stmt)
                    moved = True


def _outer_levels(
    nest: Nest, sweeps: list[list[Stmt]], level: dict[str, int], inner: frozenset[str]
) -> list[int | None]:
    """For each statement of the body, before which sweep it runs if it does once a row: a store after all that reads
    its buffer, which may be a sweep that asks at every point for what the row shares."""
    reads = [{s.buffer for s in _closure(nest, wanted, inner) if isinstance(s, Load)} for wanted in sweeps]
    found: list[int | None] = []
    for stmt in nest.body:
        if isinstance(stmt, Reduce) or (_is_inner_store(nest, stmt) if isinstance(stmt, Store) else stmt.name in inner):
            found.append(None)
        elif not isinstance(stmt, Store):
            found.append(level[stmt.name])
        else:
            rows = (level[s.name] for s in nest.body if isinstance(s, Load) and s.buffer == stmt.buffer)
            after = (k + 1 for k, buffers in enumerate(reads) if stmt.buffer in buffers)
            found.append(max((*(level[n] for n in operands(stmt)), *rows, *after)))
    return found
