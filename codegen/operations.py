"""Operations that a kernel executes, counted on its loop IR."""
from __future__ import annotations

from math import prod

from .conditions import decided, holding_part, values_of
from .contraction import Contraction, contraction_of
from .ir import Compute, Const, Index, Kernel, Load, Nest, Reduce, Store

#: Results that a tile of a matrix product has down and along.
PRODUCT_TILE = 128
#: What an operation costs in plain ones, as measured on vectors of 16 floats with this package's C++ spelling: library
#: functions by the polynomials behind them, remainders by their loops. Those of one family are rounded to one figure.
OPERATION_COST = {
    "exp": 17, "sigmoid": 25, "silu": 25, "erf": 24, "gelu": 24, "tanh": 38,
    **dict.fromkeys("exp2 log log2 log10 expm1 sin cos tan".split(), 22),
    **dict.fromkeys("log1p asin acos atan sinh cosh asinh acosh atanh rsqrt".split(), 30),
    **dict.fromkeys("erfc softplus elu mish atan2".split(), 42),
    **dict.fromkeys("div sqrt".split(), 12), "pow": 116,
    **dict.fromkeys("philox philox0 philox1".split(), 80), **dict.fromkeys("fmod remainder lgamma".split(), 800),
}


#: The same on a GPU, a plain operation taken as two instructions: those in SASS for sm_90 of this package's Triton
#: spelling, slow paths left out, or eight for each use of a special function unit, whichever is more.
GPU_OPERATION_COST = {
    **dict.fromkeys("exp exp2 rsqrt".split(), 4), "div": 5, "sqrt": 7,
    **dict.fromkeys("sigmoid silu tanh atan cosh".split(), 9), **dict.fromkeys("asin acos".split(), 12),
    **dict.fromkeys("log log2 log10 expm1 elu".split(), 13),
    **dict.fromkeys("log1p sin cos tan sinh erf gelu".split(), 16), **dict.fromkeys("softplus atanh".split(), 20),
    **dict.fromkeys("erfc mish".split(), 26), **dict.fromkeys("asinh acosh atan2 fmod remainder".split(), 30),
    "pow": 35, **dict.fromkeys("philox philox0 philox1".split(), 45), "lgamma": 200,
}


def operation_cost(op: str, special_units: bool = False) -> int:
    """What one evaluation of ``op`` costs in plain operations, on a CPU or with a GPU's special function units."""
    return (GPU_OPERATION_COST if special_units else OPERATION_COST).get(op, 1)


def kernel_operations(kernel: Kernel, conditional_load: int = 0, special_units: bool = False) -> int:
    """Operations that the kernel executes: each statement once for every point of its scope, whatever a graph's FLOPs
    say. A value that is computed again under other conditions, or in another nest, counts again.

    With ``conditional_load`` loops are cut where conditions on a single axis change, so that what such a condition
    leaves out isn't executed, nor is the condition; a load whose condition is tested at every step counts so much.
    """
    total = 0.0
    for nest in kernel.nests:
        form = contraction_of(nest)
        products = {s.name for s in nest.body if isinstance(s, Compute) and s.op == "mul"}
        multiplied = {r.value for r in form.reduces} if form is not None else set()
        parts = _executed_parts(nest) if conditional_load else {}
        free = decided(nest) if conditional_load else frozenset()
        for stmt in nest.body:
            if isinstance(stmt, Const | Index | Store):
                continue
            if form is not None and (isinstance(stmt, Reduce) or stmt.name in multiplied):
                continue
            if stmt.name in free or (isinstance(stmt, Compute) and stmt.op == "where" and stmt.args[0] in free):
                continue
            if isinstance(stmt, Reduce) and stmt.value in products:
                continue  # a sum of products is one instruction a product
            points = prod(nest.ranges[s] for s in nest.scopes[stmt.value if isinstance(stmt, Reduce) else stmt.name])
            mask = stmt.mask if conditional_load and isinstance(stmt, Load) else None
            conditional = mask is not None and mask not in free and len(nest.scopes[mask]) > 1
            cost = operation_cost(stmt.op, special_units) if isinstance(stmt, Compute) else 1
            if isinstance(stmt, Reduce) and stmt.op == "expsum":
                cost += operation_cost("exp", special_units)
            if form is not None:
                points *= _evaluations(nest, form, stmt.name)
            part = parts.get(stmt.name, 1.0)
            total += points * (conditional_load if conditional else cost * part)
    return int(total)


def _executed_parts(nest: Nest) -> dict[str, float]:
    """For values that are wanted only where a condition on one axis holds, the part of that axis."""
    made = values_of(nest)
    parts: dict[str, float] = {}
    for stmt in nest.body:
        if isinstance(stmt, Load) and stmt.mask is not None:
            part = holding_part(nest, made, made[stmt.mask]) if len(nest.scopes[stmt.mask]) == 1 else None
            parts[stmt.name] = 1.0 if part is None else part
        elif isinstance(stmt, Compute) and stmt.op != "where" and nest.scopes[stmt.name]:
            found = [parts.get(a, 1.0) for a in stmt.args if nest.scopes[a]]
            parts[stmt.name] = max(found, default=1.0)
    return parts


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
