"""Runs a program: the launch list is printed as one Python function with every argument precomputed.

Pointers of planned buffers never change, so they are written into a pointer table once for each arena; a run fills in
the pointers of its inputs and fresh outputs and goes down the list.
"""
from __future__ import annotations

import ctypes
import linecache
import operator
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .program import OUT_CALLS, CallStep, KernelStep, Program, ViewStep, nbytes
from .result_memory import LEAST_BYTES, RESULTS
from .strided_calls import moved_arguments, places_moved

Launch = Callable[..., Any]


@dataclass(frozen=True)
class Built:
    """Compiled kernels of a program. ``segment(first, last, address)`` runs consecutive C++ kernel steps on a pointer
    table; ``launches`` has a callable for each Triton kernel step. A step in neither runs its FX submodule."""

    segment: Callable[[int, int, int], int] | None
    segment_numbers: Mapping[str, int]
    launches: Mapping[str, Launch]
    slots: Mapping[Node, int]


class Arena:
    """One copy of the planned memory with its pointer table and the tensors that lie in it."""

    def __init__(self, program: Program, slots: Mapping[Node, int], device: torch.device) -> None:
        size = max(program.plan.arena_bytes, 1)
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.table = (ctypes.c_void_p * max(len(slots), 1))()
        self.address = ctypes.addressof(self.table)
        tensors: dict[Node, Tensor] = {}
        for node, offset in program.planned.items():
            value = node.meta["val"]
            flat = self.memory[offset:offset + nbytes(node)].view(value.dtype)
            tensors[node] = torch.as_strided(flat, value.shape, value.stride(), flat.storage_offset())
        module = program.fused.module
        for node in module.graph.nodes:
            if node.op == "get_attr" and node in program.static:
                tensors[node] = operator.attrgetter(str(node.target))(module)
            elif node in program.static and node not in tensors:
                tensors[node] = _call(node, tensors)
        for node, slot in slots.items():
            if node in tensors:
                self.table[slot] = tensors[node].data_ptr()
        self.tensors = tensors
        self.values: tuple[Tensor, ...] = ()


def _call(node: Node, values: Mapping[Node, Any]) -> Any:
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    return node.target(*moved_arguments(node, args), **kwargs)


class ArenaPool:
    """Arenas that no run is using. A run takes one and gives it back: concurrent and nested runs never share.

    On a GPU a run ends for the host before it ends for the device: its arena goes back to those of its stream, where
    the next run's work waits for it.
    """

    def __init__(self, make: Callable[[], Arena], device: torch.device) -> None:
        self._make = make
        self._on_stream = device.type == "cuda"
        self._free: dict[int, deque[Arena]] = {}

    def _stream(self) -> int:
        return torch.cuda.current_stream().cuda_stream if self._on_stream else 0

    def take(self) -> Arena:
        try:
            return self._free[self._stream()].pop()
        except (KeyError, IndexError):
            return self._make()

    def give(self, arena: Arena) -> None:
        self._free.setdefault(self._stream(), deque()).append(arena)


def conform(value: Any, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, what: str) -> Tensor:
    """``value`` with the strides and type that were traced: itself if they agree where it matters, else a copy.

    Some library calls really give other types than their traced ones: ``_batch_norm_with_update`` on bfloat16 does.
    Raises RuntimeError for other sizes, with which what comes after it would read elsewhere.
    """
    if value.shape != size:
        raise RuntimeError(f"{what} gave sizes {tuple(value.shape)} where torch {torch.__version__} had traced {size}: "
                           "its fake kernel is wrong; keep the call out of the graph with torch.compiler.disable")
    if value.dtype == dtype and all(n <= 1 or a == b for n, a, b in zip(size, value.stride(), stride)):
        return value
    return torch.empty_strided(size, stride, dtype=dtype, device=value.device).copy_(value)


def raise_index_error() -> None:
    raise IndexError("index out of range in a gather, embedding or index operation of a compiled kernel")


class _Assembler:
    """Prints the run function of one program and collects the objects that it refers to."""

    def __init__(self, program: Program, built: Built, device: torch.device, check_inputs: frozenset[int],
                 keep_memory: bool) -> None:
        self.program, self.built, self.device = program, built, device
        self.check_inputs, self.keep_memory = check_inputs, keep_memory and device.type == "cpu"
        self.namespace: dict[str, Any] = {"rf_conform": conform, "rf_index_error": raise_index_error,
                                          "rf_empty": torch.empty_strided, "rf_kept": RESULTS.take, "rf_device": device}
        self.lines: list[str] = []
        self.pointers: set[Node] = set()
        self.read_by_kernels = {n for s in program.steps if isinstance(s, KernelStep) for n in s.arguments}
        self.used_static: dict[Node, None] = {}
        self._constants: dict[Any, str] = {}

    def constant(self, value: Any) -> str:
        key = (type(value), repr(value))
        if key not in self._constants:
            name = f"rf_c{len(self._constants)}"
            self._constants[key] = name
            self.namespace[name] = value
        return self._constants[key]

    def spell(self, value: Any) -> str:
        if isinstance(value, Node):
            if value in self.program.static:
                self.used_static[value] = None
            return value.name
        if isinstance(value, tuple):
            return "(" + "".join(self.spell(v) + ", " for v in value) + ")"
        if isinstance(value, list):
            return "[" + ", ".join(self.spell(v) for v in value) + "]"
        if value is None or isinstance(value, bool | int | str):
            return repr(value)
        return self.constant(value)

    def call(self, node: Node, function: Any, extra: str = "") -> str:
        name = f"rf_op_{node.name}"
        self.namespace[name] = function
        args = [self.spell(a) for a in node.args]
        if (moved := places_moved(node)) is not None:
            args[-1] = f"{args[0]}.storage_offset() + {moved}"
        parts = args + [f"{k}={self.spell(v)}" for k, v in node.kwargs.items()]
        return f"{name}({', '.join(parts)}{extra})"

    def add(self, text: str) -> None:
        self.lines.append("    " + text)

    def _fresh(self, node: Node) -> None:
        value, size = node.meta["val"], nbytes(node)
        layout = f"{tuple(value.shape)}, {tuple(value.stride())}"
        dtype = self.constant(value.dtype)
        if self.keep_memory and size >= LEAST_BYTES:
            self.add(f"{node.name} = rf_kept({layout}, {dtype}, {size})")
        else:
            self.add(f"{node.name} = rf_empty({layout}, dtype={dtype}, device=rf_device)")

    def _pointer(self, node: Node) -> None:
        self.pointers.add(node)
        self.add(f"rf_table[{self.built.slots[node]}] = {node.name}.data_ptr()")

    def body(self) -> None:
        steps, drop = self.program.steps, self._drops()
        k = 0
        while k < len(steps):
            step = steps[k]
            end = k + 1
            if isinstance(step, KernelStep) and step.name in self.built.segment_numbers:
                while end < len(steps) and self._joins(steps[end]):
                    end += 1
                self._segment([s for s in steps[k:end] if isinstance(s, KernelStep)],
                              [s for s in steps[k:end] if isinstance(s, ViewStep)])
            elif isinstance(step, KernelStep):
                self._launch(step)
            elif isinstance(step, ViewStep):
                if step.node in self.program.fresh:
                    self._fresh(step.node)
                elif step.node not in self.program.static:
                    self.add(f"{step.node.name} = {self.call(step.node, step.node.target)}")
                    if step.node.target is operator.getitem:
                        self._check_strides(step.node)
            else:
                self._library(step)
            names = [n.name for j in range(k, end) for n in drop.get(j, ())]
            if names:
                self.add("del " + ", ".join(names))
            k = end

    def _joins(self, step: Any) -> bool:
        """Whether a step can be in the segment of kernels before it: a kernel, or a view that costs nothing."""
        if isinstance(step, ViewStep):
            return step.node in self.program.static
        return isinstance(step, KernelStep) and step.name in self.built.segment_numbers

    def _segment(self, steps: Sequence[KernelStep], views: Sequence[ViewStep]) -> None:
        for step in steps:
            for result in step.results:
                if result in self.program.fresh:
                    self._fresh(result)
            for node in step.arguments:
                if node not in self.pointers and node not in self.program.static:
                    self._pointer(node)
        numbers = [self.built.segment_numbers[s.name] for s in steps]
        self.add(f"if rf_segment({numbers[0]}, {numbers[-1] + 1}, rf_address):")
        self.add("    rf_index_error()")

    def _launch(self, step: KernelStep) -> None:
        if step.name not in self.built.launches:
            self._fallback(step)
            return
        for result in step.results:
            if result in self.program.fresh:
                self._fresh(result)
        name = f"rf_launch_{step.name}"
        self.namespace[name] = self.built.launches[step.name]
        self.add(f"{name}({', '.join(self.spell(n) for n in step.arguments)})")

    def _fallback(self, step: KernelStep) -> None:
        """Run the group's FX module; planned buffers get copies of its results."""
        name = f"rf_module_{step.name}"
        self.namespace[name] = getattr(self.program.fused.module, step.name)
        results = [r.name if r in self.program.fresh else f"rf_{r.name}" for r in step.results]
        inputs = ", ".join(self.spell(n) for n in step.node.args)
        self.add(f"{''.join(r + ', ' for r in results)}{'= ' if results else ''}{name}({inputs})")
        for result, made in zip(step.results, results):
            if result in self.program.fresh:
                self._check_strides(result)
            else:
                self.add(f"{self.spell(result)}.copy_({made})")

    def _library(self, step: CallStep) -> None:
        node = step.node
        if step.out:
            if node in self.program.fresh:
                self._fresh(node)
            self.add(self.call(node, OUT_CALLS[node.target], f", out={self.spell(node)}"))
            return
        self.add(f"{node.name} = {self.call(node, node.target)}")
        if isinstance(node.meta.get("val"), Tensor):
            self._check_strides(node)

    def _check_strides(self, node: Node) -> None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.numel() == 0:
            return  # an empty one may also be an effect's token, which is None when the program runs
        size, stride = tuple(value.shape), tuple(value.stride())
        if all(isinstance(s, int) for s in (*size, *stride)):
            name, dtype = node.name, self.constant(value.dtype)
            # A kernel takes the sizes for granted; whoever else gets the tensor sees what it is.
            sized = f" or {name}.shape != {size}" if node in self.read_by_kernels else ""
            call: Any = node.args[0] if node.target is operator.getitem else node
            self.add(f"if {name}.stride() != {stride} or {name}.dtype is not {dtype}{sized}: "
                     f"{name} = rf_conform({name}, {size}, {stride}, {dtype}, {f'{name} ({call.target})'!r})")

    def _drops(self) -> dict[int, list[Node]]:
        """Names to delete after each step, so that memory which the program doesn't plan is freed as early."""
        output = set(self.program.fused.module.graph.output_node().all_input_nodes)
        bound = {n for n in self.program.fused.module.graph.nodes if n.op == "placeholder"}
        bound |= {s.node for s in self.program.steps if not isinstance(s, KernelStep)
                  and not (isinstance(s, CallStep) and s.out)} | set(self.program.fresh)
        result: dict[int, list[Node]] = {}
        for node, k in self.program.last_use.items():
            if node in bound and node not in output and node not in self.program.static:
                result.setdefault(k, []).append(node)
        return result

    def source(self) -> str:
        placeholders = [n for n in self.program.fused.module.graph.nodes if n.op == "placeholder"]
        read = {n for s in self.program.steps if isinstance(s, KernelStep) and s.name in self.built.segment_numbers
                for n in s.arguments}
        head = ["def call(rf_args):"]
        if placeholders:
            head += ["    " + "".join(n.name + ", " for n in placeholders) + "= rf_args"]
        head += ["    rf_args.clear()", "    rf_arena = rf_pool.take()", "    rf_table = rf_arena.table",
                 "    rf_address = rf_arena.address"]
        for k, node in enumerate(placeholders):
            if k in self.check_inputs:
                self._check_strides(node)
        for node in placeholders:
            if node in read:
                self._pointer(node)
        self.body()
        output = self.program.fused.module.graph.output_node().args[0]
        self.add(f"rf_result = {self.spell(tuple(output) if isinstance(output, list | tuple) else (output,))}")
        self.add("rf_pool.give(rf_arena)")
        self.add("return rf_result")
        if self.used_static:
            head.append("    " + "".join(n.name + ", " for n in self.used_static) + "= rf_arena.values")
        return "\n".join([*head, *self.lines]) + "\n"


@dataclass(frozen=True)
class Executable:
    """A program that runs: call it with one list of inputs, which it empties."""

    function: Callable[[list[Any]], tuple[Any, ...]]
    source: str

    def __call__(self, args: list[Any]) -> tuple[Any, ...]:
        return self.function(args)


def on_device(function: Callable[[list[Any]], tuple[Any, ...]], device: torch.device
              ) -> Callable[[list[Any]], tuple[Any, ...]]:
    """``function`` with ``device`` as the current one, as every call of the framework has its tensors' device: kernels
    and streams are the current device's. Itself where there is only one."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        return function

    def call(args: list[Any]) -> tuple[Any, ...]:
        with torch.cuda.device(device):
            return function(args)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def assemble(program: Program, built: Built, device: torch.device,
             check_inputs: frozenset[int] = frozenset(), keep_memory: bool = True) -> Executable:
    """Print and load the run function. ``check_inputs`` are positions whose strides may differ from the traced ones;
    with ``keep_memory`` large results on the CPU lie in memory that earlier ones have left."""
    assembler = _Assembler(program, built, device, check_inputs, keep_memory)
    source = assembler.source()
    used = tuple(assembler.used_static)

    def make() -> Arena:
        arena = Arena(program, built.slots, device)
        arena.values = tuple(arena.tensors[n] for n in used)
        return arena

    namespace = assembler.namespace
    namespace["rf_pool"] = ArenaPool(make, device)
    namespace["rf_segment"] = built.segment
    name = f"<rooffuse program {id(namespace):x}>"
    exec(compile(source, name, "exec"), namespace)
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    function = namespace["call"]
    function._boxed_call = True
    return Executable(function, source)
