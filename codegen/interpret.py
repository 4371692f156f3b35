"""Reference interpreter: runs a kernel on tensors, one whole-array operation a statement. Slow and plain on purpose."""
from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import sympy
import torch
from rooffuse.passes.philox import philox_bits
from torch import Tensor

from .index import FloorDiv, Mod
from .ir import Compute, Const, Index, Kernel, Load, Nest, Reduce, Scan, Stmt, Store, compute_dtype

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "not": torch.logical_not, "invert": torch.bitwise_not, "min": torch.minimum, "max": torch.maximum,
    "truncdiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"), "floordiv": torch.floor_divide,
    "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor,
    "philox0": functools.partial(philox_bits, word=0), "philox1": functools.partial(philox_bits, word=1),
    "fma": lambda a, b, c: torch.addcmul(c, a, b), "shl": torch.bitwise_left_shift, "shr": torch.bitwise_right_shift,
}


def _bounded(index: Tensor, size: Tensor) -> Tensor:
    if bool(((index < 0) | (index >= size)).any()):
        raise IndexError("index out of range in a gather")
    return index


def _function(op: str) -> Callable[..., Tensor]:
    return _bounded if op == "bounded" else _FUNCTIONS.get(op) or getattr(torch, op)


class _NestRun:
    """Values are arrays that broadcast against the shape of the axes."""

    def __init__(self, nest: Nest, buffers: Mapping[str, Tensor]) -> None:
        self.nest, self.buffers = nest, buffers
        self.shape = tuple(a.size for a in nest.axes)
        self.values: dict[str, Tensor] = {}
        self.positions = {
            a.symbol: torch.arange(a.size).reshape([-1 if d == k else 1 for d in range(len(nest.axes))])
            for k, a in enumerate(nest.axes)}

    def index(self, expr: sympy.Expr) -> Tensor:
        if expr.is_Integer:
            return torch.tensor(int(expr))
        if isinstance(expr, sympy.Symbol):
            return self.positions[expr] if expr in self.positions else self.values[expr.name]
        args = [self.index(a) for a in expr.args]
        if isinstance(expr, FloorDiv):
            return torch.div(args[0], args[1], rounding_mode="floor")
        if isinstance(expr, Mod):
            return torch.remainder(args[0], args[1])
        result = args[0]
        for a in args[1:]:
            result = result + a if isinstance(expr, sympy.Add) else result * a
        return result

    def run(self, stmt: Stmt) -> None:
        if isinstance(stmt, Store):
            self._store(stmt)
        elif isinstance(stmt, Const):
            self.values[stmt.name] = torch.tensor(stmt.value, dtype=stmt.dtype)
        elif isinstance(stmt, Index):
            self.values[stmt.name] = self.index(stmt.expr).to(stmt.dtype)
        elif isinstance(stmt, Load):
            self.values[stmt.name] = self._load(stmt)
        elif isinstance(stmt, Reduce):
            self.values[stmt.name] = self._reduce(stmt)
        elif isinstance(stmt, Scan):
            self.values[stmt.name] = self._scan(stmt)
        else:
            self.values[stmt.name] = self._compute(stmt)

    def _compute(self, stmt: Compute) -> Tensor:
        args = [self.values[a] for a in stmt.args]
        if stmt.op == "cast":
            return args[0].to(stmt.dtype)
        if stmt.op == "round_to":
            assert stmt.rounding is not None
            return args[0].to(stmt.rounding).to(stmt.dtype)
        if stmt.op == "bits":
            assert stmt.rounding is not None
            return args[0].to(stmt.rounding).view(stmt.dtype)
        if stmt.op == "from_bits":
            assert stmt.rounding is not None
            return args[0].view(stmt.rounding).to(stmt.dtype)
        return _function(stmt.op)(*args).to(stmt.dtype)

    def _load(self, stmt: Load) -> Tensor:
        flat, index = self.buffers[stmt.buffer], self.index(stmt.index)
        if stmt.mask is None:
            return flat[index].to(stmt.dtype)
        mask = self.values[stmt.mask]
        safe = torch.where(mask, index, torch.zeros_like(index))
        return torch.where(mask, flat[safe].to(stmt.dtype), torch.tensor(stmt.other, dtype=stmt.dtype))

    def _reduce(self, stmt: Reduce) -> Tensor:
        full = self.values[stmt.value].expand(self.shape)
        over = [k for k, a in enumerate(self.nest.axes) if (
            a.strip if stmt.strip else a.reduction and (not stmt.along or a.symbol in stmt.along))]
        rows = full.movedim(over, list(range(-len(over), 0))).flatten(-len(over))
        ops: dict[str, Callable[[Tensor], Tensor]] = {
            "sum": lambda x: x.sum(-1, dtype=stmt.dtype), "prod": lambda x: x.prod(-1, dtype=stmt.dtype),
            "max": lambda x: x.amax(-1), "min": lambda x: x.amin(-1), "any": lambda x: x.any(-1),
            "expsum": lambda x: (x - _finite(x.amax(-1, keepdim=True), stmt.strip)).exp().sum(-1),
            "devsum": lambda x: (x - x.mean(-1, keepdim=True)).square().sum(-1),
            "all": lambda x: x.all(-1), "argmax": lambda x: x.argmax(-1), "argmin": lambda x: x.argmin(-1)}
        if stmt.fold > 1:  # the neighbours' rows are one, which each of them has
            rows = rows.unflatten(-2, (-1, stmt.fold))
            rows = rows.flatten(-2).unsqueeze(-2).expand(*rows.shape[:-1], -1).flatten(-3, -2)
        return ops[stmt.op](rows).to(stmt.dtype).reshape([1 if k in over else n for k, n in enumerate(full.shape)])

    def _scan(self, stmt: Scan) -> Tensor:
        axes = [k for k, a in enumerate(self.nest.axes) if (a.strip if stmt.strip else a.reduction)]
        full = self.values[stmt.value].expand(self.shape).movedim(axes, list(range(-len(axes), 0)))
        rows = full.flatten(-len(axes))
        ops: dict[str, Callable[[Tensor], Tensor]] = {
            "sum": lambda x: x.cumsum(-1), "prod": lambda x: x.cumprod(-1), "max": lambda x: x.cummax(-1).values,
            "min": lambda x: x.cummin(-1).values, "logsumexp": lambda x: x.logcumsumexp(-1)}
        return ops[stmt.op](rows).to(stmt.dtype).reshape(full.shape).movedim(list(range(-len(axes), 0)), axes)

    def _store(self, stmt: Store) -> None:
        flat = self.buffers[stmt.buffer]
        value, index = torch.broadcast_tensors(self.values[stmt.value], self.index(stmt.index))
        value = value.to(flat.dtype)
        if stmt.mask is not None:
            mask = self.values[stmt.mask].expand(index.shape)
            value, index = value[mask], index[mask]
        flat.index_put_((index,), value, accumulate=stmt.accumulate)


def _finite(top: Tensor, wanted: bool) -> Tensor:
    """Maxima with zeros for infinities, if that is ``wanted``."""
    return torch.where(top.isinf(), 0, top) if wanted else top


def interpret(kernel: Kernel, buffers: Mapping[str, Tensor]) -> None:
    """Run ``kernel`` on flat tensors by buffer name, writing those that it stores to. Raises IndexError for a
    gather outside of its dimension."""
    for buffer in kernel.buffers:
        flat = buffers[buffer.name]
        if flat.dim() != 1 or flat.numel() < buffer.size or compute_dtype(flat.dtype) != compute_dtype(buffer.dtype):
            raise ValueError(f"{kernel.name}: {buffer.name} must be flat, {buffer.dtype}, of {buffer.size} elements")
    for nest in kernel.nests:
        run = _NestRun(nest, buffers)
        for stmt in nest.body:
            run.run(stmt)
