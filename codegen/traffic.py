"""Bytes that a kernel moves between memory and chip, counted on its loop IR."""
from __future__ import annotations

from collections.abc import Callable
from math import prod

import sympy

from .ir import Kernel, Load, Nest, Store
from .sweeps import plan_phases


def _footprint(kernel: Kernel, nest: Nest, stmt: Load | Store) -> int:
    """Different elements that one access touches over the whole nest, at most the buffer."""
    varying: set[sympy.Symbol] = set()
    for s in stmt.index.free_symbols:
        varying |= {s} if s in nest.ranges else set(nest.scopes[s.name])
    return min(prod(nest.ranges[s] for s in varying), kernel.buffer(stmt.buffer).size)


def row_bytes(kernel: Kernel, nest: Nest) -> int:
    """Bytes of one row of everything that varies along the reduction axes: what a second sweep looks at again."""
    row = {a.symbol for a in nest.reduction}
    seen = {(s.buffer, s.index) for s in nest.body if isinstance(s, Load) and s.index.free_symbols & row}
    return sum(prod(nest.ranges[s] for s in index.free_symbols & row) * kernel.buffer(b).dtype.itemsize
               for b, index in seen)


def sweeps(nest: Nest) -> int:
    """How often a row is gone through."""
    return sum(p.sweep for p in plan_phases(nest))


def kernel_traffic(kernel: Kernel, holds: Callable[[Kernel, Nest], bool]) -> tuple[int, int]:
    """``(bytes read, bytes written)``. A later sweep over a row counts again unless the nest ``holds`` rows on chip:
    in registers on a GPU, in cache on a CPU."""
    read = written = 0
    for nest in kernel.nests:
        held = holds(kernel, nest)
        phases = plan_phases(nest)
        groups = [[s for p in phases for s in p.body]] if held else [list(p.body) for p in phases]
        for body in groups:
            touched: dict[str, dict[sympy.Expr, int]] = {}
            for stmt in body:
                if isinstance(stmt, Load):
                    touched.setdefault(stmt.buffer, {})[stmt.index] = _footprint(kernel, nest, stmt)
            for name, accesses in touched.items():
                buffer = kernel.buffer(name)
                read += min(sum(accesses.values()), buffer.size) * buffer.dtype.itemsize
        stores: dict[str, dict[sympy.Expr, int]] = {}
        for stmt in nest.body:
            if isinstance(stmt, Store):
                if stmt.accumulate:
                    read += _footprint(kernel, nest, stmt) * kernel.buffer(stmt.buffer).dtype.itemsize
                stores.setdefault(stmt.buffer, {})[stmt.index] = _footprint(kernel, nest, stmt)
        for name, accesses in stores.items():
            buffer = kernel.buffer(name)
            written += min(sum(accesses.values()), buffer.size) * buffer.dtype.itemsize
    return read, written
