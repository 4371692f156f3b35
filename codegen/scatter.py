"""Stores at places that data choose: over which axes two points of a nest may meet at one element.

Points that differ only along other axes write different elements and may run in any order and at once. Along the axes
given here a target has to add atomically, or to take the points one after the other, which makes sums reproducible.
"""
from __future__ import annotations

from sympy import Symbol

from .errors import NotLowerable
from .index import Ranges, affine
from .ir import Compute, Const, Kernel, Nest, Store


def is_scatter(store: Store) -> bool:
    """Whether several points may write one element: the place is a value, or the store adds."""
    return store.accumulate or any(s.name.startswith("v") for s in store.index.free_symbols)


def colliding_axes(nest: Nest) -> frozenset[Symbol]:
    """Axes along which the scatters of ``nest`` may write an element more than once."""
    found: set[Symbol] = set()
    row = {a.symbol for a in nest.reduction}
    for stmt in nest.body:
        if isinstance(stmt, Store) and is_scatter(stmt):
            once = row if not nest.store_scope(stmt) & row else set[Symbol]()  # what a row comes to is stored once
            found |= set(nest.ranges) - once - _told_apart(nest, stmt)
    return frozenset(found)


def _told_apart(nest: Nest, store: Store) -> set[Symbol]:
    """Axes whose positions can be read off the written address: those of an index in mixed radix, where each
    coefficient is larger than all that the smaller terms reach together."""
    coefficients, _, others = affine(store.index)
    sizes = {**nest.ranges, **_gathered_sizes(nest)}
    if others or any(s not in sizes for s in coefficients):
        return set()
    reach = 0
    for symbol, coefficient in sorted(coefficients.items(), key=lambda t: (abs(t[1]), t[0].name)):
        if abs(coefficient) <= reach:
            return set()
        reach += abs(coefficient) * (sizes[symbol] - 1)
    return set(coefficients) & set(nest.ranges)


def _gathered_sizes(nest: Nest) -> Ranges:
    """The sizes of the dimensions that gathered indices go into."""
    made = {s.name: s for s in nest.body if not isinstance(s, Store)}
    sizes: dict[Symbol, int] = {}
    for store in nest.body:
        for symbol in store.index.free_symbols if isinstance(store, Store) else ():
            value = made.get(symbol.name)
            if isinstance(value, Compute) and value.op == "bounded":
                end = made[value.args[1]]
                if isinstance(end, Const):
                    sizes[symbol] = int(end.value)
    return sizes


def check_sums(kernel: Kernel, atomic: bool, deterministic: bool) -> None:
    """Raise NotLowerable where the scatters of ``kernel`` wouldn't give what a library call does, or share strips.

    ``atomic`` says that the target adds in no particular order: then nothing that collides is ``deterministic``.
    In order, sums in 16-bit types are rounded after each term, where library calls round once.
    """
    for nest in kernel.nests:
        for stmt in nest.body:
            if not (isinstance(stmt, Store) and is_scatter(stmt)):
                continue
            dtype = kernel.buffer(stmt.buffer).dtype
            if nest.strip:
                raise NotLowerable("a scatter would be among sums along rows and down columns")
            if atomic and deterministic and colliding_axes(nest):
                raise NotLowerable("deterministic algorithms are asked for, and threads may write the same element")
            if not atomic and stmt.accumulate and dtype.is_floating_point and dtype.itemsize < 4:
                raise NotLowerable(f"sums of type {dtype} would be rounded after each term")
