"""Values of graph nodes in a nest of the loop IR, and which nodes can have any.

Values are *pulled*: an output element asks for the operand elements that it needs, index maps turn one coordinate
into another, and what is asked for twice at the same coordinates is one SSA value.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import torch
from rooffuse.passes.graph import IMPLIED_CAST, INNER_PRODUCT
from sympy import Expr, Integer
from torch.fx import Node

from . import (
    lower_contractions,
    lower_pointwise,
    lower_reductions,
    lower_scans,
    lower_special,
    lower_stores,
    lower_views,
)
from .builder import NestBuilder
from .errors import NotLowerable
from .exact_rounding import holds_exactly
from .float8 import FLOAT8
from .fxinfo import dtype_of, numel_of, op_name, shape_of, span_of, strides_of, value_of
from .index import bounds, dot, ravel, unravel
from .ir import DOWN_STRIPS, Axis, Load, Nest, Store, compute_dtype, operands
from .lower_reductions import COMBINED, Reduction, is_reduction, reduction_of, source_coords
from .lower_scans import is_scan
from .lower_segments import axes_along, axes_placed
from .lower_slices import MOST_SLICES, written_out

Coords = tuple[Expr, ...]

STORAGE_TYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8,
                           torch.int16, torch.int32, torch.int64, torch.bool, *FLOAT8})


def refusal(node: Node) -> str | None:
    """Why ``node`` can't be part of a kernel, or None if it can (by itself, at least)."""
    name = op_name(node)
    if not _is_known(node):
        return f"{node.target} has no lowering"
    if name in lower_special.UNWRITTEN and not all(map(_is_known, node.users)):
        return f"{node.name} is memory for somebody else to write"
    try:
        for tensor in (node, *node.all_input_nodes):
            if not isinstance(value_of(tensor), torch.Tensor):
                if tensor is not node and lower_views.is_alias(node):
                    continue
                return f"{tensor.name} is no tensor"
            if dtype_of(tensor) not in STORAGE_TYPES:
                return f"{tensor.name} has type {dtype_of(tensor)}"
            if numel_of(tensor) == 0:
                return f"{tensor.name} is empty"
            if value_of(tensor).layout != torch.strided:
                return f"{tensor.name} isn't strided"
            if value_of(tensor).is_neg():
                return f"{tensor.name} is negated lazily, and a kernel sees but its memory"
            if value_of(tensor).device != value_of(node).device:
                return f"{tensor.name} is on {value_of(tensor).device}"
        if is_reduction(node):
            reduction_of(node)
        if lower_stores.is_store(node):
            return lower_stores.refusal(node)
        if name == "round" and (len(node.args) > 1 or node.kwargs.get("decimals")):
            return "rounding to decimals has no lowering"
        if lower_views.is_reinterpretation(node):
            types = (dtype_of(node), dtype_of(node.args[0]))
            if torch.bool in types or types[0].itemsize != types[1].itemsize:
                return f"seeing {types[1]} as {types[0]} has no lowering"
        if name in ("max", "min") and not is_reduction(node):
            return f"{node.target} has no lowering"
        if name == "div" and node.kwargs.get("rounding_mode") not in (None, "floor", "trunc"):
            return f"rounding mode {node.kwargs['rounding_mode']!r} has no lowering"
    except NotLowerable as reason:
        return str(reason)
    return None


def _is_known(node: Node) -> bool:
    """Whether there is a lowering of the operator, whatever its operands."""
    name = op_name(node)
    return (name in lower_pointwise.RULES or name in lower_special.RULES or name in lower_views.INDEX_MAPS
            or is_reduction(node) or is_scan(node) or lower_stores.is_store(node))


class NestLowering:
    """Pulls values of graph nodes into the nest that ``builder`` builds."""

    def __init__(self, builder: NestBuilder, buffers: dict[Node, str], places: Mapping[Node, Coords]) -> None:
        self.builder = builder
        self.buffers = buffers
        self.widens = False  # whether rows somewhat shorter than the nest's may be reduced in it, under a condition
        self.places = places  # where the nest has the elements of a node, of those that follow from what it visits
        self._values: dict[tuple[Node, Coords, str | None], str] = {}

    def value(self, node: Node, coords: Coords) -> str:
        """The SSA value of ``node``'s element at ``coords``."""
        key = (node, coords, self.builder.mask)
        if key not in self._values:
            self._values[key] = self._pull(node, coords)
        return self._values[key]

    def computed(self, nest: Nest) -> set[Node]:
        """Nodes of which ``nest``, which this lowering has filled, has values that aren't read from memory."""
        names = {s.name for s in nest.body if not isinstance(s, Store)}
        return {node for (node, _, _), name in self._values.items() if name in names and node not in self.buffers}

    def reduced_apart(self, nest: Nest) -> set[Node]:
        """Reductions of which ``nest`` has results at several places, each of which may add up in another order."""
        names = {s.name for s in nest.body if not isinstance(s, Store)}
        results = {(node, name) for (node, _, _), name in self._values.items() if name in names and is_reduction(node)}
        return {node for node, count in Counter(node for node, _ in results).items() if count > 1}

    def _pull(self, node: Node, coords: Coords) -> str:
        if node in self.buffers:
            return self.builder.load(self.buffers[node], dtype_of(node), dot(coords, strides_of(node)))
        name = op_name(node)
        if is_reduction(node):
            return self._reduction(reduction_of(node), coords)
        if is_scan(node):
            return lower_scans.pull(self, node, coords)
        if lower_views.is_reinterpretation(node):
            source = node.args[0]
            return self.builder.reinterpreted(self.value(source, coords), dtype_of(source), dtype_of(node))
        if name in lower_views.INDEX_MAPS:
            source, inner = lower_views.INDEX_MAPS[name](node, coords, self.builder.ranges)
            return self.value(source, inner)
        if name in lower_special.RULES:
            return lower_special.RULES[name](self, node, coords)
        if name in lower_pointwise.RULES:
            return self._pointwise(node, coords)
        raise NotLowerable(f"{node.name}: {node.target} has no lowering")

    def value_where(self, condition: str | None, node: Node, coords: Coords) -> str:
        """``value`` at points where ``condition`` holds; elsewhere nothing is loaded from outside of a buffer."""
        value = self.value(node, coords)
        if condition is None or not self._loads_outside(value):
            return value
        return self.masked(condition, node, coords)

    def _loads_outside(self, value: str) -> bool:
        """Whether a value needs a load that may be outside of its buffer."""
        sizes = {name: span_of(node) for node, name in self.buffers.items()}
        made = {s.name: s for s in self.builder.body if not isinstance(s, Store)}
        work, seen = [value], {value}
        while work:
            stmt = made[work.pop()]
            if isinstance(stmt, Load) and stmt.mask is None:
                extent = bounds(stmt.index, self.builder.ranges)
                if extent is not None and (extent[0] < 0 or extent[1] >= sizes[stmt.buffer]):
                    return True
            work += [n for n in operands(stmt) if n not in seen]
            seen.update(operands(stmt))
        return False

    def masked(self, condition: str | bool, node: Node, coords: Coords) -> str:
        """``value`` with loads made only where ``condition`` holds."""
        if condition is True:
            return self.value(node, coords)
        assert isinstance(condition, str)
        b, outer = self.builder, self.builder.mask
        b.mask = b.both(outer, condition)
        try:
            return self.value(node, coords)
        finally:
            b.mask = outer

    def gathered(self, indices: Node, coords: Coords, size: int, negative: bool) -> Expr:
        return self.builder.gathered(self.value(indices, coords), size, negative)

    def _operand(self, argument: object, node: Node, coords: Coords) -> str | None:
        if isinstance(argument, Node):
            return self.value(argument, lower_views.broadcast_coords(coords, shape_of(argument)))
        if argument is None:
            return None
        if not isinstance(argument, bool | int | float):
            raise NotLowerable(f"{node.name} has an operand {argument!r}")
        kind = torch.bool if isinstance(argument, bool) else torch.int64 if isinstance(argument, int) else torch.float64
        return self.builder.const(argument, kind)

    def _pointwise(self, node: Node, coords: Coords) -> str:
        contracted = self._with_inner_product(node, coords)
        if contracted is not None:
            return contracted
        rule, b = lower_pointwise.RULES[op_name(node)], self.builder
        arguments, keywords = list(node.args), dict(node.kwargs)
        for operand_name in ("min", "max", "value", "other"):
            if operand_name in keywords and len(arguments) < rule.operands:
                arguments += [None] * (self._position(node, operand_name) - len(arguments))
                arguments.append(keywords.pop(operand_name))
        operands = [self._operand(a, node, coords) for a in arguments[:rule.operands]]
        wanted = {"result": compute_dtype(dtype_of(node)), "bool": torch.bool, "own": None}.get(rule.typing)
        if rule.typing == "common":
            common = self._common_dtype(arguments[:rule.operands])
            wanted = compute_dtype(common)
            if wanted != common:
                operands = [v if v is None or (isinstance(a, Node) and dtype_of(a) == common) else
                            b.converted(v, common) for a, v in zip(arguments, operands)]
        if wanted is not None:
            skip = self._condition_position(node, rule)
            operands = [v if v is None else b.cast(v, torch.bool if k == skip else wanted)
                        for k, v in enumerate(operands)]
        keep = ("memory_format", "dtype", "layout", "device", "pin_memory", "non_blocking")
        extra = () if op_name(node) in ("clone", "_to_copy", "copy") else arguments[rule.operands:]
        if any(isinstance(x, Node) for x in (*extra, *keywords.values())):
            raise NotLowerable(f"{node.name} has a parameter that is only known when it runs")
        result = rule.emit(b, *operands, *extra, **{k: v for k, v in keywords.items() if k not in keep})
        if op_name(node) == "copy":
            result = self._operand(arguments[1], node, coords) or result
        result = b.cast(result, dtype_of(node))
        written = op_name(node) == "_to_copy" and IMPLIED_CAST not in node.meta
        if written and not holds_exactly(dtype_of(node), dtype_of(node.args[0])):
            return b.rounded_always(result, dtype_of(node))
        return b.rounded(result, dtype_of(node))

    def _with_inner_product(self, node: Node, coords: Coords) -> str | None:
        """A sum, or difference, of which one operand is a product inside of the same operator, rounded once."""
        name, dtype = op_name(node), dtype_of(node)
        if name not in ("add", "sub") or node.kwargs or dtype not in (torch.float32, torch.float64):
            return None
        places = [k for k, a in enumerate(node.args[:2]) if isinstance(a, Node) and INNER_PRODUCT in a.meta
                  and a not in self.buffers and dtype_of(a) == dtype]
        if not places:
            return None
        b, product = self.builder, node.args[places[0]]
        inner = lower_views.broadcast_coords(coords, shape_of(product))
        operands = [self._operand(a, product, inner) for a in product.args]
        operands.append(self._operand(node.args[1 - places[0]], node, coords))
        first, second, other = (b.cast(v, dtype) for v in operands if v is not None)
        if name == "sub":
            first, other = (b.compute("neg", first), other) if places[0] else (first, b.compute("neg", other))
        return b.compute("fma", first, second, other)

    @staticmethod
    def _condition_position(node: Node, rule: lower_pointwise.PointwiseRule) -> int | None:
        if rule.first_bool:
            return 0
        return 1 if op_name(node) == "masked_fill" else None

    @staticmethod
    def _position(node: Node, name: str) -> int:
        return next(k for k, a in enumerate(node.target._schema.arguments) if a.name == name)

    @staticmethod
    def _common_dtype(operands: Iterable[object]) -> torch.dtype:
        values: list[Any] = [value_of(a) if isinstance(a, Node) else a for a in operands]
        if len(values) == 1:
            return values[0].dtype
        return torch.result_type(*values)

    def _reduction(self, reduction: Reduction, coords: Coords) -> str:
        node, b = reduction.node, self.builder
        down_strip = reduction.count > 1 and self._goes_down_strip(reduction, coords)
        if not down_strip and self._is_written_out(reduction, coords):
            values = [self.value(reduction.source, c) for c in written_out(reduction, coords)]
            return b.rounded(lower_reductions.combine(b, reduction, values), dtype_of(node))
        if reduction.count > 1:
            if b.mask is not None:
                return self._unmasked(node, coords)
            axes = self._reduced_axes(reduction, coords, down_strip)
            sizes = tuple(a.size for a in axes)
            if reduction.count < prod(sizes):
                return b.rounded(self._widened(reduction, coords, axes), dtype_of(node))
            wide = tuple(s for s in reduction.sizes if s != 1)
            if wide == sizes:
                symbols = iter([a.symbol for a in axes])
                inner: list[Coords] = [tuple(next(symbols) if s != 1 else Integer(0) for s in reduction.sizes)]
            else:
                position, row = ravel([a.symbol for a in axes], sizes), prod(sizes)
                inner = [unravel(k * row + position, reduction.sizes, b.ranges) for k in range(reduction.count // row)]
            whole = down_strip or len(axes) == sum(a.reduction for a in b.axes)
            along = () if whole else tuple(a.symbol for a in axes)
        else:
            inner, along = [tuple(Integer(0) for _ in reduction.dims)], ()
        values = [self._reduced_value(reduction, source_coords(reduction, coords, place)) for place in inner]
        value = lower_reductions.joined(b, reduction, values) if len(values) > 1 else values[0]
        if down_strip:
            b.require_scope_of(value, node.name)
        result = lower_reductions.emit(b, reduction, value, down_strip, along)
        bias = lower_contractions.addend(node)
        if bias is not None:
            result = self._with_addend(result, coords, *bias)
        return b.rounded(result, dtype_of(node))

    def _reduced_axes(self, reduction: Reduction, coords: Coords, down_strip: bool) -> tuple[Axis, ...]:
        """The axes of the nest that run over what is reduced, or over each of some slices of it."""
        b, name = self.builder, reduction.node.name
        segment = False
        if down_strip:
            axes = tuple(a for a in b.axes if a.strip)
        else:
            axes = axes_along(reduction, coords, b.axes, self.places)
            segment = len(axes) < sum(a.reduction for a in b.axes)
            if _is_looked_up(coords) or (segment and (reduction.source is None or any(a.strip for a in b.axes))):
                raise NotLowerable(f"{name} would be reduced inside of another reduction")
        folds, rest = divmod(reduction.count, prod(a.size for a in axes))
        folded = not down_strip and not segment and reduction.source is not None and reduction.op in COMBINED
        single = all(a.reduction for a in self.builder.axes)
        if self.widens and folded and not folds and (single or 2 * rest >= prod(a.size for a in axes)):
            return axes
        if rest or not 1 <= folds <= (MOST_SLICES if folded else 1):
            raise NotLowerable(f"{name} reduces {reduction.count} elements where the kernel's rows have "
                               f"{prod(a.size for a in axes)}")
        return axes

    def _widened(self, reduction: Reduction, coords: Coords, axes: tuple[Axis, ...]) -> str:
        """A reduction of fewer elements than the nest's rows have: of those, and what changes nothing beyond."""
        b, source = self.builder, reduction.source
        assert source is not None
        position = ravel([a.symbol for a in axes], [a.size for a in axes])
        place = b.index(position, torch.int32)
        within = b.compute("lt", place, b.const(reduction.count, b.dtypes[place]))
        inner = source_coords(reduction, coords, unravel(position, reduction.sizes, b.ranges))
        value = self.masked(within, source, inner)
        neutral = lower_reductions.neutral(reduction.op, b.dtypes[value])
        return lower_reductions.emit(b, reduction, b.where(within, value, b.const(neutral, b.dtypes[value])))

    def _unmasked(self, node: Node, coords: Coords) -> str:
        """A reduction that a concatenated or padded region needs: made for every row, inside of the region or not."""
        extents = [bounds(c, self.builder.ranges) for c in coords]
        if not all(e is not None and e[0] >= 0 and e[1] < n for e, n in zip(extents, shape_of(node), strict=True)):
            raise NotLowerable(f"{node.name} would be reduced under a mask")
        outer, self.builder.mask = self.builder.mask, None
        try:
            return self.value(node, coords)
        finally:
            self.builder.mask = outer

    def _is_written_out(self, reduction: Reduction, coords: Coords) -> bool:
        """Whether the few elements of the reduction are values of their own, rather than points of the nest's rows."""
        if reduction.source is None or not 1 < reduction.count <= MOST_SLICES or reduction.op not in COMBINED:
            return False
        along = tuple(a.size for a in self.builder.axes if a.reduction)
        wide = tuple(n for n in reduction.sizes if n != 1)
        if self.builder.mask is None and axes_placed(reduction, coords, self.builder.axes, self.places):
            return False
        return along != wide or self.builder.mask is not None or self.builder.scope_has_reduction_axis(
            coords) or _is_looked_up(coords)

    def _goes_down_strip(self, reduction: Reduction, coords: Coords) -> bool:
        """Whether the nest has strips and the reduction goes over one, for every column of its rows or for what there
        is one of for each row."""
        axes, places = self.builder.axes, self.places.get(reduction.source) if reduction.source is not None else None
        symbols, rows = {s for c in coords for s in c.free_symbols}, {a.symbol for a in axes if a.reduction}
        once = places is not None and not rows & {s for c in places for s in c.free_symbols}
        return (any(a.strip for a in axes) and reduction.op in DOWN_STRIPS and (once or symbols >= rows)
                and not any(a.strip and a.symbol in symbols for a in axes))

    def _reduced_value(self, reduction: Reduction, coords: Coords) -> str:
        if reduction.source is not None:
            return self.value(reduction.source, coords)
        node, b = reduction.node, self.builder
        places = zip(lower_contractions.factors(node), lower_contractions.factor_coords(coords))
        values = [b.cast(self.value(f, c), dtype_of(node)) for f, c in places]
        if lower_contractions.is_matrix_product(node) and dtype_of(node) in lower_contractions.MATRIX_TYPES:
            values = [b.rounded_always(v, dtype_of(node)) for v in values]
        return b.compute("mul", *values)

    def _with_addend(self, product: str, coords: Coords, bias: Node, beta: float, alpha: float) -> str:
        b = self.builder
        dtype = b.dtypes[product]
        added = b.cast(self.value(bias, lower_views.broadcast_coords(coords, shape_of(bias))), dtype)
        return b.compute("add", b.compute("mul", product, b.const(alpha, dtype)),
                         b.compute("mul", added, b.const(beta, dtype)))


def _is_looked_up(coords: Coords) -> bool:
    """Whether a place is one that values of the nest say."""
    return any(s.name.startswith("v") for c in coords for s in c.free_symbols)
