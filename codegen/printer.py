"""The walk that all targets share: one statement in, one line of the target's language out.

A target subclasses ``Printer`` with its spelling table (``ops``: IR operation to template or function) and a few short
methods; what differs between languages is data, not another walk.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import sympy
import torch

from .index import FloorDiv, Mod, bounds
from .ir import Compute, Const, Index, Kernel, Load, Nest, Stmt, Store

Spelling = str | Callable[["Printer", Compute, tuple[str, ...]], str]


class Printer(ABC):
    """Prints the statements of one nest; subclasses lay out the loops around them."""

    types: Mapping[torch.dtype, str]
    ops: Mapping[str, Spelling]

    def __init__(self, kernel: Kernel, nest: Nest) -> None:
        self.kernel, self.nest = kernel, nest
        self.ranges = dict(nest.ranges)
        self.dtypes = {s.name: s.dtype for s in nest.body if not isinstance(s, Store)}

    def spell_index(self, expr: sympy.Expr) -> str:
        """An index expression in the target's syntax."""
        if expr.is_Integer:
            return self.spell_integer(int(expr))
        if isinstance(expr, sympy.Symbol):
            return self.spell_symbol(expr)
        if isinstance(expr, sympy.Add):
            return "(" + " + ".join(self.spell_index(a) for a in sorted(expr.args, key=str)) + ")"
        if isinstance(expr, sympy.Mul):
            return "(" + " * ".join(self.spell_index(a) for a in sorted(expr.args, key=str)) + ")"
        args = [self.spell_index(a) for a in expr.args]
        extent = bounds(expr.args[0], self.ranges)
        positive = extent is not None and extent[0] >= 0
        if isinstance(expr, FloorDiv):
            return self.spell_floordiv(args[0], args[1], positive)
        if isinstance(expr, Mod):
            return self.spell_mod(args[0], args[1], positive)
        raise TypeError(f"index expressions have no {type(expr).__name__}: {expr}")

    def spell_symbol(self, symbol: sympy.Symbol) -> str:
        return symbol.name

    def spell_integer(self, value: int) -> str:
        return str(value)

    @abstractmethod
    def spell_floordiv(self, a: str, n: str, positive: bool) -> str: ...

    @abstractmethod
    def spell_mod(self, a: str, n: str, positive: bool) -> str: ...

    @abstractmethod
    def spell_const(self, stmt: Const) -> str: ...

    @abstractmethod
    def spell_index_value(self, stmt: Index) -> str: ...

    @abstractmethod
    def spell_load(self, stmt: Load) -> str: ...

    @abstractmethod
    def spell_store(self, stmt: Store) -> str: ...

    @abstractmethod
    def declare(self, name: str, dtype: torch.dtype, expression: str) -> str:
        """The line that binds ``name``."""

    def spell_compute(self, stmt: Compute) -> str:
        spelling = self.ops[stmt.op]
        if callable(spelling):
            return spelling(self, stmt, stmt.args)
        return spelling.format(*stmt.args)

    def line(self, stmt: Stmt) -> str:
        """The line for any statement but ``Reduce``, whose lines depend on the loops around it."""
        if isinstance(stmt, Store):
            return self.spell_store(stmt)
        if isinstance(stmt, Const):
            text = self.spell_const(stmt)
        elif isinstance(stmt, Index):
            text = self.spell_index_value(stmt)
        elif isinstance(stmt, Load):
            text = self.spell_load(stmt)
        elif isinstance(stmt, Compute):
            text = self.spell_compute(stmt)
        else:
            raise TypeError(f"{type(stmt).__name__} isn't printed as one line")
        return self.declare(stmt.name, stmt.dtype, text)


def float_literal(value: float, infinity: str, nan: str) -> str:
    """A finite value by ``repr``; infinities and NaN by the target's names."""
    if value != value:
        return nan
    if value in (float("inf"), float("-inf")):
        return infinity if value > 0 else f"-{infinity}"
    return repr(value)
