"""Bytes that a kernel moves between memory and chip, counted on its loop IR."""
from __future__ import annotations

from collections.abc import Callable
from math import prod

import sympy

from .contraction import Contraction, contraction_of
from .ir import Compute, Const, Index, Kernel, Load, Nest, Reduce, Store
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


#: Results that a tile of a matrix product has down and along.
PRODUCT_TILE = 128
#: What an operation costs in plain ones, as measured on vectors of 16 floats with this package's C++ spelling: library
#: functions by the polynomials behind them, remainders by their loops. Those of one family are rounded to one figure.
OPERATION_COST = {
    **dict.fromkeys("exp exp2 log log2 log10 expm1 sin cos tan".split(), 22),
    **dict.fromkeys("log1p asin acos atan sinh cosh asinh acosh atanh sigmoid silu rsqrt".split(), 30),
    **dict.fromkeys("tanh erf erfc gelu softplus elu mish atan2".split(), 42),
    **dict.fromkeys("div sqrt".split(), 12), "pow": 116,
    **dict.fromkeys("philox philox0 philox1".split(), 80), **dict.fromkeys("fmod remainder lgamma".split(), 800),
}


def operation_cost(op: str, special_units: bool = False) -> int:
    """What one evaluation of ``op`` costs in plain operations; a quarter with a GPU's special function units, which
    evaluate exponentials, logarithms, roots, sines and quotients at that share of the plain rate or more."""
    cost = OPERATION_COST.get(op, 1)
    return -(-cost // 4) if special_units else cost


def kernel_operations(kernel: Kernel, conditional_load: int = 1, special_units: bool = False) -> int:
    """Operations that the kernel executes: each statement once for every point of its scope, whatever a graph's FLOPs
    say. A value that is computed again under other conditions, or in another nest, counts again.

    ``conditional_load`` is what a load counts whose condition varies over several axes. One that varies over a single
    axis is decided by cutting the loop.
    """
    total = 0
    for nest in kernel.nests:
        form = contraction_of(nest)
        products = {s.name for s in nest.body if isinstance(s, Compute) and s.op == "mul"}
        multiplied = {r.value for r in form.reduces} if form is not None else set()
        for stmt in nest.body:
            if isinstance(stmt, Const | Index | Store):
                continue
            if form is not None and (isinstance(stmt, Reduce) or stmt.name in multiplied):
                continue
            if isinstance(stmt, Reduce) and stmt.value in products:
                continue  # a sum of products is one instruction a product
            points = prod(nest.ranges[s] for s in nest.scopes[stmt.value if isinstance(stmt, Reduce) else stmt.name])
            conditional = isinstance(stmt, Load) and stmt.mask is not None and len(nest.scopes[stmt.mask]) > 1
            cost = operation_cost(stmt.op, special_units) if isinstance(stmt, Compute) else 1
            if form is not None:
                points *= _evaluations(nest, form, stmt.name)
            total += points * (conditional_load if conditional else cost)
    return total


def _evaluations(nest: Nest, form: Contraction, name: str) -> int:
    """How often a factor of a matrix product is computed: once for each tile of the other side."""
    scope = nest.scopes[name]
    if not scope & {a.symbol for a in nest.reduction}:
        return 1
    in_rows = bool(scope & {a.symbol for a in form.rows})
    return -(-(form.column_count if in_rows else form.row_count) // PRODUCT_TILE)


def contraction_flops(kernel: Kernel) -> int:
    """FLOPs of the kernel's matrix products, two for each product that is summed."""
    total = 0
    for nest in kernel.nests:
        form = contraction_of(nest)
        if form is not None:
            total += 2 * len(form.reduces) * prod(a.size for a in nest.axes)
    return total
