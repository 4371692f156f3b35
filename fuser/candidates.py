"""The candidates of a kernel for a target, what identifies them on disk, and how they become callables."""
from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import torch
from rooffuse.codegen.build_cpp import FLAGS, compile_library, compiler_identity, find_compiler, load_library
from rooffuse.codegen.cache import DiskCache, digest
from rooffuse.codegen.cpp_candidates import cpp_candidates
from rooffuse.codegen.cpp_schedule import DEFAULT_SCHEDULE, Schedule
from rooffuse.codegen.cpp_unit import print_unit
from rooffuse.codegen.ir import Kernel
from rooffuse.codegen.jam import JAMMED
from rooffuse.codegen.lower_group import lower_finished
from rooffuse.codegen.triton_dot import DotTile
from rooffuse.codegen.triton_kernel import TritonSource, print_kernel
from rooffuse.codegen.triton_tiles import Tile
from rooffuse.codegen.triton_tilings import tilings
from torch import Tensor

from .measuring import Run
from .program import KernelStep
from .targets import Target

log = logging.getLogger(__name__)

#: Part of every key on disk: to be raised when what is kept there changes its meaning.
_FORMAT = "1"
#: Numbers of rows side by side that are tried beside the usual one.
OTHER_ROWS = (1, 2 * JAMMED)


@dataclass(frozen=True)
class Candidate:
    """One way to make a kernel: ``tiles`` for Triton (None for those by price), ``schedule`` for C++."""

    name: str
    kernel: Kernel
    tiles: tuple[Tile | DotTile, ...] | None = None
    schedule: Schedule = DEFAULT_SCHEDULE


def default_candidate(step: KernelStep) -> Candidate:
    """The kernel as the price makes it."""
    assert step.group.lowered is not None
    return Candidate("default", step.group.lowered.kernel, schedule=Schedule(streamed=step.streamed))


def candidates_of(step: KernelStep, target: Target, eager_rounding: bool) -> tuple[Candidate, ...]:
    """The default, then others by price; ``eager_rounding`` as the step's kernel was lowered."""
    kernel = default_candidate(step).kernel
    if target.language == "triton":
        return tuple(Candidate(t.name, kernel, t.tiles) for t in tilings(kernel, target.programs))
    assert step.group.extracted is not None
    graph = step.group.extracted.graph
    jammed = {rows: lower_finished(graph, partial(target.finish, rows=rows), eager_rounding).kernel
              for rows in OTHER_ROWS}
    return tuple(Candidate(c.name, c.kernel, None, c.schedule) for c in cpp_candidates(kernel, jammed, step.streamed))


def triton_module(candidate: Candidate, target: Target) -> TritonSource:
    return print_kernel(candidate.kernel, programs_wanted=target.programs, tiles=candidate.tiles)


def _toolchain(target: Target) -> str:
    """What builds and runs kernels of this target. Raises CompilerMissing for C++ without a compiler."""
    if target.language == "cpp":
        return " ".join((compiler_identity(find_compiler()), *FLAGS, f"{torch.get_num_threads()} threads"))
    return f"triton {version('triton')}, CUDA {torch.version.cuda}, HIP {torch.version.hip}"


def candidates_key(candidates: Sequence[Candidate], target: Target) -> str:
    """Equal for equal candidates on equal devices by equal tools. Raises CompilerMissing as `_toolchain`."""
    texts = [part for c in candidates for part in (c.name, str(c.kernel), repr(c.tiles), repr(c.schedule))]
    return digest("autotune", _FORMAT, version("rooffuse"), target.language, target.device.name,
                  str(target.interpreted), _toolchain(target), *texts)


def load_candidates(candidates: Sequence[Candidate], target: Target, cache: DiskCache, tensors: Sequence[Tensor]
                    ) -> list[Run | None]:
    """What runs each candidate once on ``tensors``, which are in the order of the kernel's buffers; None for one that
    Triton refuses. Raises CompilationFailed for C++, whose candidates are one translation unit."""
    if target.language == "triton":
        return _load_triton(candidates, target, cache, tensors)
    slots = tuple(range(len(candidates[0].kernel.buffers)))
    source = print_unit([c.kernel for c in candidates], [(k, slots) for k in range(len(candidates))],
                        {k: c.schedule for k, c in enumerate(candidates)})
    library = load_library(compile_library(source, cache))
    table = (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])
    return [partial(_run_cpp, library, k, table) for k in range(len(candidates))]


def _run_cpp(library: ctypes.CDLL, number: int, table: ctypes.Array[ctypes.c_void_p]) -> None:
    library.rooffuse_run(number, number + 1, ctypes.addressof(table))


def _load_triton(candidates: Sequence[Candidate], target: Target, cache: DiskCache, tensors: Sequence[Tensor]
                 ) -> list[Run | None]:
    from rooffuse.codegen.build_triton import load_launchers

    loaded = load_launchers([triton_module(c, target) for c in candidates], cache, target.torch_device,
                            target.interpreted)
    runs: list[Run | None] = []
    for candidate, launch in zip(candidates, loaded):
        if isinstance(launch, Exception):
            log.debug("Triton refused %r: %s", candidate.name, launch)
        runs.append(None if isinstance(launch, Exception) else partial(launch, *tensors))
    return runs
