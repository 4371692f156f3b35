"""Which values of a C++ nest are kept in memory and where: from one sweep to the next, or once for all rows."""
from __future__ import annotations

from collections.abc import Sequence
from math import prod

from .index import affine
from .ir import Compute, Kernel, Load, Nest, Reduce, Scan, Stmt, Store, operands
from .sweeps import Phase, inner_values

#: Bytes of thread-local memory for a row of values that several sweeps need.
HELD_BYTES = 1 << 18

#: Operations from which on a value of a row is kept for the next sweep rather than computed again.
HOLDING = 8

_HEAVY = frozenset((
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf "
    "erfc lgamma pow sigmoid atan2"
).split())
#: Rows from which on values that are the same for all of them are computed beforehand.
SHARING_ROWS = 8


def held_values(nest: Nest, phases: Sequence[Phase], shared: frozenset[str] = frozenset()) -> frozenset[str]:
    """Inner values kept from one sweep to the next because computing them again costs more than a load. Those in
    ``shared``, and what those are made of, aren't computed in any."""
    sweeps = [p for p in phases if p.sweep]
    if len(sweeps) < 2:
        return frozenset()
    inner = inner_values(nest)
    row = prod(a.size for a in nest.reduction)
    result: dict[str, int] = {}
    again_wanted = {s.name: k for k, p in enumerate(sweeps) for s in p.body if not isinstance(s, Store)}
    apart = set(shared)
    for stmt in reversed(nest.body):
        if not isinstance(stmt, Store) and stmt.name in apart:
            apart.update(operands(stmt))
    moved_on = frozenset(s.name for k, p in enumerate(sweeps) for s in p.body
                         if isinstance(s, Scan) and s.strip and again_wanted[s.name] > k)
    for first, later in zip(sweeps, sweeps[1:]):
        used = {n for s in later.body for n in operands(s)}
        inside_later = {s.name for s in later.body if not isinstance(s, Store | Reduce)}
        again: dict[str, int] = {}
        for stmt in first.body:
            if isinstance(stmt, Load) and not stmt.index.free_symbols <= nest.ranges.keys():
                again[stmt.name] = HOLDING  # looked up, one element after the other
            if not isinstance(stmt, Compute) or stmt.name not in inner:
                continue
            again[stmt.name] = 0 if stmt.name in result or stmt.name in apart else (
                HOLDING if stmt.op in _HEAVY else 1) + sum(again.get(a, 0) for a in stmt.args)
            if again[stmt.name] >= HOLDING and stmt.name in used and stmt.name in inside_later:
                result[stmt.name], again[stmt.name] = row * stmt.dtype.itemsize, 0
    while sum(result.values()) > HELD_BYTES:
        result.popitem()
    # A column's total has moved on once its row was added.
    return (_read_back(sweeps, frozenset(result) | shared) & result.keys()) | moved_on


def _read_back(sweeps: Sequence[Phase], kept: frozenset[str]) -> frozenset[str]:
    """The values in ``kept`` that later sweeps read: not those that only others of them are made of."""
    found: set[str] = set()
    for k, sweep in enumerate(sweeps):
        waiting = {s.name for p in sweeps[:k] for s in p.body if not isinstance(s, Store)} & kept
        needed: set[str] = set()
        for stmt in reversed(sweep.body):
            if isinstance(stmt, Store | Reduce) or (stmt.name in needed and stmt.name not in waiting):
                needed.update(operands(stmt))
        found |= needed & waiting
    return frozenset(found)


def hosting_stores(kernel: Kernel, nest: Nest, phases: Sequence[Phase], held: frozenset[str],
                   streamed: Sequence[str] = ()) -> dict[str, Store]:
    """Held values that can wait in the row of a result, which a later sweep overwrites: the first sweep then brings the
    result's memory in while it computes, and no row of their own is needed. With each the store of that result. Results
    that are ``streamed`` past the caches host none.

    A result may lie in the memory of an input of its size, which the sweep that stores it is the last to read: then
    nothing of that size may be read once the value waits there.
    """
    sweeps = [p for p in phases if p.sweep]
    stores = [s for n in kernel.nests for s in n.body if isinstance(s, Store)]
    others = kernel.read | set(streamed)
    hosts: dict[str, Store] = {}
    for name in sorted(held):
        made = next(s for s in nest.body if not isinstance(s, Store) and s.name == name)
        last = max(k for k, p in enumerate(sweeps) for s in p.body if not isinstance(s, Store) and s.name == name)
        read = next(k for k, s in enumerate(sweeps[last].body) if s is made)  # what is stored before would be read
        later = [*sweeps[last].body[read:], *(s for p in sweeps[last + 1:] for s in p.body)]
        for store in (s for s in later if isinstance(s, Store)):
            alone = sum(s.buffer == store.buffer for s in stores) == 1 and store.buffer not in others
            if (alone and not _reads_after(kernel, made, sweeps, held, kernel.buffer(store.buffer).size)
                    and kernel.buffer(store.buffer).dtype == made.dtype and _whole_row(nest, store)
                    and all(store is not s for s in hosts.values())):
                hosts[name] = store
                break
    return hosts


def _reads_after(kernel: Kernel, made: Stmt, sweeps: Sequence[Phase], held: frozenset[str], size: int) -> bool:
    """Whether a buffer of ``size`` elements is loaded in the sweep that makes a held value, after it, or in a later
    one."""
    first = next(k for k, p in enumerate(sweeps) if any(s is made for s in p.body))
    rest = sweeps[first].body[next(k for k, s in enumerate(sweeps[first].body) if s is made):]
    loads = [s for s in rest if isinstance(s, Load)]
    for k, sweep in enumerate(sweeps[first + 1:], first + 1):
        needed: set[str] = set()
        waiting = {s.name for p in sweeps[:k] for s in p.body if not isinstance(s, Store)} & held
        for stmt in reversed(sweep.body):
            if isinstance(stmt, Store | Reduce) or (stmt.name in needed and stmt.name not in waiting):
                needed.update(operands(stmt))
                loads += [stmt] if isinstance(stmt, Load) else []
    return any(kernel.buffer(s.buffer).size == size for s in loads)


def _whole_row(nest: Nest, store: Store) -> bool:
    """Whether a store writes all elements of a row, one behind the other."""
    coefficients, _, others = affine(store.index)
    stride = 1
    for axis in reversed(nest.reduction):
        if coefficients.get(axis.symbol) != stride:
            return False
        stride *= axis.size
    return not others and store.mask is None and not store.accumulate


def shared_row_values(kernel: Kernel, nest: Nest) -> frozenset[str]:
    """Inner values that are the same for every row, computed once for all rows instead of once in each.

    Such as the vector that a matrix is multiplied by: converted to float, normalised. What is loaded as it is and
    in order gains nothing.
    """
    row = prod(a.size for a in nest.reduction)
    rows = prod(a.size for a in nest.parallel)
    if not nest.reduction or rows < SHARING_ROWS:
        return frozenset()
    parallel = {a.symbol for a in nest.parallel}
    inner, scopes = inner_values(nest), nest.scopes
    varying = [s for s in nest.body if not isinstance(s, Store | Reduce) and scopes[s.name] & parallel]
    used = {n for s in varying for n in operands(s)}
    found = [s for s in nest.body if not isinstance(s, Store | Reduce) and s.name in used
             and s.name in inner and not scopes[s.name] & parallel and _worth_sharing(kernel, nest, s)]
    fits = [s.name for s in found if row * s.dtype.itemsize <= HELD_BYTES]
    return frozenset(fits[:4])


def _worth_sharing(kernel: Kernel, nest: Nest, stmt: Stmt) -> bool:
    if not isinstance(stmt, Load):
        return isinstance(stmt, Compute) and stmt.dtype.is_floating_point
    in_order = affine(stmt.index)[0].get(nest.reduction[-1].symbol) == 1
    return stmt.mask is None and (not in_order or kernel.buffer(stmt.buffer).dtype != stmt.dtype)
