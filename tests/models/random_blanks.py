"""Fills the blanks of a line's template from the tensors that a program has so far."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .random_rounds import INTEGERS, storage

if TYPE_CHECKING:
    from .random_programs import Writer


class Refused(Exception):
    """A template that doesn't fit what there is."""


class Blanks:
    """Fills the blanks of a template from a writer's tensors; later blanks refer to the tensor named last."""

    def __init__(self, writer: Writer) -> None:
        self.writer, self.draw = writer, writer.draw
        self.current, self.dim = torch.empty(()), 0
        self.said: dict[str, str] = {}
        self.written: set[int] = set()

    def fill(self, template: str) -> str:
        def blank(match: re.Match[str]) -> str:
            word = match[1]
            if word.endswith("'"):  # what this blank was filled with before
                return self.said[word[:-1]]
            self.said[word] = self.said[word.rstrip("12")] = str(getattr(self, f"_{word}")())
            return self.said[word]

        return re.sub(r"\{([a-z_0-9]+'?)\}", blank, template)

    def _named(self, fits: Any) -> str:
        name = self.writer.pick(fits)
        self.current = self.writer.pool[name]
        return name

    def _x(self, dims: int = 0, exactly: bool = False) -> str:
        return self._named(lambda t: t.is_floating_point() and (t.dim() == dims if exactly else t.dim() >= dims))

    def _x1(self) -> str:
        return self._x(1)

    def _x2(self) -> str:
        return self._x(2)

    def _matrix(self) -> str:
        return self._x(2, True)

    def _image(self) -> str:
        """A tensor of four dimensions; from a new input if there is none."""
        try:
            return self._x(4, True)
        except Refused:
            d = self.draw
            return self._new([d.choice((1, 2, 3)), d.choice((1, 2, 3, 4, 6)), d.choice((5, 8, 9)), d.choice((4, 7, 8))])

    def _new(self, shape: list[int], kind: str = "float") -> str:
        if len(self.writer.inputs) >= 8:
            raise Refused
        name = self.writer.new_input(shape, kind)
        self.current = self.writer.pool[name]
        return name

    def _any1(self) -> str:
        return self._named(lambda t: t.dim() >= 1)

    def _i(self) -> str:
        return self._named(lambda t: not t.is_floating_point() and t.dtype != torch.bool)

    def _o(self) -> str:
        """An integer tensor that broadcasts with the current one."""
        return self._beside(lambda t: not t.is_floating_point() and t.dtype != torch.bool, "int")

    def _b(self) -> str:
        return self._beside(lambda t: t.dtype == torch.bool, "bool")

    def _truth(self) -> str:
        return self._named(lambda t: t.dtype == torch.bool)

    def _y(self) -> str:
        return self._beside(lambda t: t.is_floating_point() or self.draw.random() < 0.05, "float")

    def _same(self) -> str:
        shape = self.current.shape
        return self.writer.pick(lambda t: t.shape == shape)

    def _beside(self, fits: Any, kind: str) -> str:
        """A tensor that broadcasts with the current one, or a new input that does."""
        shape, dense = self.current.shape, self.current.shape
        if len(self.writer.inputs) < 7 and self.draw.random() < 0.15:
            kept = [n if self.draw.random() < 0.8 else 1 for n in shape[self.draw.randint(0, len(shape)) :]]
            return self.writer.new_input(kept, kind)

        def beside(t: Tensor) -> bool:
            try:
                whole = torch.broadcast_shapes(t.shape, dense)
            except RuntimeError:
                return False
            return fits(t) and math.prod(whole) <= self.writer.largest

        return self.writer.pick(beside)

    def _m(self) -> str:
        """A tensor to write to: not one in which elements share memory."""
        name = self._named(
            lambda t: t.dim() >= 1 and t.is_floating_point() and torch._debug_has_internal_overlap(t) != 1
        )
        self.written = {storage(self.current)}
        return name

    def _other(self) -> str:
        """Another one to write to at the same time: a list with the same memory twice isn't defined."""
        found = self.writer.pick(lambda t: t.dim() >= 1 and t.is_floating_point() and storage(t) not in self.written)
        self.written.add(storage(self.writer.pool[found]))
        return found

    def _third(self) -> str:
        return self._other()

    def _from(self) -> str:
        """A value to write: a copy, since what overlaps its destination isn't defined."""
        return self._y() + self.draw.choice((" * 1", ".clone()", " * 0.5", ".neg()"))

    # -- numbers and dimensions

    def _num(self) -> float:
        return self.draw.choice((0.5, -0.5, 2.0, 0.1, -1.25, 3.0, 1.0, 0.0, -2))

    def _k(self) -> int:
        return self.draw.choice((1, 2, 3, 5, 7))

    def _flag(self) -> bool:
        return self.draw.random() < 0.5

    def _dtype(self) -> str:
        return self.draw.choice(self.writer.palette)

    def _itype(self) -> str:
        return self.draw.choice(tuple(INTEGERS))

    def _dim(self) -> int:
        rank = max(self.current.dim(), 1)
        self.dim = self.draw.randrange(rank)
        return self.dim - rank * (self.draw.random() < 0.4)

    def _dims(self) -> list[int]:
        rank = self.current.dim()
        return self.draw.sample(range(rank), self.draw.randint(1, rank)) if rank else []

    def _n(self) -> int:
        """The size of the current tensor along the dimension named last."""
        return self.current.shape[self.dim] if self.current.dim() else 1

    def _at(self) -> int:
        if self._n() == 0:
            raise Refused
        return self.draw.randrange(-self._n(), self._n())

    def _part(self) -> int:
        return self.draw.randint(1, max(self._n(), 1))

    def _slice(self) -> str:
        n = self._n()
        start = self.draw.choice(("", "", "1", "-3", str(n // 2), "2"))
        stop = self.draw.choice(("", "", "-1", str(n // 2 + 1), str(n - 1)))
        return f"{start}:{stop}{self.draw.choice(('', '', '', ':2', ':3'))}"

    def _slices(self) -> str:
        """Indices of basic indexing for some dimensions."""
        found = []
        for dim in range(self.draw.randint(1, max(self.current.dim(), 1))):
            self.dim = dim
            some = self._at() if self._n() else ":"
            found.append(self.draw.choice((self._slice(), self._slice(), ":", str(some), "None, :")))
        return ", ".join(found) if self.draw.random() < 0.85 else "..., " + self._slice()

    def _perm(self) -> list[int]:
        return self.draw.sample(range(self.current.dim()), self.current.dim())

    def _shape(self) -> list[int]:
        """Another shape of as many elements."""
        sizes = list(self.current.shape)
        for _ in range(self.draw.randint(1, 3)):
            k = self.draw.randrange(max(len(sizes), 1))
            if self.draw.random() < 0.5 and len(sizes) > 1:
                k = min(k, len(sizes) - 2)
                sizes[k : k + 2] = [sizes[k] * sizes[k + 1]]
            elif sizes:
                factor = self.draw.choice(list(factors(sizes[k])))
                sizes[k : k + 1] = [factor, sizes[k] // factor]
        return sizes

    def _factors(self) -> list[int]:
        factor = self.draw.choice(list(factors(self._n())))
        return [factor, self._n() // factor]

    def _groups(self) -> int:
        return self.draw.choice(list(factors(self.current.shape[1])))

    def _last(self) -> list[int]:
        """The sizes of the last dimensions, for a norm."""
        return list(self.current.shape[-self.draw.choice((1, 1, 1, 2)) :])

    def _w(self) -> str:
        """A weight that takes the current tensor's rows to others."""
        out = self.draw.choice((1, 3, 8, 16, 17, 33))
        current, name = self.current, self._new([out, self.current.shape[-1]])
        self.current = current
        return name

    def _filter(self) -> str:
        current, name = self.current, self._new([self.draw.choice((1, 3, 8)), self.current.shape[1], 3, 3])
        self.current = current
        return name

    # -- places

    def _idx(self) -> str:
        """A vector of places along the dimension named last; they may repeat."""
        n, count = self._n(), self.draw.choice((1, 3, 8, 17))
        if n == 0:
            raise Refused
        if self.draw.random() < 0.5:
            return (
                f"{self.writer.new_input([count], 'int')}.long().remainder({n})"
                if len(self.writer.inputs) < 7
                else f"torch.arange({count}).mul(5).remainder({n})"
            )
        return f"torch.arange({count}).mul({self._k()}).remainder({n})"

    def _once(self) -> str:
        """A vector of different places along the dimension named last."""
        self.said["count"] = str(self._part())
        return f"torch.arange({self._n()}).roll({self._k()})[:{self.said['count']}]"

    def _places(self) -> str:
        """Places along the dimension named last for every element of the current shape, cut to a part along it."""
        shape, n = list(self.current.shape), self._n()
        if n == 0:
            raise Refused
        if shape:
            shape[self.dim] = self.draw.choice((1, shape[self.dim], self._part()))
        return f"torch.arange({math.prod(shape)}).mul({self._k()}).remainder({n}).view({shape})"


def factors(n: int) -> Iterator[int]:
    return (k for k in range(1, max(n, 1) + 1) if n % k == 0) if n else iter([1])
