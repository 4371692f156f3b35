"""The operator registry: for every operator its kind, its FLOPs and the bytes it must move."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .cost import KINDS, Cost, Price, Size, Unit
from .spec import TensorSpec, normalise, specs_in, unique

_HALF_TYPES = frozenset(
    getattr(torch, name)
    for name in (
        "bfloat16",
        "float16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    )
    if hasattr(torch, name)
)


@dataclass(frozen=True)
class _Signature:
    """Names of the arguments of an operator, which are written, and which results are fresh memory."""

    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    written: frozenset[str]
    out: frozenset[str]
    fresh_returns: tuple[bool, ...] | None
    is_view: bool


class Call:
    """One operator call with tensors replaced by `TensorSpec`: what a formula sees.

    Arguments are looked up by the name that the operator's schema gives them: ``call["self"]``.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], result: Any, signature: _Signature) -> None:
        self.name = name
        self.arguments = arguments
        self.result = result
        self.signature = signature

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name, self.signature.defaults.get(name))

    @property
    def in_place(self) -> bool:
        """True when an argument other than an ``out`` buffer is written."""
        return bool(self.signature.written - self.signature.out)

    @property
    def inputs(self) -> list[TensorSpec]:
        """Tensors passed in, each once, without ``out`` buffers."""
        return unique(specs_in({k: v for k, v in self.arguments.items() if k not in self.signature.out}))

    @property
    def outputs(self) -> list[TensorSpec]:
        """Tensors written, each once: mutated arguments, ``out`` buffers and fresh results."""
        written = [self.arguments.get(name) for name in self.signature.names if name in self.signature.written]
        fresh = self.signature.fresh_returns
        if fresh is None or len(fresh) == 1:
            results = [self.result] if fresh is None or fresh[0] else []
        else:
            items = self.result if isinstance(self.result, tuple) else (self.result,)
            results = [item for item, is_fresh in zip(items, fresh) if is_fresh]
        return unique(specs_in((written, results)))

    def read_bytes(self, without: Iterable[str] = ()) -> Size:
        """Bytes of all inputs, except the arguments named in ``without``, whose values the operator never looks at."""
        skip = self.signature.out | frozenset(without)
        kept = {name: value for name, value in self.arguments.items() if name not in skip}
        return sum(spec.nbytes for spec in unique(specs_in(kept)))

    def written_bytes(self) -> Size:
        """Bytes of all outputs."""
        return sum(spec.nbytes for spec in self.outputs)

    def moves(self, flops: Size, without: Iterable[str] = ()) -> Cost:
        """The usual cost: read every input once, write every output once."""
        return Cost(flops, self.read_bytes(without), self.written_bytes())

    def output_numel(self) -> Size:
        """Elements of the largest output (of the first one, where sizes are symbols)."""
        return largest(self.outputs)

    def input_numel(self) -> Size:
        """Elements of the largest input (of the first one, where sizes are symbols)."""
        return largest(self.inputs)


def largest(specs: Sequence[TensorSpec]) -> Size:
    """Elements of the largest of several tensors; the first one's where sizes cannot be compared; 0 for none."""
    sizes = [spec.numel for spec in specs]
    if not sizes:
        return 0
    return max(sizes) if all(isinstance(size, int) for size in sizes) else sizes[0]


Formula = Callable[[Call], Cost]


@dataclass(frozen=True)
class Entry:
    """What the registry holds for an operator name."""

    kind: str
    unit: Unit
    formula: Formula
    params: tuple[str, ...]


class OpRegistry:
    """Formulas by operator name: ``"aten::add"`` for all overloads, ``"aten::any.dim"`` for one.

    An in-place variant (``add_``) uses the entry of its functional form unless it has its own.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> tuple[str, ...]:
        """All registered names, sorted."""
        return tuple(sorted(self._entries))

    def register(
        self, *names: str, kind: str, unit: Unit = "vector", params: Sequence[str] = ()
    ) -> Callable[[Formula], Formula]:
        """Decorator that files a formula under operator names.

        ``params`` names the positional arguments of operators without a schema (higher-order operators).
        Raises ValueError for a name registered before and for a kind that does not exist.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r} for {', '.join(names)}; use one of {', '.join(KINDS)}")

        def decorate(formula: Formula) -> Formula:
            for name in names:
                if name in self._entries:
                    raise ValueError(
                        f"operator {name!r} already has a formula ({self._entries[name].formula.__qualname__}); "
                        "remove one of the two registrations"
                    )
                self._entries[name] = Entry(kind, unit, formula, tuple(params))
            return formula

        return decorate

    def find(self, name: str, overload: str = "default", mutable: bool = False) -> Entry | None:
        """The entry for ``name`` (with namespace), the overload's own one first."""
        candidates = [f"{name}.{overload}", name]
        if mutable and name.endswith("_"):
            candidates += [f"{name[:-1]}.{overload}", name[:-1]]
        for candidate in candidates:
            if candidate in self._entries:
                return self._entries[candidate]
        return None


OPS = OpRegistry()
register = OPS.register


def aten(names: str) -> tuple[str, ...]:
    """Registry names of ATen operators written as one string: ``aten("sin cos")``."""
    return tuple(f"aten::{name}" for name in names.split())


_SCHEMALESS = _Signature((), {}, frozenset(), frozenset(), None, False)


def _resolve(target: Any) -> Any:
    """An overload packet stands for its default overload, or else its first."""
    if isinstance(target, torch._ops.OpOverloadPacket):
        overloads = target.overloads()
        return getattr(target, "default" if "default" in overloads else overloads[0])
    return target


@functools.cache
def _signature_of(target: Any) -> _Signature:
    schema = getattr(target, "_schema", None)
    if schema is None:
        return _SCHEMALESS
    written = frozenset(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    aliases = [r.alias_info for r in schema.returns]
    return _Signature(
        names=tuple(a.name for a in schema.arguments),
        defaults={a.name: a.default_value for a in schema.arguments if a.default_value is not None},
        written=written,
        out=frozenset(a.name for a in schema.arguments if a.is_out),
        fresh_returns=tuple(alias is None or not alias.is_write for alias in aliases),
        is_view=bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases),
    )


def _name_of(target: Any) -> tuple[str, str]:
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return schema.name, schema.overload_name or "default"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order::{target.name()}", "default"
    module = getattr(target, "__module__", None) or "builtins"
    name = getattr(target, "__name__", None) or type(target).__name__
    return f"{module.lstrip('_')}::{name}", "default"


def _is_metadata(target: Any) -> bool:
    """True for Python arithmetic on sizes and for picking an item out of a tuple."""
    return target is operator.getitem or getattr(target, "__module__", None) in ("_operator", "math", "builtins")


def _find(target: Any, signature: _Signature) -> Entry | None:
    name, overload = _name_of(target)
    return OPS.find(name, overload, bool(signature.written))


def _fallback_kind(target: Any, signature: _Signature, has_tensors: bool) -> str:
    if signature.is_view or (_is_metadata(target) and not has_tensors) or target is operator.getitem:
        return "view"
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return "pointwise"
    return "other"


def kind_of(target: Any) -> str:
    """The kind of an operator, one of `KINDS`; ``"other"`` when nothing is known about it."""
    target = _resolve(target)
    signature = _signature_of(target)
    entry = _find(target, signature)
    return entry.kind if entry is not None else _fallback_kind(target, signature, has_tensors=False)


def _vector_dtype(specs: Sequence[TensorSpec]) -> torch.dtype:
    """Element-wise arithmetic on 16-bit and 8-bit floats runs in fp32 registers."""
    for spec in specs:
        if spec.dtype.is_floating_point or spec.dtype.is_complex:
            return torch.float32 if spec.dtype in _HALF_TYPES else spec.dtype
    return specs[0].dtype if specs else torch.float32


def _operand_dtype(call: Call, tensors: Sequence[TensorSpec]) -> torch.dtype:
    """The dtype of a product's left operand; ``addmm`` and its like have the bias in front of it."""
    for name in ("mat1", "batch1"):
        if isinstance(call[name], TensorSpec):
            return call[name].dtype
    return tensors[0].dtype if tensors else torch.float32


def price(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Price:
    """Price one call of ``target``.

    ``target`` is an operator overload, an overload packet, a higher-order operator or a Python builtin; ``args``,
    ``kwargs`` and ``result`` hold tensors (real, meta or fake) or `TensorSpec`. Only shapes, strides, dtypes and
    storage offsets are read, never data. The bytes are those that must cross the memory bus when each distinct input
    element is read once and each output element is written once; views move none.

    An operator without a formula is priced by its tensors and flagged ``known=False``.
    """
    target = _resolve(target)
    signature = _signature_of(target)
    name, overload = _name_of(target)
    entry = OPS.find(name, overload, bool(signature.written))
    names = signature.names or (entry.params if entry is not None else ())
    seen: dict[int, TensorSpec] = {}
    arguments: dict[str, Any] = {}
    for position, value in enumerate(args):
        key = names[position] if position < len(names) else f"arg{position}"
        arguments[key] = normalise(value, seen)
    for key, value in kwargs.items():
        arguments[key] = normalise(value, seen)
    call = Call(name, arguments, normalise(result, seen), signature)

    tensors = [*call.inputs, *call.outputs]
    if entry is None:
        kind = _fallback_kind(target, signature, has_tensors=bool(tensors))
        dtype = _vector_dtype(tensors)
        if kind == "view":
            return Price(Cost.zero(), kind, dtype, "vector", True)
        return Price(call.moves(0), kind, dtype, "vector", False)
    cost = entry.formula(call)
    if entry.unit == "tensor":
        dtype = _operand_dtype(call, tensors)
    else:
        dtype = _vector_dtype([*call.outputs, *call.inputs])
    return Price(cost, entry.kind, dtype, entry.unit, True)
