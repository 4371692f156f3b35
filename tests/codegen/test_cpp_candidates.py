"""The schedules of C++ kernels that a search may choose from: different sources, the same results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rooffuse.codegen.build_cpp import compile_library, load_library
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_candidates import MOST_CANDIDATES, CppCandidate, cpp_candidates
from rooffuse.codegen.cpp_unit import print_function, print_unit
from rooffuse.cost_model import get_device
from rooffuse.targets import target_for
from torch import Tensor

from .cases import BY_NAME, layer_norm
from .kernels import Lowered, Memory, assert_same, lower, lower_case

TARGET = target_for(get_device("cpu"))
#: Kernels of each form, with the names of the candidates that only share or cut loops otherwise.
FORMS = {
    "elementwise": (lambda x, y: x.tanh() * y.exp(), [(29, 4099)] * 2, {"memory not asked ahead", "one thread"}),
    "plain": (lambda x, y: x * 2 + y, [(29, 4099), (29, 4099)], {"memory asked ahead", "one thread"}),
    "rows": (layer_norm, [(9, 5003)], {"one thread"}),
    "row_sums": (lambda x, w: (x * w).sum(-1), [(131, 2050), (2050,)], set()),
    "columns": (lambda x: x.softmax(0), [(1003, 131)], {"512 columns at once", "64 columns at once"}),
    "small": (lambda x: x.exp() + 1, [(2, 2500)], {"several threads"}),
}


def candidates(lowered: Lowered) -> tuple[CppCandidate, ...]:
    plain = lowered.group.kernel
    return cpp_candidates(TARGET.finish(plain), {rows: TARGET.finish(plain, rows) for rows in (1, 8)})


def results(lowered: Lowered, inputs: list[Tensor], cache: DiskCache) -> dict[str, list[Tensor]]:
    found = candidates(lowered)
    slots = tuple(range(len(lowered.group.kernel.buffers)))
    source = print_unit([c.kernel for c in found], [(k, slots) for k in range(len(found))],
                        {k: c.schedule for k, c in enumerate(found)})
    library = load_library(compile_library(source, cache))
    outputs = {}
    for k, candidate in enumerate(found):
        memory = Memory(lowered, inputs)
        table = torch.tensor([t.data_ptr() for t in memory.all_flat()])
        assert library.rooffuse_run(k, k + 1, table.data_ptr()) == 0
        outputs[candidate.name] = memory.results()
    return outputs


@pytest.mark.parametrize("form", FORMS)
def test_every_candidate_computes_the_same(form: str, tmp_path: Path) -> None:
    fn, shapes, scheduling = FORMS[form]
    torch.manual_seed(5)
    inputs = [torch.randn(s) for s in shapes]
    outputs = results(lower(fn, *inputs), inputs, DiskCache(tmp_path))
    assert len(outputs) > 1
    for name, found in outputs.items():
        assert_same(found, fn(*inputs))
        if name in scheduling:
            assert all(torch.equal(a, b) for a, b in zip(found, outputs["default"])), name
    assert scheduling <= set(outputs)


@pytest.mark.parametrize("name", ["embedding", "concat", "cumsum_row_4097", "argmin_column_129", "masked_softmax"])
def test_other_kernels_are_the_same_too(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    for found in results(lower_case(case), case.inputs(), DiskCache(tmp_path)).values():
        assert_same(found, case.fn(*case.inputs()))


@pytest.mark.parametrize("form", FORMS)
def test_candidates_are_few_and_really_different(form: str) -> None:
    fn, shapes, _ = FORMS[form]
    lowered = lower(fn, *[torch.empty(s) for s in shapes])
    found = candidates(lowered)
    assert found[0] == CppCandidate("default", TARGET.finish(lowered.group.kernel))
    assert 2 <= len(found) <= MOST_CANDIDATES
    assert len({print_function(c.kernel, "f", c.schedule) for c in found}) == len({c.name for c in found}) == len(found)


def test_all_candidates_take_the_same_buffers() -> None:
    fn, shapes, _ = FORMS["row_sums"]
    found = candidates(lower(fn, *[torch.empty(s) for s in shapes]))
    assert {"one row at a time", "8 rows at once"} <= {c.name for c in found}
    assert len({c.kernel.buffers for c in found}) == 1


def test_a_unit_prints_the_schedules_it_is_given() -> None:
    default, *others = candidates(lower(lambda x: x.exp() + 1, torch.empty(2, 2500)))
    threaded = next(c for c in others if c.name == "several threads")
    calls = [(0, (0, 1))]
    kernel = replace(default.kernel, name="other")
    assert "parallel for" not in print_unit([kernel], calls)
    assert "parallel for" in print_unit([kernel], calls, {0: threaded.schedule})
