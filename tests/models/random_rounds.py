"""Programs as text, run line by line: eagerly, exactly, and with the noise of rounding.

A line runs in eager execution, in float64, and several times in float64 with each type's rounding after every operator
(``Rounds``). What rounding can turn over - a comparison of equal numbers, an argmax of ties, a quotient of cancelled
sums - says nothing about a compiler; the noise that reaches an output is what its error is judged by.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FLOATS = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
INTEGERS = {"i64": torch.int64, "i32": torch.int32, "u8": torch.uint8, "i16": torch.int16}
#: Rounding of one operation, relative.
EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
#: Values beyond this make the types' ranges, not their rounding, the subject.
LARGEST = 1e4


@dataclass(frozen=True)
class Line:
    """One statement; ``eps`` is the rounding of the fresh floating-point result that it makes, or 0."""

    text: str
    result: str | None
    eps: float = 0.0


@dataclass(frozen=True)
class Program:
    """Inputs as (name, expression), the lines of a function of them, and the names that it returns."""

    seed: int
    inputs: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]
    outputs: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def text(self) -> str:
        names = ", ".join(n for n, _ in self.inputs)
        made = [f"    {n} = {e}" for n, e in self.inputs]
        body = [f"    {line.text}" for line in self.lines]
        head = ["def make():", *made, f"    return [{names}]", "", f"def fn({names}):", *body]
        return "\n".join([*head, f"    return [{', '.join(self.outputs)}]", ""])


def randn(*shape: int, seed: int) -> Tensor:
    """Numbers of their own for each input, so that a program keeps its values when others of its inputs go."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randint(low: int, high: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def names(exact: bool = False) -> dict[str, Any]:
    """What the text of a program refers to; with ``exact`` every floating type is float64."""
    types = dict.fromkeys(FLOATS, torch.float64) if exact else FLOATS
    return {"torch": torch, "F": F, "randn": randn, "randint": randint, **types, **INTEGERS}


def made(program: Program) -> list[Tensor]:
    space = names()
    exec(program.text, space)
    return space["make"]()


def doubled(tensors: Iterable[Tensor], rounding: Rounding | None = None) -> list[Tensor]:
    """Copies with floats in float64, strides and shared memory as they were; with ``rounding`` noisy ones."""
    flats: dict[int, Tensor] = {}
    found = []
    for t in tensors:
        key = t.untyped_storage().data_ptr()
        if key not in flats:
            size = t.untyped_storage().nbytes() // t.dtype.itemsize
            flat = t.detach().as_strided((size,), (1,), 0)
            flats[key] = flat.to(torch.float64 if t.is_floating_point() else t.dtype, copy=True)
            if rounding is not None:
                rounding.eps = EPS.get(t.dtype, 0.0) / 4
                flats[key] = rounding.noise(flats[key])
        found.append(flats[key].as_strided(t.shape, t.stride(), t.storage_offset()))
    return found


def storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr() if t.untyped_storage().nbytes() else id(t)


#: Functions of several steps: rounding inside of them is as if their operands had been rounded.
COMPOUND = frozenset(
    """layer_norm rms_norm group_norm batch_norm instance_norm var var_mean std norm normalize softmax log_softmax
    logsumexp prod cumsum cumprod logcumsumexp bilinear interpolate scaled_dot_product_attention""".split()
)


class Rounding(TorchFunctionMode):
    """Multiplies what compound functions take and give by 1 ± 2 ``eps``, and by ``noise`` any other value.

    What they give may be a large number of which a line keeps a small difference, as that of a scan to its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.eps, self.generator = 0.0, torch.Generator().manual_seed(0)

    def noise(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        random = torch.rand(value.shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        return value * (1 + 2 * self.eps * random)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if not self.eps or name not in COMPOUND:
            return function(*args, **(kwargs or {}))
        result = self.noise(function(*[self.noise(a) for a in args], **(kwargs or {})))
        if name == "log_softmax" and result.numel():
            # The largest less itself is 0 only where both are rounded: not where its product is fused into the sum.
            size = args[0].detach().abs().max()
            result = result + (self.noise(size.expand(result.shape)) - size)
        return result


class Rounds:
    """A program run line by line: once as eager execution does, once exactly, and ``noisy`` times with rounding."""

    def __init__(self, inputs: dict[str, Tensor], noisy: int = 2, grad: Iterable[str] = ()) -> None:
        self.spaces = [names()] + [names(exact=True) for _ in range(1 + noisy)]
        self.rounding = Rounding()
        self.spaces[0].update(inputs)
        for k, space in enumerate(self.spaces[1:]):
            space.update(zip(inputs, doubled(inputs.values(), self.rounding if k else None)))
        for space in self.spaces:
            for name in grad:
                space[name] = space[name].detach().requires_grad_()

    def run(self, line: Line) -> None:
        for k, space in enumerate(self.spaces):
            if k < 2 or not line.eps:
                exec(line.text, space)
                continue
            self.rounding.eps = line.eps
            with self.rounding:
                exec(line.text, space)
            space[line.result] = self.rounding.noise(space[line.result])

    def values(self, name: str) -> list[Tensor]:
        return [space[name] for space in self.spaces]


def deviation(exact: Tensor, others: Iterable[Tensor]) -> float:
    return max(((o.detach().double() - exact.detach()).abs().max().item() for o in others), default=0.0)


def agrees(values: list[Tensor]) -> bool:
    """Whether rounding leaves a value what it is: integers the same, floats within a tenth of the largest."""
    eager, exact, *noisy = values
    if eager.numel() == 0:
        return True
    if not eager.is_floating_point():
        return all(torch.equal(eager, o) for o in (exact, *noisy))
    scale = exact.abs().max().item()
    if not (bool(torch.isfinite(eager).all()) and bool(torch.isfinite(exact).all()) and scale < LARGEST):
        return False
    return deviation(exact, (eager, *noisy)) <= 0.1 * scale
