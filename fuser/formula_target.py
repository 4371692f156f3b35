"""Names for sizes: which dimensions of a function's tensors, or of a model's inputs, become symbols."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import sympy
import torch
from rooffuse.cost_model import Device
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from .fake_copies import FakeCopier, fake_tensor
from .formula_rows import Formulas, formula_rows
from .formula_trace import FixedSize, FormulaError, Ready, Traced, trace_formulas
from .presets import LoadedModel
from .report_target import ReportTarget

#: Names that are given where the user gives none: of the first and the second dimension.
BATCH, TOKENS = "B", "S"


def parse_symbols(text: str) -> dict[str, int]:
    """``B=8,d=4096`` as names and sizes. Raises FormulaError."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value.isdigit():
            raise FormulaError(f"{part.strip()!r} names no size; write names and sizes as B=8,d=4096")
        found[name] = int(value)
    return found


def parse_sizes(texts: list[str]) -> list[dict[str, int]]:
    """``["B=1,8", "S=1024,4096"]`` as all combinations: ``[{"B": 1, "S": 1024}, …]``. Raises FormulaError."""
    found: list[dict[str, int]] = [{}]
    seen: set[str] = set()
    for text in (piece for one in texts for piece in one.split()):
        name, equals, values = text.partition("=")
        if not equals or name in seen or not all(v.isdigit() and int(v) > 0 for v in values.split(",")):
            raise FormulaError(f"{text!r} are no sizes; write each name once with its sizes, as B=1,8,64 S=1024,4096")
        seen.add(name)
        found = [{**sizes, name: int(v)} for sizes in found for v in values.split(",")]
    return found


def _check_symbols(symbols: Mapping[str, int]) -> None:
    for name, value in symbols.items():
        if not name.isidentifier():
            raise FormulaError(f"{name!r} is no name for a size; names are letters and digits, as B or d_model")
        if value < 2:
            raise FormulaError(f"{name} is {value}: sizes 0 and 1 are special to torch and can't be named; use "
                               "arguments with a larger size")
    for value in symbols.values():
        same = [other for other in symbols if symbols[other] == value]
        if len(same) > 1:
            raise FormulaError(f"{' and '.join(same)} are both {value}, and can't be told apart; use arguments whose "
                               "sizes differ")


def default_symbols(args: Any) -> dict[str, int]:
    """B for the first dimension of the first argument of two dimensions or more (else of one), S for the second of
    three-dimensional ones and of token ids. Raises FormulaError if there is nothing to name."""
    tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor) and t.ndim]
    chosen = next((t for t in tensors if t.ndim > 1), tensors[0] if tensors else None)
    if chosen is None:
        raise FormulaError("no argument is a tensor with a size to name; name sizes of its weights as d=4096")
    found = {BATCH: chosen.shape[0]}
    if chosen.ndim > 2 or (chosen.ndim == 2 and chosen.dtype in (torch.int64, torch.int32)):
        found[TOKENS] = chosen.shape[1]
    return found


class _Namer:
    """Makes fakes in which sizes of certain values are symbols: wherever they are, or in the dimension of ``places``
    only."""

    def __init__(self, symbols: Mapping[int, torch.SymInt], places: Mapping[int, int] | None) -> None:
        self.symbols, self.places = symbols, places
        self.met: set[int] = set()

    def __call__(self, tensor: Tensor, mode: FakeTensorMode) -> Tensor:
        plain = fake_tensor(tensor, mode)
        named = [k for k, n in enumerate(tensor.shape)
                 if n in self.symbols and (self.places is None or self.places[n] == k)]
        if not named:
            return plain
        self.met |= {tensor.shape[k] for k in named}
        shape = [self.symbols[n] if k in named else n for k, n in enumerate(tensor.shape)]
        with mode:
            made = torch.empty_strided(shape, _strides(tensor, shape), dtype=tensor.dtype, device=plain.device)
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, tensor.requires_grad)
        return made.requires_grad_(tensor.requires_grad)


def _strides(tensor: Tensor, shape: list[Any]) -> list[Any]:
    """The strides of ``tensor`` with its sizes replaced by those of ``shape``; gaps between rows stay numbers."""
    strides: list[Any] = list(tensor.stride())
    number, symbolic = 1, 1
    for k in sorted(range(tensor.ndim), key=lambda d: (tensor.stride(d), -d)):
        if tensor.stride(k) == number:
            strides[k] = symbolic
        if tensor.stride(k):
            number, symbolic = tensor.stride(k) * tensor.shape[k], strides[k] * shape[k]
    return strides


def _modules_of(function: Callable[..., Any]) -> dict[str, nn.Module]:
    """Modules that a function is or mentions, by their names there."""
    if isinstance(function, nn.Module):
        return {"": function}
    if not isinstance(function, FunctionType):
        return {}
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # a name that has no value yet
            continue
    mentioned = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {name: value for name, value in {**mentioned, **cells}.items() if isinstance(value, nn.Module)}


def function_formulas(target: ReportTarget, device: Device, symbols: Mapping[str, int] | None) -> Formulas:
    """The formulas of a function; see `rooffuse.formulas`."""
    chosen = default_symbols((target.args, dict(target.kwargs))) if symbols is None else dict(symbols)
    _check_symbols(chosen)
    met: set[int] = set()

    def make(mode: FakeTensorMode, dims: Mapping[str, torch.SymInt]) -> Ready:
        named = {chosen[name]: dim for name, dim in dims.items()}
        # Sizes that were named for the user are looked for where they were found: in front, in arguments.
        places = {value: k for k, value in enumerate(chosen.values())} if symbols is None else None
        namer = _Namer(named, places)
        copier = FakeCopier(mode, namer)
        weights = copier if symbols is not None else FakeCopier(mode)
        original = getattr(target.function, "_orig_mod",
                           getattr(target.function, "_torchdynamo_orig_callable", target.function))
        function = weights(original)
        ready = Ready(function, copier(target.args), copier(dict(target.kwargs)), _modules_of(function))
        met.update(namer.met)
        return ready

    traced = trace_formulas(make, chosen)
    for name, value in chosen.items():
        if value not in met:
            raise FormulaError(f"no argument or weight has a size of {value}, which {name} was to stand for")
    return Formulas(device, chosen, formula_rows(traced), traced.conditions)


def model_formulas(loaded: LoadedModel, device: Device) -> Formulas:
    """The formulas of a preset or configuration in B, its batch, and S, its tokens of context."""
    sizes = {BATCH: loaded.batch} if loaded.context is None else {BATCH: loaded.batch, TOKENS: loaded.context}

    def make(mode: FakeTensorMode, dims: Mapping[str, torch.SymInt]) -> Ready:
        model = FakeCopier(mode)(loaded.model)
        with mode:
            target = loaded.run(model, dims[BATCH], dims.get(TOKENS), torch.device("cpu"))
        return Ready(target.function, target.args, target.kwargs, {"model": model})

    try:
        traced: Traced = trace_formulas(make, {name: max(value, 3) for name, value in sizes.items()})
    except FixedSize:  # a size that happens to equal another one; primes seldom do
        traced = trace_formulas(make, {name: sympy.prevprime(max(value, 8)) for name, value in sizes.items()})
    return Formulas(device, sizes, formula_rows(traced), traced.conditions)
