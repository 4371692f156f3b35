"""Gathers and scatters: the rows touched and the indices, not the whole table.

How many distinct rows an index touches is data; the count taken is one row an index, at most the whole table. A
functional scatter (``index_put``) reads all and writes all, as its result is a new tensor; the in-place form
(``index_put_``) moves only the region.
"""

from __future__ import annotations

import math

import torch

from .cost import Cost, Size
from .registry import Call, aten, register
from .spec import TensorSpec, log2, smaller


def _touched(table: TensorSpec, elements: Size) -> Size:
    """Bytes of ``elements`` elements picked from ``table``, at most all of it."""
    return smaller(elements, table.distinct) * table.itemsize


def _row(table: TensorSpec, dim: int) -> Size:
    """Elements at one position of ``dim``."""
    if table.ndim == 0:
        return 1
    axis = dim % table.ndim
    return math.prod(size for index, size in enumerate(table.shape) if index != axis)


@register("aten::embedding", kind="gather")
def embedding(call: Call) -> Cost:
    """Rows of ``weight (V, D)``."""
    table, indices = call["weight"], call["indices"]
    return Cost(0, _touched(table, indices.numel * table.shape[-1]) + indices.nbytes, call.written_bytes())


@register(*aten("_embedding_bag _embedding_bag_forward_only embedding_bag"), kind="gather")
def embedding_bag(call: Call) -> Cost:
    """Rows summed by bag: one addition an element read, and a product with weights."""
    table, indices = call["weight"], call["indices"]
    elements = indices.numel * table.shape[-1]
    flops = elements * (1 if call["per_sample_weights"] is None else 2)
    return Cost(flops, _touched(table, elements) + call.read_bytes(("weight",)), call.written_bytes())


@register(*aten("index _unsafe_index take index_select gather take_along_dim _unsafe_masked_index"), kind="gather")
def gather(call: Call) -> Cost:
    """One element of the source an element of the result, and all of the indices."""
    source = call["self"]
    return Cost(0, _touched(source, call.output_numel()) + call.read_bytes(("self",)), call.written_bytes())


@register(*aten("masked_select nonzero nonzero_static argwhere masked_scatter"), kind="gather")
def select_by_mask(call: Call) -> Cost:
    """Which elements are taken is data: everything is read; the result is written. A prefix sum places them."""
    return call.moves(call.inputs[0].numel)


@register(*aten("searchsorted bucketize"), kind="gather")
def search(call: Call) -> Cost:
    """Binary search: log2 of the boundaries for every value."""
    boundaries = call["sorted_sequence"] or call["boundaries"]
    return call.moves(call.output_numel() * log2(boundaries.shape[-1]))


@register("aten::isin", kind="sort")
def isin(call: Call) -> Cost:
    """Both sets are sorted together, or each element is compared with a single one."""
    tested = call["test_elements"]
    if tested is None or call["elements"] is None:
        return call.moves(call.output_numel())
    count = call["elements"].numel + tested.numel
    return call.moves(count * log2(count))


@register("aten::histogram", kind="reduction")
def histogram(call: Call) -> Cost:
    """Each element finds its bin: by binary search among given edges, or by a difference, a product and a rounding."""
    bins = call["bins"]
    steps = log2(bins.numel) if hasattr(bins, "numel") else 3
    return call.moves((steps + 1) * call["self"].numel)


def _scatter_cost(call: Call, region: Size, read_old: bool, flops: Size = 0) -> Cost:
    """``region`` elements of ``self`` are replaced, or updated when ``read_old``."""
    target = call["self"]
    others = call.read_bytes(("self",))
    if not call.in_place:
        return Cost(flops, target.nbytes + others, call.written_bytes())
    moved = smaller(region, target.distinct) * target.itemsize
    return Cost(flops, others + (moved if read_old else 0), moved)


@register(*aten("scatter scatter_add scatter_reduce put"), kind="scatter")
def scatter(call: Call) -> Cost:
    """One element an index; of ``src`` as many as there are indices. Updates read what they change."""
    index = call["index"]
    updates = call.name.rstrip("_") in ("aten::scatter_add", "aten::scatter_reduce")
    updates = updates or call["reduce"] is not None or bool(call["accumulate"])
    source = next((call[name] for name in ("src", "source") if call[name] is not None), None)
    base = _scatter_cost(call, index.numel, updates, index.numel if updates else 0)
    if source is None or source is call["self"]:
        return base
    used = smaller(index.numel, source.distinct) * source.itemsize
    return Cost(base.flops, base.bytes_read - source.nbytes + used, base.bytes_written)


def _indexed_region(target: TensorSpec, indices: tuple[TensorSpec | None, ...]) -> Size:
    """Elements that ``index_put`` addresses: the broadcast index times the dimensions left whole.

    A Boolean mask addresses at most all that it covers.
    """
    free = list(target.shape)
    shapes: list[tuple[Size, ...]] = []
    masked: Size = 1
    axis = 0
    for index in indices:
        if index is None:
            axis += 1
            continue
        width = index.ndim if index.dtype in (torch.bool, torch.uint8) else 1
        for position in range(axis, min(axis + width, len(free))):
            free[position] = 1
        if width != 1 or index.dtype in (torch.bool, torch.uint8):
            masked = masked * index.numel
        else:
            shapes.append(index.shape)
        axis += width
    broadcast: Size = 1
    for position in range(1, max((len(shape) for shape in shapes), default=0) + 1):
        sizes = [shape[-position] for shape in shapes if len(shape) >= position]
        broadcast = broadcast * next((size for size in sizes if size != 1), 1)
    return broadcast * masked * math.prod(free)


@register(*aten("index_put _unsafe_index_put _index_put_impl _unsafe_masked_index_put_accumulate"), kind="scatter")
def index_put(call: Call) -> Cost:
    """The region that the indices address; accumulation reads it too."""
    indices = call["indices"]
    region = _indexed_region(call["self"], indices) if indices is not None else call["self"].numel
    adds = bool(call["accumulate"]) or call.name.endswith("accumulate")
    return _scatter_cost(call, region, adds, region if adds else 0)


@register(*aten("index_copy index_fill index_add index_reduce"), kind="scatter")
def index_rows(call: Call) -> Cost:
    """Whole slices along ``dim``, one an index; adding reads what it changes."""
    adds = call.name.rstrip("_") in ("aten::index_add", "aten::index_reduce")
    region = call["index"].numel * _row(call["self"], call["dim"])
    return _scatter_cost(call, region, adds, region if adds else 0)


@register(*aten("slice_scatter select_scatter diagonal_scatter as_strided_scatter"), kind="scatter")
def scatter_view(call: Call) -> Cost:
    """A copy with one region from elsewhere: reads all once (the region from ``src``), writes all."""
    source, result = call["src"], call.outputs[0]
    kept = (call["self"].numel - source.numel) * call["self"].itemsize
    return Cost(0, kept + source.nbytes, result.nbytes)


@register(
    *aten(
        """embedding_dense_backward embedding_backward _embedding_bag_dense_backward _embedding_bag_backward
        gather_backward index_select_backward unfold_backward"""
    ),
    kind="scatter",
)
def scatter_gradient(call: Call) -> Cost:
    """Adds gradients into a table of zeros, which is written whole."""
    return call.moves(call.inputs[0].numel, ("self",))


@register("aten::_embedding_bag_per_sample_weights_backward", kind="gather")
def per_sample_weights_backward(call: Call) -> Cost:
    """A dot product of a table row with the bag's gradient for every index."""
    table, indices = call["weight"], call["indices"]
    elements = indices.numel * table.shape[-1]
    return Cost(2 * elements, _touched(table, elements) + call.read_bytes(("weight",)), call.written_bytes())


@register(
    *aten(
        """select_backward slice_backward diagonal_backward trace_backward reflection_pad1d_backward
        reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward replication_pad2d_backward
        replication_pad3d_backward"""
    ),
    kind="scatter",
)
def place_gradient(call: Call) -> Cost:
    """Gradients of views and padding: reads the gradient, writes a tensor of the input's shape."""
    return call.moves(call["grad_output"].numel if call["grad_output"] is not None else 0, ("self",))


@register(*aten("repeat_interleave"), kind="gather")
def repeat_interleave(call: Call) -> Cost:
    """Repeats read the source once."""
    return call.moves(0)


@register(
    *aten("sort argsort msort topk unique_consecutive _unique _unique2 unique_dim quantile nanquantile"),
    kind="sort",
)
def sort(call: Call) -> Cost:
    """n·log2 n comparisons along ``dim``; reads and writes once, though a radix sort makes several passes."""
    source = call["self"]
    dim = call["dim"]
    whole = source.ndim == 0 or not isinstance(dim, int)
    length = source.numel if whole else source.shape[dim]
    span = smaller(length, 2 * call["k"]) if call.name == "aten::topk" else length
    return call.moves(source.numel * log2(span))
