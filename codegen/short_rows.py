"""Short rows written out on a CPU: a row's few points become statements, and vectors go from row to row.

A loop over ten classes fills no vector and ends by adding up its lanes, which takes longer than the sum itself. Written
out, what was a reduction is a chain of operations, the nest is elementwise work over its rows, and a vector has one
element of each of sixteen rows.
"""
from __future__ import annotations

from itertools import product
from math import prod

from sympy import Integer

from .ir import Axis, Compute, Kernel, Nest, Reduce, Scan, Stmt, Store
from .jam import moved
from .lower_reductions import COMBINED
from .operations import operation_cost
from .scatter import is_scatter
from .short_axes import merged, with_nests
from .simplify import simplify_nest

#: Longest row that is written out, fewest rows of which vectors are made, and most statements that a row may become.
SHORT_ROW, FEWEST_ROWS, MOST_STATEMENTS = 32, 64, 400
#: Lengths that g++ takes apart by shuffles; other rows go through arrays, which costs more than a plain sum along the
#: row does, and pays for work of so many plain operations a point or for what loops over a row keep in scalars.
SHUFFLED, WORTH_MOVING = (2, 3, 4, 8, 16), 16
#: Rows of whole vectors have none such; of those what is worth it is as much work once a row, which is scalar.
VECTOR, WORTH_ONCE = 16, 40


def write_out_short_rows(kernel: Kernel, fewest: int = FEWEST_ROWS) -> Kernel:
    """``kernel`` with its short rows written out, in nests of at least ``fewest`` of them; as it was if a buffer's
    values turn out not to be needed."""
    return with_nests(kernel, tuple(_written_out(kernel, n) if _allows(n, fewest) else n for n in kernel.nests))


def _allows(nest: Nest, fewest: int) -> bool:
    """Whether rows are few points each, which are joined by operations, and none keeps to an order with others."""
    row = prod(a.size for a in nest.reduction)
    if not nest.reduction or nest.strip or nest.segmented or row > SHORT_ROW:
        return False
    if prod(a.size for a in nest.parallel) < fewest or sum(_copies(nest, s, row) for s in nest.body) > MOST_STATEMENTS:
        return False
    if any(isinstance(s, Scan) or (isinstance(s, Store) and is_scatter(s)) for s in nest.body):
        return False
    reduces = [s for s in nest.body if isinstance(s, Reduce)]
    if not all(s.op in COMBINED and s.fold == 1 for s in reduces):
        return False
    once, each = _work(nest)
    if row in SHUFFLED or once >= WORTH_ONCE:
        return True
    return row % VECTOR != 0 and (each >= WORTH_MOVING or any(s.op != "sum" for s in reduces))


def _copies(nest: Nest, stmt: Stmt, row: int) -> int:
    scope = nest.store_scope(stmt) if isinstance(stmt, Store) else nest.scopes[stmt.name]
    return row if isinstance(stmt, Reduce) or scope & {a.symbol for a in nest.reduction} else 1


def _work(nest: Nest) -> tuple[int, int]:
    """Plain operations once a row and at each of its points."""
    row = {a.symbol for a in nest.reduction}
    parts = [0, 0]
    for stmt in nest.body:
        if isinstance(stmt, Compute):
            parts[bool(nest.scopes[stmt.name] & row)] += operation_cost(stmt.op)
    return parts[0], parts[1]


def _written_out(kernel: Kernel, nest: Nest) -> Nest:
    row = {a.symbol for a in nest.reduction}
    varying = frozenset(n for n, scope in nest.scopes.items() if scope & row)
    points = list(product(*[range(a.size) for a in nest.reduction]))
    body: list[Stmt] = []
    for stmt in nest.body:
        if isinstance(stmt, Reduce):
            body += _chain(stmt, [f"{stmt.value}_{k}" if stmt.value in varying else stmt.value
                                  for k in range(len(points))])
        elif stmt.name in varying if not isinstance(stmt, Store) else nest.store_scope(stmt) & row:
            for k, point in enumerate(points):
                place = {a.symbol: Integer(at) for a, at in zip(nest.reduction, point)}
                body.append(moved(stmt, f"_{k}", varying, place, nest.ranges))
        else:
            body.append(stmt)
    axes: tuple[Axis, ...] = tuple(a for a in nest.axes if not a.reduction)
    return simplify_nest(merged(Nest(axes, tuple(body)), kernel))


def _chain(stmt: Reduce, values: list[str]) -> list[Stmt]:
    """The ``values`` joined one after the other, the last result under the reduction's name."""
    found: list[Stmt] = []
    total = values[0]
    for k, value in enumerate(values[1:], 1):
        name = stmt.name if k == len(values) - 1 else f"{stmt.name}_to{k}"
        found.append(Compute(name, stmt.dtype, COMBINED[stmt.op], (total, value)))
        total = name
    return found
