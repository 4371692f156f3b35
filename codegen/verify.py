"""The rules of the loop IR, checked: names are bound once and before use, types agree, indices stay inside."""
from __future__ import annotations

import torch

from .errors import InvalidKernel
from .index import bounds
from .ir import (
    DOWN_STRIPS,
    ONLINE,
    OPS,
    REDUCTIONS,
    SCANS,
    Compute,
    Const,
    Index,
    Kernel,
    Load,
    Nest,
    Reduce,
    Scan,
    Stmt,
    Store,
    compute_dtype,
    format_statement,
    index_of,
    operands,
)
from .sweeps import names_after_strips


def verify(kernel: Kernel) -> Kernel:
    """Return ``kernel`` unchanged, or raise InvalidKernel naming the statement and the rule that it breaks."""
    names = [b.name for b in kernel.buffers]
    if len(set(names)) != len(names):
        raise InvalidKernel(f"{kernel.name}: two buffers share a name")
    unused = set(names) - kernel.read - kernel.written
    if unused:
        raise InvalidKernel(f"{kernel.name}: buffer {min(unused)} is neither read nor written")
    for nest in kernel.nests:
        _verify_nest(kernel, nest)
    return kernel


def _verify_nest(kernel: Kernel, nest: Nest) -> None:
    kinds = [("parallel", "strip", "reduction").index(a.kind) for a in nest.axes]
    if kinds != sorted(kinds):
        raise InvalidKernel(f"{kernel.name}: axes must be parallel, then strip, then reduction axes")
    if len(nest.ranges) != len(nest.axes) or any(a.size < 1 for a in nest.axes):
        raise InvalidKernel(f"{kernel.name}: axes must have distinct symbols and sizes of at least one")
    known: dict[str, torch.dtype] = {}
    for stmt in nest.body:
        problem = _problem(kernel, nest, known, stmt)
        if problem:
            raise InvalidKernel(f"{kernel.name}: `{format_statement(stmt)}`: {problem}")
        if not isinstance(stmt, Store):
            known[stmt.name] = stmt.dtype
    if not any(isinstance(s, Store) for s in nest.body):
        raise InvalidKernel(f"{kernel.name}: a nest stores nothing")
    late = names_after_strips(nest) if nest.strip else frozenset()
    for stmt in nest.body:
        problem = _reduction_problem(nest, stmt, late)
        if problem:
            raise InvalidKernel(f"{kernel.name}: `{format_statement(stmt)}`: {problem}")


def _reduction_problem(nest: Nest, stmt: Stmt, late: frozenset[str]) -> str | None:
    """What is wrong with a reduction, a scan or what comes after a strip; ``late`` are the values that are known only
    then."""
    if isinstance(stmt, Reduce):
        if not (nest.strip if stmt.strip else nest.reduction):
            return f"the nest has no {'strip' if stmt.strip else 'reduction'} axis"
        row = {a.symbol for a in nest.reduction}
        whole = not row & nest.scopes[stmt.value] or nest.scopes[stmt.value] >= row
        if stmt.strip and (stmt.op not in (*DOWN_STRIPS, "expsum") or not whole):
            return f"over a strip there is only {', '.join(DOWN_STRIPS)}, of whole rows or what is one for each"
        if stmt.fold > 1 and (stmt.strip or stmt.along or not nest.parallel or nest.parallel[-1].size % stmt.fold):
            return "neighbours are folded in whole numbers of groups, along the last parallel axis"
        if stmt.along:
            return _segment_problem(nest, stmt)
    if isinstance(stmt, Scan) and (not nest.reduction or stmt.strip != bool(nest.strip)):
        return "a scan goes along reduction axes, or down the columns of a strip where there are any"
    if not (any(n in late for n in operands(stmt)) if isinstance(stmt, Store) else stmt.name in late):
        return None
    if isinstance(stmt, Reduce):
        return "it needs what the strip ends with" if not stmt.strip or stmt.value in late else None
    scope = nest.store_scope(stmt) if isinstance(stmt, Store) else nest.scopes[stmt.name]
    return "a column's sum is known only after the strip" if scope & {a.symbol for a in nest.strip} else None


def _segment_problem(nest: Nest, reduce: Reduce) -> str | None:
    axes = [a.symbol for a in nest.reduction]
    if reduce.strip or nest.strip or any(isinstance(s, Scan) for s in nest.body):
        return "rows with strips or scans have no segments"
    if not set(reduce.along) < set(axes):
        return "it goes along some of the reduction axes, not all"
    return "it has no segmented form" if reduce.op in ONLINE else None


def _problem(kernel: Kernel, nest: Nest, known: dict[str, torch.dtype], stmt: Stmt) -> str | None:
    for name in operands(stmt):
        if name not in known:
            return f"{name} is used before it is bound"
    if not isinstance(stmt, Store):
        if stmt.name in known:
            return f"{stmt.name} is bound twice"
        if compute_dtype(stmt.dtype) != stmt.dtype:
            return f"{stmt.dtype} is a storage type, not a compute type"
    index = index_of(stmt)
    if index is not None:
        strangers = [s for s in index.free_symbols if s not in nest.ranges and s.name not in known]
        if strangers:
            return f"index symbol {min(map(str, strangers))} is neither an axis nor a value"
    if isinstance(stmt, Load | Store):
        return _access_problem(kernel, nest, known, stmt)
    return _value_problem(known, stmt)


def _access_problem(kernel: Kernel, nest: Nest, known: dict[str, torch.dtype], stmt: Load | Store) -> str | None:
    if all(b.name != stmt.buffer for b in kernel.buffers):
        return f"{stmt.buffer} is no buffer of this kernel"
    buffer = kernel.buffer(stmt.buffer)
    extent = bounds(stmt.index, nest.ranges)
    if extent is not None and stmt.mask is None and (extent[0] < 0 or extent[1] >= buffer.size):
        return f"index runs over {extent[0]}..{extent[1]}, outside of {buffer.size} elements"
    if stmt.mask is not None and known[stmt.mask] != torch.bool:
        return f"mask {stmt.mask} isn't a truth value"
    if isinstance(stmt, Load) and stmt.dtype != compute_dtype(buffer.dtype):
        return f"a load of {buffer.dtype} gives {compute_dtype(buffer.dtype)}"
    if isinstance(stmt, Store) and known[stmt.value] != compute_dtype(buffer.dtype):
        return f"a {known[stmt.value]} is stored to {buffer.dtype}"
    if isinstance(stmt, Store) and stmt.accumulate and buffer.dtype == torch.bool:
        return "truth values don't add up"
    return None


def _value_problem(known: dict[str, torch.dtype], stmt: Const | Index | Compute | Reduce | Stmt) -> str | None:
    if isinstance(stmt, Reduce) and stmt.op not in REDUCTIONS:
        return f"{stmt.op} is no reduction"
    if isinstance(stmt, Scan) and (stmt.op not in SCANS or known[stmt.value] != stmt.dtype):
        return f"a {stmt.op} of {known[stmt.value]} is no scan of {stmt.dtype}"
    if isinstance(stmt, Compute):
        if stmt.op not in OPS:
            return f"{stmt.op} is no operation"
        if len(stmt.args) != OPS[stmt.op]:
            return f"{stmt.op} takes {OPS[stmt.op]} arguments"
        values = stmt.args[1:] if stmt.op == "where" else stmt.args
        if stmt.op not in ("cast", "round_to") and len({known[v] for v in values}) > 1:
            return "operands have different types"
        if stmt.op == "where" and known[stmt.args[0]] != torch.bool:
            return "the condition isn't a truth value"
    return None
