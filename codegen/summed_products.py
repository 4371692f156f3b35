"""Where a product needn't be rounded before it is added to something: where all that is done with it is a sum.

Elsewhere products are rounded as eager execution rounds them. A compiler that contracts ``a * b - c`` where it likes
gives one value several last bits: ``v - v.amax()`` is then above zero for some ``v = a * b``, and its root isn't a
number. In C++ such sums are spelled as one instruction each. Triton takes the terms of a row together by itself, so
that whole kernels are compiled with contraction if they have nothing else to contract.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from .ir import Compute, Const, Index, Kernel, Load, Nest, Reduce, Stmt, Store, operands

#: Operations whose last step is no product, of whatever they are taken.
_NO_PRODUCTS = frozenset("add sub fma min max cast round_to floor ceil trunc round sqrt".split())
#: Those that a compiler may look through for one.
_PASSED_THROUGH = frozenset({"neg", "abs", "where"})


def summed_products(nest: Nest) -> dict[str, tuple[str, str]]:
    """Factors of the floating-point products in ``nest`` that are only summed along its rows or down its strips, and
    vary there: others are computed once, outside of the loop that sums them."""
    uses = Counter(n for s in nest.body for n in operands(s))
    summed = {kind: {a.symbol for a in nest.axes if a.kind == kind} for kind in ("strip", "reduction")}
    sums = {s.value for s in nest.body if isinstance(s, Reduce) and s.op == "sum"
            and nest.scopes[s.value] & summed["strip" if s.strip else "reduction"]}
    return {s.name: (s.args[0], s.args[1]) for s in nest.body
            if isinstance(s, Compute) and s.op == "mul" and s.dtype.is_floating_point
            and s.name in sums and uses[s.name] == 1}


def contracts_only_sums(kernel: Kernel) -> bool:
    """Whether a compiler that contracts products with additions finds none but in the sums along rows."""
    for nest in kernel.nests:
        made = {s.name: s for s in nest.body if not isinstance(s, Store)}
        for stmt in nest.body:
            if (isinstance(stmt, Compute) and stmt.op in ("add", "sub") and stmt.dtype.is_floating_point
                    and any(_may_be_product(made[a], made) for a in stmt.args)):
                return False
    return True


def _may_be_product(stmt: Stmt, made: Mapping[str, Stmt]) -> bool:
    if isinstance(stmt, Compute) and stmt.op in _PASSED_THROUGH:
        return any(_may_be_product(made[a], made) for a in stmt.args)
    if isinstance(stmt, Compute):
        return stmt.op not in _NO_PRODUCTS
    return not isinstance(stmt, Load | Const | Index) and not (isinstance(stmt, Reduce) and stmt.op != "prod")
