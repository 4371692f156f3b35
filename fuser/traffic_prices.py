"""Prices of groups by what their lowered kernels move, where that is more than the unique bytes of their members.

Two nests of a kernel read what both need one after the other, and so does one that sweeps again over rows too long to
be kept; a set of members can't tell. What it would save to merge them is known once they are lowered together.
"""
from __future__ import annotations

from collections.abc import Collection

from rooffuse.codegen.ir import Kernel
from torch.fx import Node

from .pricing import GroupPricer

_Group = tuple[frozenset[Node], tuple[Node, ...]]

#: By how much a kernel has to be slower than its members' unique bytes before that counts.
MOVES_MORE = 1.02


class TrafficPrices:
    """Seconds of groups, as far as is known what their kernels move."""

    def __init__(self, pricer: GroupPricer) -> None:
        self._pricer = pricer
        self._promised: dict[_Group, tuple[float, float]] = {}
        self._known: dict[_Group, float] = {}

    def seconds(self, members: Collection[Node], outputs: tuple[Node, ...]) -> float:
        """Seconds of one kernel of these members that stores these outputs."""
        key = frozenset(members), outputs
        return self._known[key] if key in self._known else self.promised(*key)[0]

    def promised(self, members: Collection[Node], outputs: tuple[Node, ...]) -> tuple[float, float]:
        """Seconds by the members' unique bytes, whatever is known of their kernel, and those of the bytes alone."""
        key = frozenset(members), outputs
        if key not in self._promised:
            self._promised[key] = self._pricer.seconds(*key)
        return self._promised[key]

    def exceeds(self, kernel: Kernel, members: Collection[Node], outputs: tuple[Node, ...]) -> bool:
        """Note how long ``kernel``, which is theirs, moves bytes; whether that is longer than they promise."""
        moving = self._pricer.moving(kernel)
        if moving <= MOVES_MORE * self.seconds(members, outputs):
            return False
        self._known[frozenset(members), outputs] = moving
        return True
