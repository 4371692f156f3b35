"""Results written past the caches: the same numbers, in the forms of loops that there are, and only in whole lines."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen import cpp_streams
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_schedule import Schedule
from rooffuse.codegen.cpp_unit import print_function
from rooffuse.codegen.errors import NotLowerable
from rooffuse.cost_model import get_device
from rooffuse.targets import target_for
from torch import Tensor

from .cases import BY_NAME, CASES
from .kernels import CppUnit, Lowered, Memory, assert_same, lower, lower_case


def added_norm(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    total = x + r
    return total, total * torch.rsqrt((total * total).mean(-1, keepdim=True) + 1e-6)


def norm_gradients(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of scaled rows, and sums over some of those."""
    return g - x * (g * x).mean(-1, keepdim=True), (g * x).sum(1)


def plane_and_row(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The second result is stored in the first of the loops over a plane's rows."""
    return x * y[:, None] - x.mean((1, 2), keepdim=True), y + x.sum((1, 2))[:, None]


ROWS, COLUMNS = (37, 1024), (640, 1024)
#: Functions, the shapes of their inputs, and how many results are written past the caches.
FORMS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]], int]] = {
    "elementwise": (lambda x, y: x * y + x, [ROWS, ROWS], 1),
    "two_results": (lambda x, y: (x * y, x.exp()), [ROWS, ROWS], 2),
    "asked_ahead": (lambda x, y: F.silu(x) * y, [(37, 4096), (37, 4096)], 1),
    "broadcast": (lambda x, y: x + y, [ROWS, (37, 1)], 1),
    "ragged": (lambda x: x.relu(), [(3, 5, 2909)], 1),
    "five_results": (lambda x: (x + 1, x * 2, x - 3, x.relu(), x.abs()), [ROWS], 4),
    "sides": (lambda x, y: torch.cat([x, y * 2], -1), [ROWS, ROWS], 1),
    "stacked": (lambda x, y: torch.cat([x, y * 2], 0), [ROWS, ROWS], 1),
    "added_norm": (added_norm, [ROWS, ROWS], 2),
    "softmax": (lambda x: x.softmax(-1), [ROWS], 1),
    "layer_norm": (lambda x: F.layer_norm(x, x.shape[-1:]), [(5, 16384)], 1),
    "row_and_total": (lambda x: (x + 1, x.sum(-1)), [ROWS], 1),
    "plane_and_row": (plane_and_row, [(3, 6, 1024), (3, 1024)], 1),
    "norm_gradients": (norm_gradients, [(64, 11, 1024)] * 2, 1),
    "column_softmax": (lambda x: x.softmax(0), [COLUMNS], 1),
    "odd_rows": (lambda x: x.softmax(-1), [(37, 1021)], 0),
    "short_rows": (lambda x: x.softmax(-1), [(640, 10)], 0),
    "other_layout": (lambda x: x.t() + 1, [COLUMNS], 1),
    "turned": (lambda x: (x.t() + 1).contiguous(), [COLUMNS], 0),
    "running": (lambda x: x.cumsum(-1), [ROWS], 0),
    "running_beside": (lambda x: (x.cumsum(-1), x.exp()), [ROWS], 0),
    "padded": (lambda x: F.pad(x, (0, 64)), [ROWS], 1),
}
TYPES = (torch.float32, torch.bfloat16, torch.float64)
NAMES = [pytest.param(form, dtype, id=f"{form}_{dtype}") for form in FORMS for dtype in TYPES]


def streamed(kernel: Lowered) -> Schedule:
    return Schedule(streamed=tuple(kernel.group.outputs))


def source_of(kernel: Lowered) -> str:
    return print_function(kernel.group.kernel, "kernel", streamed(kernel))


def inputs_of(form: str, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(len(form))
    return [torch.randn(shape).to(dtype) for shape in FORMS[form][1]]


@pytest.fixture(scope="module")
def kernels() -> dict[str, Lowered]:
    """As they are finished for a CPU: transposed in tiles, several rows at once."""
    target = target_for(get_device("cpu"))

    def finished(kernel: Lowered) -> Lowered:
        return replace(kernel, group=replace(kernel.group, kernel=target.finish(kernel.group.kernel)))

    return {f"{form}_{dtype}": finished(lower(FORMS[form][0], *inputs_of(form, dtype)))
            for form in FORMS for dtype in TYPES}


@pytest.fixture(scope="module")
def unit(kernels: dict[str, Lowered], tmp_path_factory: pytest.TempPathFactory) -> CppUnit:
    schedules = {name: streamed(kernel) for name, kernel in kernels.items()}
    return CppUnit(kernels, DiskCache(tmp_path_factory.mktemp("kernels")), schedules)


@pytest.mark.parametrize(("form", "dtype"), NAMES)
def test_results_are_the_same(form: str, dtype: torch.dtype, kernels: dict[str, Lowered], unit: CppUnit) -> None:
    name, inputs = f"{form}_{dtype}", inputs_of(form, dtype)
    exact = FORMS[form][0](*[x.double() for x in inputs])
    exact = exact if isinstance(exact, tuple) else (exact,)
    assert_same(unit.run(name, kernels[name], inputs), [x.to(dtype) for x in exact])


@pytest.mark.parametrize(("form", "dtype"), NAMES)
def test_whole_lines_go_past_the_caches(form: str, dtype: torch.dtype, kernels: dict[str, Lowered]) -> None:
    text = source_of(kernels[f"{form}_{dtype}"])
    assert len(set(re.findall(r"rf_stream\(&(\w+)\[", text))) == FORMS[form][2], text
    assert ("rf_streams_end" in text) == bool(FORMS[form][2])


def test_each_thread_waits_for_its_own_lines(kernels: dict[str, Lowered]) -> None:
    """Before the barrier at the end of the parallel region, not after it, where one thread waits."""
    lines = [x.strip() for x in source_of(kernels["asked_ahead_torch.float32"]).splitlines()]
    start = lines.index("#pragma omp parallel")
    assert lines[start + 1:start + 3] == ["{", "#pragma omp for schedule(static) nowait"]
    assert lines[-4:] == ["rf_streams_end();", "}", "}", "}"]


@pytest.mark.parametrize("offset", [8, 32, 40])
def test_memory_from_within_a_line_is_written_too(offset: int, kernels: dict[str, Lowered], unit: CppUnit) -> None:
    name, (x,) = "softmax_torch.float32", inputs_of("softmax", torch.float32)
    memory = Memory(kernels[name], [x])
    (block,) = memory.blocks.values()
    out = block[256 + offset:][:x.nbytes]
    addresses = [x.data_ptr() if b.name in kernels[name].group.inputs else out.data_ptr()
                 for b in kernels[name].group.kernel.buffers]
    for slot, address in zip(unit.slots[name], addresses):
        unit.table[slot] = address
    number = unit.numbers[name]
    assert unit.library.rooffuse_run(number, number + 1, ctypes.addressof(unit.table)) == 0
    assert_same(out.view(torch.float32).view(x.shape), x.softmax(-1))
    assert bool((block[:256 + offset] == 0xFD).all() and (block[256 + offset + x.nbytes:] == 0xFD).all())


def test_other_kernels_whose_lines_go_past_the_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All that store sixteen lanes or more one after the other, in the form that a CPU gets."""
    monkeypatch.setattr(cpp_streams, "STREAMED_LANES", 16)
    target, found = target_for(get_device("cpu")), {}
    for case in CASES:
        with suppress(NotLowerable):
            kernel = lower_case(case)
            kernel = replace(kernel, group=replace(kernel.group, kernel=target.finish(kernel.group.kernel)))
            if "rf_stream(" in source_of(kernel):
                found[case.name] = kernel
    assert len(found) > 20
    library = CppUnit(found, DiskCache(tmp_path), {name: streamed(kernel) for name, kernel in found.items()})
    for name, kernel in found.items():
        inputs = BY_NAME[name].inputs()
        assert_same(library.run(name, kernel, inputs), BY_NAME[name].fn(*inputs))
