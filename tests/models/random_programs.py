"""Random tensor programs in the style of model code: what nobody thought of writing as a test.

A program is built line by line; a line stays only if eager execution, exact arithmetic and rounding agree on it.
"""

from __future__ import annotations

import math
import random
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .random_blanks import Blanks, Refused
from .random_lines import LINES
from .random_rounds import EPS, FLOATS, INTEGERS, Line, Program, Rounds, agrees, names, storage

SIZES = (1, 2, 2, 3, 3, 4, 5, 7, 8, 8, 13, 16, 17, 31, 32, 33, 40, 65)
LONG = (129, 257, 1000, 1025, 4097)


@dataclass
class Writer:
    """Adds lines that all rounds agree on. ``largest`` bounds the elements of a tensor."""

    seed: int
    draw: random.Random
    largest: int = 20_000
    inputs: list[tuple[str, str]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    types: Iterable[str] = tuple(FLOATS)

    def __post_init__(self) -> None:
        draw = self.draw
        self.axes = [draw.choice(SIZES) for _ in range(draw.choice((2, 3, 3, 4)))]
        if draw.random() < 0.15:
            self.axes[draw.randrange(len(self.axes))] = draw.choice(LONG)
        if draw.random() < 0.03:
            self.axes[draw.randrange(len(self.axes))] = 0
        while math.prod(self.axes) > self.largest:
            self.axes[self.axes.index(max(self.axes))] //= 2
        self.palette = draw.choice(
            (["f32"], ["f32"], ["f32", "bf16"], ["bf16"], ["f32", "f16"], ["f32", "f64"], ["f64"])
        )
        self.palette = [t for t in self.palette if t in self.types] or ["f32"]
        self.replay()
        for _ in range(draw.randint(1, 4)):
            self.new_input()

    # -- what there is

    def replay(self) -> None:
        """All rounds anew, with what has been accepted."""
        space = names()
        for name, text in self.inputs:
            space[name] = eval(text, space)
        self.rounds = Rounds({n: space[n] for n, _ in self.inputs})
        for line in self.lines:
            self.rounds.run(line)

    @property
    def pool(self) -> dict[str, Tensor]:
        known = [n for n, _ in self.inputs] + [line.result for line in self.lines if line.result]
        return {n: self.rounds.spaces[0][n] for n in known}

    def pick(self, fits: Any) -> str:
        """A tensor that fits, the newer the likelier."""
        found = [n for n, t in self.pool.items() if fits(t) and (t.numel() or self.draw.random() < 0.1)]
        if not found:
            raise Refused
        return found[-1 - min(int(self.draw.expovariate(0.25)), len(found) - 1)]

    def new_input(self, shape: Iterable[int] | None = None, kind: str = "") -> str:
        draw, name = self.draw, f"a{len(self.inputs)}"
        if shape is None:
            axes = self.axes[draw.choice((0, 0, 0, 1)) :]
            shape = [n if draw.random() < 0.85 else 1 for n in axes]
        text = self.input_text(list(shape), kind or draw.choice(("float",) * 5 + ("int", "int", "bool")))
        if self.inputs and not kind and draw.random() < 0.06:  # one that shares memory with another
            text = f"{self.pick(lambda t: t.dim() > 0)}[{draw.choice((':', '1:', '::2', ':-1'))}]"
            if text[0] != "a":
                raise Refused
        self.inputs.append((name, text))
        self.replay()
        return name

    def input_text(self, shape: list[int], kind: str) -> str:
        """An expression for a tensor: dense, permuted, with gaps, expanded, or at an odd place of its storage."""
        draw, seed = self.draw, len(self.inputs)
        order = list(range(len(shape)))
        layout = draw.choice(("dense",) * 5 + ("permuted", "stepped", "offset", "expanded")) if shape else "dense"
        stored, view = list(shape), ""
        if layout == "permuted":
            draw.shuffle(order)
            stored = [shape[order.index(k)] for k in range(len(shape))]
            view = f".permute({order})"
        elif layout == "stepped":
            k = draw.randrange(len(shape))
            stored[k] = 2 * shape[k] + 1
            view = "[" + ":, " * k + f"1::{2}" + "]"
        elif layout == "offset":
            stored, view = [math.prod(shape) + 3], f"[3:].view({shape})"
        elif layout == "expanded":
            k = draw.randrange(len(shape))
            stored[k], view = 1, f".expand({shape})"
        sizes = "".join(f"{n}, " for n in stored)
        if kind == "int":
            low, high = draw.choice(((0, 2), (0, 7), (-5, 40), (0, 200)))
            kind = draw.choice(tuple(INTEGERS)) if low >= 0 else "i64"
            return f"randint({low}, {high}, {sizes}seed={seed}).to({kind}){view}"
        if kind == "bool":
            return f"(randn({sizes}seed={seed}) > 0){view}"
        dtype = draw.choice(self.palette)
        return f"randn({sizes}seed={seed}).to({dtype}){view}"

    # -- one line

    def step(self) -> bool:
        """Try one template; whether it became a line. New inputs that it asked for go if it didn't."""
        before, written = len(self.inputs), False
        try:
            template = self.draw.choices(LINES, [t.weight for t in LINES])[0].text
            text = Blanks(self).fill(template)
            written = self.add(text)
        except Refused:
            pass
        if not written and len(self.inputs) > before:
            del self.inputs[before:]
            self.replay()
        return written

    def add(self, text: str) -> bool:
        """Keep ``text`` if it runs and every round agrees on all there is then."""
        in_place, pool = text.startswith("!"), self.pool
        result = None if in_place else f"v{len(self.lines)}"
        line = Line(text[1:] if in_place else f"{result} = {text}", result)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(line.text, self.rounds.spaces[0])
                value = self.rounds.spaces[0][result] if result else None
                if result and not (isinstance(value, Tensor) and value.numel() <= self.largest):
                    return False
                if in_place:
                    self.replay()
                if (
                    value is not None
                    and value.is_floating_point()
                    and storage(value) not in map(storage, pool.values())
                ):
                    line = Line(line.text, result, EPS[value.dtype])
                self.rounds.run(line)
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
            if in_place:
                self.replay()
            return False
        changed = [*pool] if in_place else [str(result)]
        good = all(agrees(self.rounds.values(n)) for n in changed)
        if result and good:  # a cast that is a view in one type and a copy in another
            alike = [[storage(s[n]) == storage(s[result]) for n in pool] for s in self.rounds.spaces[:2]]
            good = alike[0] == alike[1]
        if good:
            self.lines.append(line)
        elif in_place:
            self.replay()
        return good

    def program(self) -> Program:
        draw, pool = self.draw, self.pool
        body = "\n".join(line.text.split("=", 1)[-1] if line.result else line.text for line in self.lines)
        read = set(re.findall(r"\b[av]\d+\b", body))
        outputs = [n for n in pool if n not in read and n[0] == "v"]
        outputs += [n for n in pool if draw.random() < 0.12]
        outputs = list(dict.fromkeys(outputs)) or [*pool][-1:]
        outputs = [n for n in outputs if draw.random() < 0.9] or outputs
        if draw.random() < 0.1:
            outputs.append(draw.choice(outputs))
        draw.shuffle(outputs)
        return Program(self.seed, tuple(self.inputs), tuple(self.lines), tuple(outputs))


def random_program(
    seed: int, length: tuple[int, int] = (10, 40), largest: int = 20_000, types: Iterable[str] = tuple(FLOATS)
) -> Program:
    """The program of a seed: the same on every machine with the same torch."""
    draw = random.Random(seed)
    while True:
        try:
            writer = Writer(seed, draw, largest, types=types)
            break
        except Refused:
            continue
    wanted = draw.randint(*length)
    for _ in range(12 * wanted):
        if len(writer.lines) >= wanted:
            break
        writer.step()
    return writer.program()
