"""Drops roundings that change nothing: of what was loaded from the narrower type, or is a small integer."""
from __future__ import annotations

from dataclasses import replace

import torch

from .float8 import FLOAT8
from .ir import Compute, Kernel, Load, Nest, Reduce, Scan, Stmt, Store

#: Types whose values bfloat16 (with 8 significant bits) and float16 hold exactly.
EXACT_IN_HALF = frozenset({torch.bool, torch.int8, torch.uint8, *FLOAT8})


def holds_exactly(wanted: torch.dtype, source: torch.dtype) -> bool:
    """Whether ``wanted``, a type narrower than what is computed in, has every value of ``source``."""
    if wanted in FLOAT8:
        return source in (wanted, torch.bool)
    return source == wanted or source in EXACT_IN_HALF


def drop_exact_roundings(kernel: Kernel) -> Kernel:
    """``kernel`` without "round_to" of values that the type which they are rounded to holds exactly."""
    nests = tuple(_rewritten(kernel, n) for n in kernel.nests)
    return replace(kernel, nests=nests) if nests != kernel.nests else kernel


def _rewritten(kernel: Kernel, nest: Nest) -> Nest:
    made: dict[str, Stmt] = {s.name: s for s in nest.body if not isinstance(s, Store)}
    instead: dict[str, str] = {}
    body: list[Stmt] = []
    for stmt in nest.body:
        if isinstance(stmt, Compute):
            stmt = replace(stmt, args=tuple(instead.get(a, a) for a in stmt.args))
            if stmt.op == "round_to" and _is_exact(kernel, made, stmt):
                instead[stmt.name] = stmt.args[0]
                continue
        elif isinstance(stmt, Reduce | Scan | Store):
            stmt = replace(stmt, value=instead.get(stmt.value, stmt.value))
        body.append(stmt)
    return Nest(nest.axes, tuple(body)) if instead else nest


def _is_exact(kernel: Kernel, made: dict[str, Stmt], rounding: Compute) -> bool:
    source = made[rounding.args[0]]
    assert rounding.rounding is not None
    if isinstance(source, Load):
        return holds_exactly(rounding.rounding, kernel.buffer(source.buffer).dtype)
    if isinstance(source, Compute) and source.op == "cast":
        return holds_exactly(rounding.rounding, made[source.args[0]].dtype)  # type: ignore[union-attr]
    return isinstance(source, Compute) and source.op == "round_to" and source.rounding == rounding.rounding
