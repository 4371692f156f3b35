"""Prices of groups by what their lowered kernels move, where that is more than the unique bytes of their members.

Two nests of a kernel read what both need one after the other, and so does one that sweeps again over rows too long to
be kept; a set of members can't tell. What it would save to merge them is known once they are lowered together.
"""
from __future__ import annotations

from collections.abc import Collection

from rooffuse.codegen.ir import Kernel
from torch.fx import Node

from .pricing import GroupPricer

#: By how much a kernel has to be slower than its members' unique bytes before that counts.
MOVES_MORE = 1.02


class TrafficPrices:
    """Seconds of groups, as far as is known what their kernels move."""

    def __init__(self, pricer: GroupPricer) -> None:
        self._pricer = pricer
        self._known: dict[tuple[frozenset[Node], tuple[Node, ...]], float] = {}
        self._promised: dict[tuple[frozenset[Node], tuple[Node, ...]], float] = {}

    def seconds(self, members: Collection[Node], outputs: tuple[Node, ...]) -> float:
        """Seconds of one kernel of these members that stores these outputs."""
        key = frozenset(members), outputs
        if key not in self._known:
            self._known[key] = self._pricer.seconds(*key)
        return self._known[key]

    def exceeds(self, kernel: Kernel, members: Collection[Node], outputs: tuple[Node, ...]) -> bool:
        """Note how long ``kernel``, which is theirs, moves bytes; whether that is longer than they promise."""
        moving = self._pricer.moving(kernel)
        if moving <= MOVES_MORE * self.seconds(members, outputs):
            return False
        key = frozenset(members), outputs
        self._promised.setdefault(key, self._known[key])
        self._known[key] = moving
        return True

    def promised(self, members: Collection[Node], outputs: tuple[Node, ...]) -> float:
        """Seconds by the members' unique bytes, whatever is known of their kernel."""
        key = frozenset(members), outputs
        return self._promised[key] if key in self._promised else self.seconds(members, outputs)
