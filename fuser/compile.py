"""The pipeline: passes, grouping, memory plan, kernels, run function."""
from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rooffuse.codegen.build_cpp import CompilationFailed, CompilerMissing, compile_library, load_library
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_schedule import DEFAULT_SCHEDULE
from rooffuse.codegen.cpp_unit import print_function, print_unit
from rooffuse.codegen.ir import Kernel
from rooffuse.codegen.lower import refusal
from rooffuse.codegen.triton_kernel import TritonSource
from rooffuse.passes import (
    CSE_PASS,
    EQUAL_EXTENTS_PASS,
    FILLED_MEMORY_PASS,
    PIPELINE,
    RANDOM_PASS,
    Layout,
    channels_last_pass,
    grouped_products_pass,
    interpolations_pass,
    large_windows_pass,
    padded_results_pass,
    quick_types_pass,
    run_passes,
    scatters_pass,
    split_reductions_pass,
    split_scans_pass,
    split_softmax_pass,
    split_variance_pass,
    vector_products_pass,
)
from rooffuse.passes.graph import mutated_roots
from torch.fx import GraphModule, Node

from .autotune import DEFAULT_SEARCH, Outcome, Search, autotune, chosen_candidates
from .candidates import Candidate, default_candidate, triton_module
from .collecting import no_collections
from .cuda_graphs import CapturedFunction, CudaRecorder, Decision, decide
from .dump import Dump
from .grouping import Grouping, Lower, group_graph, memoised_lowering
from .joining import with_joined_results
from .options import Options
from .partition import FusedModule, fused_module
from .pricing import GroupPricer
from .program import KernelStep, Program, make_program
from .runtime import Built, Executable, assemble, on_device
from .step_prices import program_seconds
from .streamed import stream_results
from .targets import Target
from .units import Units

log = logging.getLogger(__name__)


class FallbackError(RuntimeError):
    """With ``strict``: a part of the graph would have run as FX nodes; the message says which and why."""


@dataclass(frozen=True)
class Plan:
    """A graph up to, not including, compiled kernels."""

    graph: GraphModule
    grouping: Grouping
    fused: FusedModule
    program: Program
    target: Target


@dataclass(frozen=True)
class InputFacts:
    """What is known of a graph's inputs: positions that keep their address from call to call (``static``), positions
    whose strides may differ from the traced ones, whether the graph is a backward, and which strides passes may or must
    take to be others than the traced ones."""

    static: frozenset[int] = frozenset()
    unchecked_strides: frozenset[int] = frozenset()
    backward: bool = False
    layout: Layout = field(default_factory=Layout)


@dataclass(frozen=True)
class Fallback:
    """Nodes that run as FX nodes, and why."""

    nodes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Compiled:
    """What runs for one graph: call it with a list of inputs, which it empties."""

    plan: Plan
    executable: Executable
    function: Callable[[list[Any]], tuple[Any, ...]]
    fallbacks: tuple[Fallback, ...]
    cuda_graph: Decision
    tuned: tuple[Outcome, ...] = ()

    def __call__(self, args: list[Any]) -> tuple[Any, ...]:
        return self.function(args)


@no_collections()
def plan_graph(gm: GraphModule, target: Target, options: Options, dump: Dump | None = None,
               layout: Layout | None = None) -> Plan:
    """Everything that needs neither a compiler nor the device. ``layout`` says which strides aren't the traced ones."""
    clock = time.perf_counter()
    in_kernels = options.random == "kernel" or (options.random == "auto" and target.language == "triton")
    limits = target.row_limits

    passes = (*([RANDOM_PASS] if in_kernels else []),
              channels_last_pass(target.device, lambda n: refusal(n) is None, layout),
              interpolations_pass(target.language == "triton"), large_windows_pass(target.language == "cpp"),
              *PIPELINE,
              grouped_products_pass(target.language == "cpp"),
              vector_products_pass(target.language == "cpp"), quick_types_pass(target.device),
              EQUAL_EXTENTS_PASS, split_variance_pass(limits), split_softmax_pass(limits), split_scans_pass(limits),
              split_reductions_pass(limits),
              padded_results_pass(lambda n: refusal(n) is None),
              CSE_PASS,  # the parts of a sum and of a scan of the same are equal
              FILLED_MEMORY_PASS, scatters_pass(lambda n: refusal(n) is None))
    graph = run_passes(gm, passes, lint=options.verify or dump is not None,
                       observe=dump.graph if dump is not None else None)
    passes_s, clock = time.perf_counter() - clock, time.perf_counter()
    lower = memoised_lowering(options.eager_casts, target.finish)
    plan = _grouped(graph, target, options, lower)
    joined = with_joined_results(graph, plan.grouping, options.verify or dump is not None)
    if joined is not None:
        plan = min(plan, _grouped(joined, target, options, lower), key=lambda p: program_seconds(p.program, target))
        if dump is not None and plan.graph is joined:
            dump.graph("joined_results", joined)
    log.debug("%d nodes: passes %.0f ms, grouping and memory plan %.0f ms", len(graph.graph.nodes), 1e3 * passes_s,
              1e3 * (time.perf_counter() - clock))
    if dump is not None:
        dump.plan(plan)
    return plan


def _grouped(graph: GraphModule, target: Target, options: Options, lower: Lower) -> Plan:
    """The plan of a graph that all passes have seen."""
    pricer = GroupPricer(Units(graph.graph, target.multiplies), target.device, target.holds)
    grouping = group_graph(graph, pricer, lower)
    fused = fused_module(graph, grouping)
    return Plan(graph, grouping, fused, stream_results(make_program(fused, options.verify), target.device), target)


def kernel_steps(program: Program) -> list[KernelStep]:
    return [s for s in program.steps if isinstance(s, KernelStep)]


def kernel_of(step: KernelStep) -> Kernel:
    assert step.group.lowered is not None
    return step.group.lowered.kernel


#: Candidates of steps by name; a step that isn't there has its default.
Chosen = Mapping[str, Candidate]


def _candidate(step: KernelStep, chosen: Chosen | None) -> Candidate:
    return (chosen or {}).get(step.name) or default_candidate(step)


def distinct_kernels(steps: Sequence[KernelStep], candidates: Chosen | None = None
                     ) -> tuple[list[Candidate], list[int]]:
    """Kernels without repetitions, and for each step the number of its kernel. Equal groups whose results go past the
    caches alike are equal kernels."""
    numbers: dict[Any, int] = {}
    kernels: list[Candidate] = []
    chosen: list[int] = []
    for step in steps:
        assert step.group.extracted is not None
        key = step.group.extracted.key, step.streamed
        if key not in numbers:
            numbers[key] = len(kernels)
            kernels.append(_candidate(step, candidates))
        chosen.append(numbers[key])
    return kernels, chosen


def pointer_slots(steps: Sequence[KernelStep]) -> dict[Node, int]:
    """A place in the pointer table for every buffer that a kernel gets."""
    slots: dict[Node, int] = {}
    for step in steps:
        for node in step.arguments:
            slots.setdefault(node, len(slots))
    return slots


def cpp_source(steps: Sequence[KernelStep], chosen: Chosen | None = None) -> str:
    """The translation unit of a program's kernels, each once."""
    kernels, numbers = distinct_kernels(steps, chosen)
    slots = pointer_slots(steps)
    return print_unit([c.kernel for c in kernels],
                      [(n, tuple(slots[a] for a in s.arguments)) for n, s in zip(numbers, steps)],
                      {k: c.schedule for k, c in enumerate(kernels) if c.schedule != DEFAULT_SCHEDULE})


def triton_source(step: KernelStep, target: Target, chosen: Chosen | None = None) -> TritonSource:
    return triton_module(_candidate(step, chosen), target)


def step_source(step: KernelStep, target: Target, chosen: Chosen | None = None) -> str:
    """The code of one kernel, for people."""
    if target.language == "cpp":
        candidate = _candidate(step, chosen)
        return print_function(candidate.kernel, step.name, candidate.schedule)
    return triton_source(step, target, chosen).text


def tune(plan: Plan, options: Options, search: Search = DEFAULT_SEARCH) -> tuple[Outcome, ...]:
    """What the search among candidates chose for the kernels of a plan, with the option ``autotune``; else nothing."""
    if not options.autotune:
        return ()
    cache = DiskCache(options.cache_folder)
    return autotune(kernel_steps(plan.program), plan.target, cache, options.eager_casts, search)


def _build_cpp(steps: list[KernelStep], cache: DiskCache, chosen: Chosen | None) -> tuple[Built, list[Fallback]]:
    failed: list[Fallback] = []
    try:
        library = load_library(compile_library(cpp_source(steps, chosen), cache))
    except CompilationFailed:
        sound, failed = _separate(steps, cache, chosen)
        if not sound:
            return Built(None, {}, {}, pointer_slots(steps)), failed
        steps = sound
        library = load_library(compile_library(cpp_source(steps, chosen), cache))
    numbers = {s.name: k for k, s in enumerate(steps)}
    return Built(library.rooffuse_run, numbers, {}, pointer_slots(steps)), failed


def _separate(steps: list[KernelStep], cache: DiskCache, chosen: Chosen | None
              ) -> tuple[list[KernelStep], list[Fallback]]:
    """Compile kernels one by one to find those that the compiler refuses."""
    sound: list[KernelStep] = []
    failed: list[Fallback] = []
    verdicts: dict[int, str | None] = {}
    for number, step in zip(distinct_kernels(steps)[1], steps):
        if number not in verdicts:
            try:
                compile_library(cpp_source([step], chosen), cache)
                verdicts[number] = None
            except CompilationFailed as error:
                verdicts[number] = ' '.join(str(error).split('\n')[:3])
        reason = verdicts[number]
        if reason is None:
            sound.append(step)
        else:
            failed.append(Fallback(tuple(n.name for n in step.group.nodes), reason))
    return sound, failed


def _build_triton(steps: list[KernelStep], target: Target, cache: DiskCache, chosen: Chosen | None
                  ) -> tuple[Built, list[Fallback]]:
    from rooffuse.codegen.build_triton import load_launchers

    launches: dict[str, Callable[..., Any]] = {}
    failed: list[Fallback] = []
    numbers = distinct_kernels(steps)[1]
    loaded: dict[int, Callable[..., Any] | Exception] = {}
    sources: dict[int, TritonSource] = {}
    for number, step in zip(numbers, steps):
        if number not in loaded and number not in sources:
            try:
                sources[number] = triton_source(step, target, chosen)
            except Exception as error:  # what can't be spelt runs as FX nodes like what Triton refuses
                loaded[number] = error
    loaded |= zip(sources, load_launchers([*sources.values()], cache, target.torch_device, target.interpreted))
    for number, step in zip(numbers, steps):
        launch = loaded[number]
        if isinstance(launch, Exception):
            log.warning("Triton refused %s: %s", step.name, launch)
            reason = f"{type(launch).__name__}: {str(launch).partition(chr(10))[0]}"
            failed.append(Fallback(tuple(n.name for n in step.group.nodes), f"Triton refused the kernel: {reason}"))
        else:
            launches[step.name] = launch
    return Built(None, {}, launches, {}), failed


_warned = False


def _warn_once(message: str) -> None:
    global _warned  # one warning a process is the point
    if not _warned:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        _warned = True


def build(plan: Plan, options: Options, chosen: Chosen | None = None) -> tuple[Built, list[Fallback]]:
    """Compile the kernels of a plan, those in ``chosen`` as there; what can't be compiled is in the list of fallbacks.

    Raises FallbackError with ``strict`` if there is any.
    """
    steps = kernel_steps(plan.program)
    failed: list[Fallback] = []
    built = Built(None, {}, {}, {})
    cache = DiskCache(options.cache_folder)
    if steps:
        try:
            if plan.target.language == "cpp":
                built, failed = _build_cpp(steps, cache, chosen)
            else:
                built, failed = _build_triton(steps, plan.target, cache, chosen)
        except CompilerMissing as error:
            failed = [Fallback(tuple(n.name for n in s.group.nodes), str(error)) for s in steps]
            if not options.strict:
                _warn_once(f"rooffuse runs without fused kernels: {error}")
    for fallback in failed:
        log.warning("%s run as FX nodes: %s", ", ".join(fallback.nodes[:4]), fallback.reason)
    if failed and options.strict:
        raise FallbackError(f"{', '.join(failed[0].nodes)} can't be compiled: {failed[0].reason} "
                            "(strict is on; without it they run as FX nodes)")
    return built, failed


def compile_graph(gm: GraphModule, target: Target, options: Options, inputs: InputFacts | None = None,
                  name: str = "graph", search: Search = DEFAULT_SEARCH) -> Compiled:
    """Compile one ATen graph with static shapes for ``target``; ``search`` is for the option ``autotune``."""
    inputs = inputs or InputFacts()
    dump = Dump.open(options.dump, name) if options.dump else None
    plan = plan_graph(gm, target, options, dump, inputs.layout)
    start = time.perf_counter()
    tuned = tune(plan, options, search)
    if dump is not None and tuned:
        dump.tuned(plan, tuned)
    built, failed = build(plan, options, chosen_candidates(tuned))
    executable = assemble(plan.program, built, target.torch_device, inputs.unchecked_strides, options.keep_memory)
    log.debug("kernels %.0f ms", 1e3 * (time.perf_counter() - start))
    if dump is not None:
        dump.run_function(executable.source)
    decision = decide(plan, options, inputs.backward)
    log.info("CUDA graph: %s (%s)", "captured" if decision.captured else "not captured", decision.reason)
    function = executable.function
    if decision.captured:
        # The recorded program has an arena of its own: a plain run on another stream must not write to it.
        recorded = assemble(plan.program, built, target.torch_device, inputs.unchecked_strides)
        function = CapturedFunction(executable.function, recorded.function, CudaRecorder(), inputs.static,
                                    mutated_inputs(plan.graph))
    function = on_device(function, target.torch_device)
    return Compiled(plan, executable, function, tuple(failed), decision, tuned)


def mutated_inputs(gm: GraphModule) -> frozenset[int]:
    """Positions of placeholders that the graph writes to."""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    written = set(mutated_roots(gm.graph))
    return frozenset(k for k, n in enumerate(placeholders) if n in written)


def has_symbolic_sizes(gm: GraphModule) -> bool:
    """Whether any node's value depends on a symbol."""
    def symbolic(value: Any) -> bool:
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return True
        return isinstance(value, torch.Tensor) and any(isinstance(s, torch.SymInt)
                                                       for s in (*value.shape, *value.stride()))

    return any(symbolic(n.meta.get("val")) for n in gm.graph.nodes)
