"""Short rows written out on a CPU: a row's few points become statements, and vectors go from row to row.

A loop over ten classes fills no vector and ends by adding up its lanes, which takes longer than the sum itself. Written
out, what was a reduction is a chain of operations, the nest is elementwise work over its rows, and a vector has one
element of each of sixteen rows.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import prod

import torch
from sympy import Integer

from .index import symbol
from .ir import Axis, Compute, Const, Kernel, Load, Nest, Reduce, Scan, Stmt, Store
from .jam import moved
from .lower_reductions import COMBINED
from .operations import operation_cost
from .scatter import is_scatter
from .short_axes import merged, with_nests
from .simplify import simplify_nest
from .sweeps import strip_reduces

#: Longest row that is written out, fewest rows of which vectors are made, and most statements that a row may become.
SHORT_ROW, FEWEST_ROWS, MOST_STATEMENTS = 32, 64, 400
#: Most columns of a strip that are summed at once.
MOST_COLUMNS = 64
#: Lengths that g++ takes apart by shuffles; other rows go through arrays, which costs more than a plain sum along the
#: row does, and pays for work of so many plain operations a point or for what loops over a row keep in scalars.
SHUFFLED, WORTH_MOVING = (2, 3, 4, 8, 16), 16
#: Longest last axis of rows that have others, which is written out.
LONGEST_END = 3
#: Rows of whole vectors have none such; of those what is worth it is as much work once a row, which is scalar.
VECTOR, WORTH_ONCE = 16, 40


def write_out_short_rows(kernel: Kernel, fewest: int = FEWEST_ROWS) -> Kernel:
    """``kernel`` with its short rows written out, in nests of at least ``fewest`` of them; as it was if a buffer's
    values turn out not to be needed."""
    return with_nests(kernel, tuple(
        _written_out(kernel, n, n.reduction) if _allows(n, fewest) or strip_of_short_rows(n) else n
        for n in kernel.nests))


def strip_of_short_rows(nest: Nest) -> bool:
    """Whether the rows of a strip are so short that each of their columns is summed along the strip by itself."""
    columns = strip_reduces(nest)
    row, rows = (prod(a.size for a in axes) for axes in (nest.reduction, nest.strip))
    return bool(columns) and row < VECTOR and rows >= FEWEST_ROWS and len(columns) * row <= MOST_COLUMNS and (
        not any(r.op == "expsum" for r in columns) and _joins(replace(nest, axes=tuple(
            replace(a, strip=False) for a in nest.axes)))) and (
        sum(_copies(nest, s, nest.reduction) for s in nest.body) <= MOST_STATEMENTS)


def _allows(nest: Nest, fewest: int) -> bool:
    """Whether rows are few points each, which are joined by operations, and none keeps to an order with others."""
    row = prod(a.size for a in nest.reduction)
    if not nest.reduction or row > SHORT_ROW or not _joins(nest):
        return False
    if prod(a.size for a in nest.parallel) < fewest or (
            sum(_copies(nest, s, nest.reduction) for s in nest.body) > MOST_STATEMENTS):
        return False
    reduces = [s for s in nest.body if isinstance(s, Reduce)]
    once, each = _work(nest)
    if row in SHUFFLED or once >= WORTH_ONCE:
        return True
    return row % VECTOR != 0 and (each >= WORTH_MOVING or any(s.op != "sum" for s in reduces))


def _copies(nest: Nest, stmt: Stmt, along: Sequence[Axis]) -> int:
    scope = nest.store_scope(stmt) if isinstance(stmt, Store) else nest.scopes[stmt.name]
    row = prod(a.size for a in along)
    return row if isinstance(stmt, Reduce) or scope & {a.symbol for a in along} else 1


def _work(nest: Nest) -> tuple[float, float]:
    """Plain operations once a row and at each of its points. What rows share counts for each its share."""
    row = {a.symbol for a in nest.reduction}
    parts = [0.0, 0.0]
    for stmt in nest.body:
        if isinstance(stmt, Compute):
            scope = nest.scopes[stmt.name]
            shared = prod(a.size for a in nest.parallel if a.symbol not in scope)
            parts[bool(scope & row)] += operation_cost(stmt.op) / shared
    return parts[0], parts[1]


def write_out_row_ends(kernel: Kernel, along_rows: Callable[[Nest], bool]) -> Kernel:
    """``kernel`` with the last axis of its rows written out where that is as short as a pair, the rows have others, and
    memory runs along them: a loop over pairs of which each half needs the other has no vectors."""
    return with_nests(kernel, tuple(_written_out(kernel, n, n.reduction[-1:])
                                    if _ends_shortly(n) and along_rows(n) else n for n in kernel.nests))


def _ends_shortly(nest: Nest) -> bool:
    rows = nest.reduction
    return len(rows) > 1 and rows[-1].size <= LONGEST_END and rows[-2].size >= VECTOR and _joins(nest) and (
        sum(_copies(nest, s, rows[-1:]) for s in nest.body) <= MOST_STATEMENTS)


def _joins(nest: Nest) -> bool:
    """Whether the points of rows are joined by operations, and keep to no order with others."""
    return not nest.strip and not nest.segmented and not any(
        isinstance(s, Scan) or (isinstance(s, Store) and is_scatter(s)) for s in nest.body) and all(
        s.op in COMBINED and s.fold == 1 for s in nest.body if isinstance(s, Reduce))


def _written_out(kernel: Kernel, nest: Nest, along: Sequence[Axis]) -> Nest:
    """``nest`` with the points of the reduction axes ``along`` as statements."""
    row = {a.symbol for a in along}
    varying = frozenset(n for n, scope in nest.scopes.items() if scope & row)
    points = list(product(*[range(a.size) for a in along]))
    whole = len(along) == len(nest.reduction)
    body: list[Stmt] = []
    for stmt in nest.body:
        if isinstance(stmt, Reduce) and not stmt.strip:
            values = [f"{stmt.value}_{k}" if stmt.value in varying else stmt.value for k in range(len(points))]
            if whole:
                body += _chain(stmt, values)
            else:
                part = f"{stmt.name}_part"
                body += [*_chain(replace(stmt, name=part), values), replace(stmt, value=part)]
        elif stmt.name in varying if not isinstance(stmt, Store) else nest.store_scope(stmt) & row:
            for k, point in enumerate(points):
                place = {a.symbol: Integer(at) for a, at in zip(along, point)}
                copy = moved(stmt, f"_{k}", varying, place, nest.ranges)
                body.append(replace(copy, strip=False) if isinstance(copy, Reduce) else copy)
        elif isinstance(stmt, Load) and stmt.buffer not in kernel.written and (
                found := _of_its_row(nest, stmt, along)) is not None:
            body += _choice(nest, stmt, found, along[0])
        else:
            body.append(stmt)
    # The rows of a strip are the points of its columns' sums.
    axes = tuple(replace(a, strip=False, reduction=a.reduction or a.strip) for a in nest.axes if a not in along)
    return simplify_nest(merged(Nest(axes, tuple(body)), kernel))


def _of_its_row(nest: Nest, stmt: Load, along: Sequence[Axis]) -> str | None:
    """The place within a row, checked to be in it, that ``stmt`` looks up, if another load goes over that row: narrow
    elements aren't gathered, and all of these are at hand."""
    made = {s.name: s for s in nest.body if not isinstance(s, Store)}
    for value in stmt.index.free_symbols if len(along) == 1 and along[0].size > 1 and stmt.mask is None else ():
        place = made.get(value.name)
        size = made.get(place.args[1]) if isinstance(place, Compute) and place.op == "bounded" else None
        if isinstance(size, Const) and size.value == along[0].size:
            row = replace(stmt, index=stmt.index.xreplace({value: along[0].symbol}))
            if any(isinstance(s, Load) and s == replace(row, name=s.name) for s in nest.body):
                return value.name
    return None


def _choice(nest: Nest, stmt: Load, at: str, axis: Axis) -> list[Stmt]:
    """The element ``at`` a place of a row of which all are loaded, under the name of what looked it up."""
    row = replace(stmt, index=stmt.index.xreplace({symbol(at): axis.symbol}))
    each = [moved(row, f"_{k}", frozenset({stmt.name}), {axis.symbol: Integer(k)}, nest.ranges)
            for k in range(axis.size)]
    body, chosen = each[:1], f"{stmt.name}_0"
    for k, element in enumerate(each[1:], 1):
        here, number = f"{stmt.name}_is{k}", f"{stmt.name}_place{k}"
        name = stmt.name if k == axis.size - 1 else f"{stmt.name}_to{k}"
        body += [element, Const(number, torch.int64, k), Compute(here, torch.bool, "eq", (at, number)),
                 Compute(name, stmt.dtype, "where", (here, f"{stmt.name}_{k}", chosen))]
        chosen = name
    return body


def _chain(stmt: Reduce, values: list[str]) -> list[Stmt]:
    """The ``values`` joined one after the other, the last result under the reduction's name."""
    found: list[Stmt] = []
    total = values[0]
    for k, value in enumerate(values[1:], 1):
        name = stmt.name if k == len(values) - 1 else f"{stmt.name}_to{k}"
        found.append(Compute(name, stmt.dtype, COMBINED[stmt.op], (total, value)))
        total = name
    return found
