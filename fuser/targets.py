"""What a graph is compiled for: a language, a device to price for, and where its tensors live."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from rooffuse.codegen.contraction import contraction_of, has_stray_product
from rooffuse.codegen.crossed_axes import cross_in_tiles
from rooffuse.codegen.errors import NotLowerable
from rooffuse.codegen.exact_rounding import drop_exact_roundings
from rooffuse.codegen.fxinfo import dtype_of, value_of
from rooffuse.codegen.group_lanes import take_groups_as_lanes
from rooffuse.codegen.invariant_axes import go_along_invariant_axes
from rooffuse.codegen.ir import Kernel, Nest, Reduce, Scan, Store
from rooffuse.codegen.jam import JAMMED, jam_rows
from rooffuse.codegen.lower_contractions import FEW_ROWS, MATRIX_TYPES, factors, product_shape
from rooffuse.codegen.online import merge_deviations, merge_online
from rooffuse.codegen.repeatable import check_equalities
from rooffuse.codegen.row_factors import take_out_row_factors
from rooffuse.codegen.scatter import check_sums
from rooffuse.codegen.short_axes import write_out_interleaved_axes, write_out_short_axes
from rooffuse.codegen.short_rows import strip_of_short_rows, write_out_row_ends, write_out_short_rows
from rooffuse.codegen.sweeps import strip_reduces, strip_scans
from rooffuse.codegen.traffic import row_bytes
from rooffuse.codegen.triton_tiles import (
    PERSISTENT_ELEMENTS,
    RUNNING_PROGRAMS,
    STRIP_ELEMENTS,
    choose_tile,
    kept_tiles,
    memory_along_rows,
    row_tile,
)
from rooffuse.codegen.turned import crosses, turn_in_tiles
from rooffuse.codegen.turned_rows import turned_rows
from rooffuse.cost_model import Device, local_device
from rooffuse.passes import RowLimits
from sympy import Symbol
from torch.fx import Node

#: Bytes of a row that a C++ kernel may sweep again without going to memory: within the second-level cache.
CPU_ROW_BYTES = 1 << 19
#: Fewest times that the same rows would be gone through before they are reduced by a kernel of their own.
MOST_TIMES = 4
#: What of a GPU's second-level cache rows keep from one sweep to the next: as much as CUDA lets a program set aside for
#: what is read again (``persistingL2CacheMaxSize``, three quarters of it on A100). The rest is for what streams past.
KEPT_CACHE = 0.75


def _reduced_again(nest: Nest) -> int:
    """How often loops go through the same rows again, for each element of what those are combined with; 1 where all
    rows share what they reduce, which is done before them. Columns side by side share what is reduced for all."""
    if not nest.reduction or not nest.parallel:
        return 1
    parallel = {a.symbol: a.size for a in nest.parallel}
    varying = [{s for s in nest.scopes[r.value] if s in parallel} for r in nest.body if isinstance(r, Reduce)]
    beside = set() if memory_along_rows(nest) else {nest.parallel[-1].symbol}
    stored = [{s for s in nest.store_scope(store) if s in parallel} for store in nest.body if isinstance(store, Store)]
    everywhere = set[Symbol]().union(*varying, *stored) - beside
    return max((prod(parallel[s] for s in everywhere - own) for own in varying if own), default=1)


def _along_rows(kernel: Kernel, nest: Nest) -> bool:
    """Whether all of memory that counts runs along rows as it lies."""
    return memory_along_rows(nest) and turned_rows(kernel, nest) is None


@dataclass(frozen=True)
class Target:
    """``language`` is "cpp" or "triton"; ``device`` is priced for; tensors are on ``torch_device``.

    With ``interpreted`` Triton kernels run in Triton's interpreter on CPU tensors. ``deterministic`` asks for results
    that don't hang on the order in which threads run, as ``torch.use_deterministic_algorithms`` does.
    """

    language: str
    device: Device
    torch_device: torch.device
    interpreted: bool = False
    deterministic: bool = False

    def holds(self, kernel: Kernel, nest: Nest) -> bool:
        """Whether the rows of ``nest`` stay on chip from one sweep to the next."""
        if not nest.reduction or contraction_of(nest) is not None:
            return True
        if self.language == "cpp":
            return sum(row_bytes(kernel, nest)) <= CPU_ROW_BYTES
        # A looped row is read again from the second-level cache if the rows of all running programs fit there.
        tile = choose_tile(kernel, nest, self.programs)
        rows = tile.xblock * min(self.device.sms * (1 if tile.resident else RUNNING_PROGRAMS), tile.programs)
        own, shared = row_bytes(kernel, nest)
        return tile.persistent or rows * own + shared <= self.kept_bytes

    def finish(self, kernel: Kernel, rows: int = JAMMED) -> Kernel:
        """The kernel in the form that suits this target: online sums where a row's second sweep goes to memory, and
        ``rows`` at once on a CPU.

        Raises NotLowerable for sums down columns that can't be kept on chip, or that too few programs would compute,
        for scans of few long rows, on a CPU for reductions that go through memory along different axes and for values
        that are looked for by their maximum and can't be computed twice, and for scatters that this target would add up
        otherwise than a library call does.
        """
        check_sums(kernel, self.language != "cpp", self.deterministic)
        if self.language == "cpp":
            check_equalities(kernel)
        for nest in kernel.nests:
            if nest.strip:
                self._check_strips(kernel, nest)
            if self.language == "triton" and has_stray_product(nest):
                raise NotLowerable("a matrix product would be summed one result at a time")
            if nest.segmented and self.language == "triton" and row_tile(nest) * kept_tiles(nest) > PERSISTENT_ELEMENTS:
                raise NotLowerable("rows of which segments are reduced don't fit in registers")
            if any(isinstance(s, Scan) and not s.strip for s in nest.body):
                self._check_scans(kernel, nest)
            if (self.language == "cpp" and contraction_of(nest) is None and crosses(kernel, nest, CPU_ROW_BYTES)
                    and not turned_rows(kernel, nest) and not strip_of_short_rows(nest)):
                raise NotLowerable("it would read and write along different axes while it reduces")
            if self.language == "cpp" and nest.segmented and not memory_along_rows(nest):
                raise NotLowerable("segments of rows would be reduced across memory")
            if self.language == "cpp" and (times := _reduced_again(nest)) >= MOST_TIMES:
                raise NotLowerable(f"the same rows would be reduced {times} times")
        kernel = merge_online(kernel, lambda k, nest: memory_along_rows(nest) and self._sweeps_far(k, nest))
        if self.language == "triton":  # the parts of a row that a CPU's cache holds take two sweeps in less time
            kernel = merge_deviations(kernel, self._sweeps_far)
        kernel = take_out_row_factors(kernel)
        if self.language == "cpp":
            kernel = write_out_row_ends(write_out_short_rows(take_groups_as_lanes(kernel)), memory_along_rows)
            kernel = jam_rows(drop_exact_roundings(kernel), _along_rows, rows)
            return write_out_short_axes(turn_in_tiles(kernel))
        kernel = cross_in_tiles(write_out_interleaved_axes(kernel), self.programs)
        return go_along_invariant_axes(kernel, self.programs, self.kept_bytes)

    def _sweeps_far(self, kernel: Kernel, nest: Nest) -> bool:
        """Whether a second sweep costs more than a second exponential: out of a core's cache, out of registers."""
        if self.language == "cpp":
            return not self.holds(kernel, nest)
        return not choose_tile(kernel, nest, self.programs).persistent

    def _check_scans(self, kernel: Kernel, nest: Nest) -> None:
        tile = choose_tile(kernel, nest, self.programs)
        whole = self.row_limits.whole(tile.programs, sum(row_bytes(kernel, nest)), sweeps=1)
        if self.language != "cpp" and not tile.persistent and not whole:
            row = prod(a.size for a in nest.reduction)
            raise NotLowerable(f"{tile.programs} programs would scan rows of {row} elements, tile by tile")

    def _check_strips(self, kernel: Kernel, nest: Nest) -> None:
        strips = prod(a.size for a in nest.parallel if not a.strip)
        columns = prod(a.size for a in nest.reduction)
        if self.language == "cpp":
            kept = [s.dtype.itemsize for s in strip_reduces(nest)] + [s.dtype.itemsize for s in strip_scans(nest)]
            fits = columns * sum(kept) <= CPU_ROW_BYTES // 2
            row = {a.symbol for a in nest.reduction}
            if not all(nest.scopes[s.value] & row for s in strip_reduces(nest)):
                raise NotLowerable("what there is one of for each row would be summed on the way")
            if not (memory_along_rows(nest) or turned_rows(kernel, nest) or strip_of_short_rows(nest)):
                raise NotLowerable("loops along rows would leap in memory, where strips go along it")
        else:
            fits = choose_tile(kernel, nest, self.programs).persistent
        if not fits:
            raise NotLowerable(f"the sums of {columns} columns can't be kept on chip from row to row")
        if 2 * strips <= self.device.sms:
            raise NotLowerable(f"{strips} strips of rows are too few for {self.device.sms} processors")

    def multiplies(self, product: Node) -> bool:
        """Whether a matrix product may be part of a kernel: on matrix units, or on a CPU with few enough rows that each
        element of the right factor is used for all of them while it is in a register. That takes a factor whose memory
        runs along the sum, as a linear layer's weights do: where it runs along the columns of the result, each row
        reads it again, and eight rows of 1000 by 384 took twelve times the library's time."""
        if self.language == "triton":
            return dtype_of(product) in MATRIX_TYPES
        return product_shape(product)[0] <= FEW_ROWS and value_of(factors(product)[1]).stride(0) == 1

    @property
    def row_limits(self) -> RowLimits:
        """What keeps the device busy, and what stays on chip from one sweep to the next: elements of any program, in a
        core's cache, in registers or with those of all running programs in the second-level cache, where a long row is
        with one of each other multiprocessor. Half of these stream at about the rate of all."""
        sms, launch = self.device.sms, int(self.device.bandwidth * self.device.launch_s)
        if self.language == "cpp":
            return RowLimits(self.programs, CPU_ROW_BYTES // 4, CPU_ROW_BYTES, 1, sms, launch, at_once=sms)
        return RowLimits(self.programs, 0, self.kept_bytes, sms, -(-sms // 2), launch, STRIP_ELEMENTS)

    @property
    def kept_bytes(self) -> int:
        """Bytes that a GPU's second-level cache keeps from one sweep to the next."""
        return int(KEPT_CACHE * self.device.l2_bytes)

    @property
    def programs(self) -> int:
        """Concurrent pieces of work that keep the device busy: a few for each of its processors."""
        return self.device.sms * (8 if self.language == "cpp" else RUNNING_PROGRAMS)


def target_for(device: Device) -> Target:
    """A target to plan for; nothing of it needs to exist on this machine."""
    if device.kind == "cpu":
        return Target("cpp", device, torch.device("cpu"))
    return Target("triton", device, torch.device("cuda"))


def local_target(values: Iterable[Any]) -> Target:
    """The target for graphs on these tensors' device: CUDA if any is there, else the CPU."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    for value in values:
        if isinstance(value, torch.Tensor) and value.device.type == "cuda":
            return Target("triton", local_device(str(value.device)), value.device, deterministic=deterministic)
    return Target("cpp", local_device("cpu"), torch.device("cpu"))
