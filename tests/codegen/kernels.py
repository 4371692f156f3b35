"""Runs one kernel three ways - reference interpreter, C++, Triton's interpreter - on guarded and poisoned memory."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rooffuse.codegen.build_cpp import compile_library, load_library
from rooffuse.codegen.build_triton import load_launcher
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_schedule import Schedule
from rooffuse.codegen.cpp_unit import print_function, print_unit
from rooffuse.codegen.interpret import interpret
from rooffuse.codegen.ir import Buffer
from rooffuse.codegen.lower_group import LoweredGroup, lower_group
from rooffuse.codegen.triton_kernel import print_kernel
from rooffuse.codegen.verify import verify
from rooffuse.passes import PIPELINE, aot_decompositions, interpolations_pass, run_passes
from rooffuse.targets import local_target
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from .case_table import Case

#: Bytes around each output that no kernel may touch, and what they and the output are filled with beforehand. As a
#: float it is a NaN, as an integer neither 0 nor 1: an element that the kernel forgets shows.
GUARD, POISON = 256, 0xFD

#: What a correct kernel may differ from eager execution by: relative and absolute, by type. The sum of a long row in
#: another order moves the last digits of float32; bfloat16 and float16 are rounded once where eager rounds more often.
TOLERANCE = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-4, 1e-4),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (3e-3, 3e-3),
}


@dataclass(frozen=True)
class Lowered:
    """A kernel with what is needed to call it: the values of its outputs are ``fakes``."""

    group: LoweredGroup
    fakes: tuple[Tensor, ...]


def lower(fn: Callable[..., Any], *inputs: Tensor, eager_rounding: bool = False) -> Lowered:
    """``fn`` as a single kernel; its graph goes through the passes first. Raises NotLowerable if it needs several."""

    def flat(*args: Tensor) -> tuple[Tensor, ...]:
        result = fn(*args)
        return tuple(result) if isinstance(result, tuple | list) else (result,)

    functional = torch.func.functionalize(flat, remove="mutations")
    graph = make_fx(functional, tracing_mode="fake", decomposition_table=aot_decompositions())(*inputs)
    graph = run_passes(graph, [interpolations_pass(looks_up=True), *PIPELINE])
    group = lower_group(graph.graph, eager_rounding=eager_rounding)
    verify(group.kernel)
    return Lowered(group, tuple(n.meta["val"] for n in graph.graph.output_node().args[0]))


@functools.cache
def lower_case(case: Case) -> Lowered:
    """The kernel of ``case``, made once for all files of tests."""
    return lower(case.fn, *case.inputs())


def flat_view(tensor: Tensor, size: int) -> Tensor:
    """The ``size`` elements of storage from the first one of ``tensor``."""
    return torch.as_strided(tensor, (size,), (1,), tensor.storage_offset())


class Memory:
    """The arguments of one run: inputs as they are, outputs in poisoned memory between guards. ``shared`` are outputs
    in whose memory an input's elements lie."""

    def __init__(self, lowered: Lowered, inputs: Sequence[Tensor], shared: Mapping[str, str] | None = None) -> None:
        self.lowered, self.inputs = lowered, inputs
        self.homes = {source: out for out, source in (shared or {}).items()}
        self.blocks: dict[str, Tensor] = {}
        for buffer in lowered.group.kernel.buffers:
            if buffer.name in lowered.group.outputs:
                bytes_ = buffer.size * buffer.dtype.itemsize
                self.blocks[buffer.name] = torch.full((bytes_ + 2 * GUARD,), POISON, dtype=torch.uint8)
        for source in self.homes:
            buffer = lowered.group.kernel.buffer(source)
            self.flat(buffer).copy_(flat_view(inputs[lowered.group.inputs[source]], buffer.size))

    def flat(self, buffer: Buffer) -> Tensor:
        name = self.homes.get(buffer.name, buffer.name)
        if name in self.blocks:
            return self.blocks[name][GUARD : GUARD + buffer.size * buffer.dtype.itemsize].view(buffer.dtype)
        return flat_view(self.inputs[self.lowered.group.inputs[buffer.name]], buffer.size)

    def all_flat(self) -> list[Tensor]:
        return [self.flat(b) for b in self.lowered.group.kernel.buffers]

    def results(self) -> list[Tensor]:
        """The outputs by position; asserts that the guards are as they were."""
        for name, block in self.blocks.items():
            assert bool((block[:GUARD] == POISON).all() and (block[-GUARD:] == POISON).all()), f"{name}: wrote outside"
        found: list[Tensor] = []
        by_position = {k: name for name, k in self.lowered.group.outputs.items()}
        for k, fake in enumerate(self.lowered.fakes):
            flat = self.flat(self.lowered.group.kernel.buffer(by_position[k]))
            found.append(torch.as_strided(flat, tuple(fake.shape), tuple(fake.stride()), flat.storage_offset()))
        return found


def run_interpreter(lowered: Lowered, inputs: Sequence[Tensor]) -> list[Tensor]:
    memory = Memory(lowered, inputs)
    interpret(lowered.group.kernel, {b.name: memory.flat(b) for b in lowered.group.kernel.buffers})
    return memory.results()


def run_triton(lowered: Lowered, inputs: Sequence[Tensor], cache: DiskCache, programs: int = 4,
               shared: Mapping[str, str] | None = None) -> list[Tensor]:
    memory = Memory(lowered, inputs, shared)
    source = print_kernel(lowered.group.kernel, programs_wanted=programs)
    load_launcher(source, cache, torch.device("cpu"), interpreted=True)(*memory.all_flat())
    return memory.results()


class CppUnit:
    """Many kernels in one translation unit, so that the compiler starts once."""

    def __init__(self, kernels: Mapping[str, Lowered], cache: DiskCache,
                 schedules: Mapping[str, Schedule] | None = None) -> None:
        self.slots: dict[str, tuple[int, ...]] = {}
        self.numbers = {name: k for k, name in enumerate(kernels)}
        count = 0
        for name, lowered in kernels.items():
            size = len(lowered.group.kernel.buffers)
            self.slots[name] = tuple(range(count, count + size))
            count += size
        self.source = print_unit([k.group.kernel for k in kernels.values()], list(enumerate(self.slots.values())),
                                 {self.numbers[name]: s for name, s in (schedules or {}).items()})
        self.library = load_library(compile_library(self.source, cache))
        self.table = (ctypes.c_void_p * max(count, 1))()

    def run(self, name: str, lowered: Lowered, inputs: Sequence[Tensor], shared: Mapping[str, str] | None = None
            ) -> list[Tensor]:
        """Raises IndexError where the kernel reports an index out of range."""
        memory = Memory(lowered, inputs, shared)
        tensors = memory.all_flat()
        for slot, tensor in zip(self.slots[name], tensors):
            self.table[slot] = tensor.data_ptr()
        number = self.numbers[name]
        if self.library.rooffuse_run(number, number + 1, ctypes.addressof(self.table)):
            raise IndexError(name)
        return memory.results()


def assert_same(ours: Any, reference: Any, scale: float = 1) -> None:
    """Equal types, shapes and values within ``scale`` times TOLERANCE; NaN equals NaN."""
    ours = [ours] if isinstance(ours, Tensor) else list(ours)
    reference = [reference] if isinstance(reference, Tensor) else list(reference)
    assert len(ours) == len(reference)
    for mine, theirs in zip(ours, reference):
        rtol, atol = TOLERANCE.get(theirs.dtype, (0.0, 0.0))
        torch.testing.assert_close(mine, theirs, rtol=scale * rtol, atol=scale * atol, equal_nan=True)


def finished(fn: Callable[..., Any], *args: Tensor) -> Lowered:
    """As a graph's kernels are finished for this machine."""
    lowered = lower(fn, *args)
    kernel = local_target(args).finish(lowered.group.kernel)
    return replace(lowered, group=replace(lowered.group, kernel=kernel))


def printed(fn: Callable[..., Any], *args: Tensor) -> str:
    """The C++ function of the finished kernel."""
    return print_function(finished(fn, *args).group.kernel, "kernel")


def checked(fn: Callable[..., Any], *args: Tensor, cache: DiskCache) -> None:
    """The finished kernel of ``fn``, compiled, does what eager does in double precision."""
    lowered = finished(fn, *args)
    expected = fn(*[a.double() if a.is_floating_point() else a for a in args])
    expected = [e.to(torch.float32) if e.is_floating_point() else e
                for e in (expected if isinstance(expected, tuple) else (expected,))]
    found = CppUnit({"kernel": lowered}, cache).run("kernel", lowered, args)
    assert_same(found, expected)
