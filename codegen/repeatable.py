"""Whether a value that is computed twice has the same bits both times.

A row's maximum is known after one sweep over the row, and ``x == maximum`` is computed in the next, where ``x`` is
computed again. It must be found, or a selection picks the same element twice and a gradient is 0 / 0. In C++ a library
function may change the last bit: it is another one in a loop that isn't vectorised.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch

from .errors import NotLowerable
from .ir import Compute, Kernel, Reduce, Stmt, Store, operands

_LIBRARY = frozenset("""exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh asinh acosh atanh erfc
lgamma pow atan2""".split())
#: Those that are spelled out for float32 (cpp_spelling), so that they are the same code everywhere.
_LIBRARY_FOR_DOUBLES = _LIBRARY | frozenset("exp sigmoid tanh erf".split())


def check_equalities(kernel: Kernel) -> None:
    """Raises NotLowerable where a value is compared with its own extreme, and might have other bits by then."""
    for nest in kernel.nests:
        made = {s.name: s for s in nest.body if not isinstance(s, Store)}
        for stmt in nest.body:
            if not isinstance(stmt, Compute) or stmt.op not in ("eq", "ne"):
                continue
            for value, other in (stmt.args, stmt.args[::-1]):
                reached = _reached(value, made)
                if (made[value].dtype.is_floating_point and _has_extreme_of(value, _reached(other, made), made)
                        and not _repeatable(reached, made)):
                    raise NotLowerable("a value that is compared with its own extreme may have other bits by then")


def _reached(name: str, made: Mapping[str, Stmt]) -> frozenset[str]:
    """What ``name`` is computed from, itself included."""
    found, work = {name}, [name]
    while work:
        new = [n for n in operands(made[work.pop()]) if n not in found]
        found.update(new)
        work += new
    return frozenset(found)


def _has_extreme_of(value: str, names: frozenset[str], made: Mapping[str, Stmt]) -> bool:
    return any(isinstance(s := made[n], Reduce) and s.op in ("max", "min") and value in _reached(s.value, made)
               for n in names)


def _repeatable(names: frozenset[str], made: Mapping[str, Stmt]) -> bool:
    return not any(isinstance(s := made[n], Compute)
                   and s.op in (_LIBRARY_FOR_DOUBLES if s.dtype == torch.float64 else _LIBRARY) for n in names)
