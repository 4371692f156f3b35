"""What matrix products cost inside of kernels, beside what the library takes for them."""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from rooffuse.codegen.fxinfo import dtype_of
from rooffuse.codegen.lower_contractions import product_shape
from rooffuse.codegen.triton_dot import DotTile, dot_tile
from rooffuse.cost_model import Device, occupancy
from torch.fx import Node

#: What a kernel's matrix product reaches of the peak with tiles of 128 by 128 results, and what it reaches if its
#: factors are computed on the way, through registers, instead of copied from memory ahead of time. Estimates: they
#: have not been measured.
KERNEL_RATE, COMPUTED_FACTOR_RATE = 0.7, 0.4
#: Products that a tile makes of each element it loads, from which on loading its factors isn't what bounds it.
FULL_REUSE = 128


@dataclass(frozen=True)
class MatrixWork:
    """``seconds`` of the matrix units, and the part of the device that the tiles keep busy, which bandwidth follows."""

    seconds: float
    busy: float


def in_kernel(products: dict[Node, bool], flops: dict[Node, int], device: Device) -> MatrixWork:
    """The products of one kernel; the values of ``products`` say whether a factor is computed on the way."""
    if device.kind == "cpu":
        total = sum(flops[n] for n in products)
        return MatrixWork(total / (KERNEL_RATE * device.peak(torch.float32, "vector")), 1.0)
    tiles = {product_shape(n): tile_of(n, device) for n in products}
    busy = occupancy(device, sum(t.programs for t in tiles.values()))
    seconds = sum(flops[n] / (_rate(tiles[product_shape(n)], computed) * device.peak(dtype_of(n)))
                  for n, computed in products.items())
    return MatrixWork(seconds / busy, busy)


def tile_of(product: Node, device: Device) -> DotTile:
    """The tile that a kernel would take for a product by itself."""
    rows, columns, _ = product_shape(product)
    return dot_tile(rows, columns, 1, 2 * device.sms)


def _rate(tile: DotTile, computed: bool) -> float:
    reuse = 2 * tile.rows * tile.columns / (tile.rows + tile.columns)
    return (COMPUTED_FACTOR_RATE if computed else KERNEL_RATE) * min(reuse / FULL_REUSE, 1.0)


def by_library(products: Collection[Node], flops: dict[Node, int], device: Device) -> float:
    """Seconds of products as library calls, at the peak."""
    return sum(flops[n] / device.peak(dtype_of(n)) for n in products)
