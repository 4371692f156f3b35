"""Short last axes written out: their few points become statements of the points of the axis before.

A loop of two or three steps leaves nothing to vectorise, and what it divides by its length (an upsampled image, windows
that overlap) is no address that runs along memory. Written out, each division has a number for its rest, the loop
around is vectorised, and what several of the points read is read once.
"""
from __future__ import annotations

from dataclasses import replace

from sympy import Expr

from .index import Bounds, affine, bounds, symbol
from .interleaved import interleaved, lane_axis
from .ir import Compute, Const, Index, Kernel, Load, Nest, Stmt, Store, index_of, needed_statements
from .jam import copied
from .scatter import is_scatter

#: Longest axis that is written out, and most statements that it may become, more where its lanes are three,
#: which are no vector.
SHORT, MOST_STATEMENTS, MOST_OF_THREE = 4, 256, 400

#: Each comparison as ``a < b + n``: which operands ``a`` and ``b`` are, and ``n``.
_COMPARISONS = {"lt": (0, 1, 0), "le": (0, 1, 1), "gt": (1, 0, 0), "ge": (1, 0, 1)}


def write_out_short_axes(kernel: Kernel) -> Kernel:
    """``kernel`` with short last axes written out, in nests that neither reduce nor scatter; as it was if a buffer's
    values would all turn out to be overwritten, for the buffers are what a launch passes."""
    return with_nests(kernel, tuple(_written_out(kernel, n) for n in kernel.nests))


def write_out_interleaved_axes(kernel: Kernel) -> Kernel:
    """``kernel`` with short last axes written out where all that is accessed then lies side by side, or interleaved: as
    what pairs are rotated into, each from both."""
    found = []
    for nest in kernel.nests:
        written = _written_out(kernel, nest)
        found.append(written if written is not nest and _all_in_runs(written) else nest)
    return with_nests(kernel, tuple(found))


def _all_in_runs(nest: Nest) -> bool:
    """Whether every access is next to that of the neighbour, by itself or in a run with others."""
    axis = lane_axis(nest)
    if axis is None:
        return False
    together = {id(s) for run in interleaved(nest, nest.body) for s in run.members}
    for stmt in nest.body:
        if isinstance(stmt, Load | Store) and id(stmt) not in together and axis in stmt.index.free_symbols:
            coefficients, _, others = affine(stmt.index)
            if coefficients.get(axis) != 1 or any(axis in e.free_symbols for e in others):
                return False
    return bool(together)


def with_nests(kernel: Kernel, nests: tuple[Nest, ...]) -> Kernel:
    """``kernel`` with other nests, or as it was if those leave a buffer out."""
    used = {s.buffer for n in nests for s in n.body if isinstance(s, Load | Store)}
    return kernel if nests == kernel.nests or any(b.name not in used for b in kernel.buffers) else replace(
        kernel, nests=nests)


def _written_out(kernel: Kernel, nest: Nest) -> Nest:
    if nest.reduction or nest.strip or len(nest.axes) < 2 or nest.axes[-1].size > SHORT:
        return nest
    last = nest.axes[-1]
    if any(isinstance(s, Store) and is_scatter(s) for s in nest.body):
        return nest  # scatters keep to the order of the points
    most = MOST_OF_THREE if last.size == 3 else MOST_STATEMENTS
    written = merged(copied(nest, last, 1, last.size), kernel)
    return written if len(written.body) <= max(most, len(nest.body)) else nest


def merged(nest: Nest, kernel: Kernel) -> Nest:
    """``nest`` with equal statements once and without conditions that are decided; what it overwrites is read as often
    as before."""
    instead: dict[str, str] = {}
    known: dict[tuple[Stmt, str], str] = {}
    constants: dict[str, Const] = {}
    extents: dict[str, Bounds] = {}
    body: list[Stmt] = []
    for before in nest.body:
        stmt = _renamed(before, instead)
        if isinstance(stmt, Store):
            if _holds(constants, stmt.mask) is not False:
                body.append(replace(stmt, mask=None if _holds(constants, stmt.mask) else stmt.mask))
            continue
        name = stmt.name
        found = _decided(stmt, constants, extents)
        if isinstance(found, str):
            instead[name] = found
            continue
        stmt = found
        # Zeros of both signs are equal.
        key = (replace(stmt, name=""), repr(stmt.value) if isinstance(stmt, Const) else "")  # type: ignore[arg-type]
        if key in known:
            instead[name] = known[key]
            continue
        if not (isinstance(stmt, Load) and stmt.buffer in kernel.written):
            known[key] = name
        if isinstance(stmt, Const):
            constants[name] = stmt
            extents[name] = (int(stmt.value), int(stmt.value)) if type(stmt.value) is int else None
        elif isinstance(stmt, Index):
            extents[name] = bounds(stmt.expr, nest.ranges)
        body.append(stmt)
    return Nest(nest.axes, needed_statements(body))


def _holds(constants: dict[str, Const], mask: str | None) -> bool | None:
    """The truth of a condition that is decided; None for others and for none at all."""
    return bool(constants[mask].value) if mask in constants else None


def _renamed(stmt: Stmt, names: dict[str, str]) -> Stmt:
    """``stmt`` reading the values that ``names`` has in place of others."""
    index = index_of(stmt)
    if index is not None:
        values: dict[Expr, Expr] = {s: symbol(names[s.name]) for s in index.free_symbols if s.name in names}
        if values:
            index = index.xreplace(values)
            stmt = replace(stmt, expr=index) if isinstance(stmt, Index) else replace(stmt, index=index)  # type: ignore[call-arg]
    if isinstance(stmt, Load | Store) and stmt.mask in names:
        stmt = replace(stmt, mask=names[stmt.mask])
    if isinstance(stmt, Compute):
        return replace(stmt, args=tuple(names.get(a, a) for a in stmt.args))
    return replace(stmt, value=names.get(stmt.value, stmt.value)) if isinstance(stmt, Store) else stmt


def _compared(op: str, *extents: tuple[int, int]) -> bool | None:
    """The truth of a comparison of any numbers of two extents, if it is the same for all."""
    first, second, more = _COMPARISONS[op]
    (low, high), (lowest, highest) = extents[first], extents[second]
    if high < lowest + more:
        return True
    return False if low >= highest + more else None


def _decided(stmt: Stmt, constants: dict[str, Const], extents: dict[str, Bounds]) -> Stmt | str:
    """A simpler statement, or the name of an equal value, where what it depends on is known. ``extents`` has the
    smallest and the largest of whole numbers."""
    if isinstance(stmt, Index) and stmt.expr.is_Integer:
        return Const(stmt.name, stmt.dtype, int(stmt.expr))
    if isinstance(stmt, Load) and (holds := _holds(constants, stmt.mask)) is not None:
        return replace(stmt, mask=None, other=0) if holds else Const(stmt.name, stmt.dtype, stmt.other)
    if not isinstance(stmt, Compute):
        return stmt
    if stmt.op in _COMPARISONS:
        left, right = (extents.get(a) for a in stmt.args)
        holds = None if left is None or right is None else _compared(stmt.op, left, right)
        if holds is not None:
            return Const(stmt.name, stmt.dtype, holds)
    if stmt.op == "where" and stmt.args[0] in constants:
        return stmt.args[1] if constants[stmt.args[0]].value else stmt.args[2]
    if stmt.op in ("and", "or"):
        for k, name in enumerate(stmt.args):
            if name in constants and isinstance(constants[name].value, bool):
                settles = constants[name].value == (stmt.op == "or")
                return name if settles else stmt.args[1 - k]
    return stmt
