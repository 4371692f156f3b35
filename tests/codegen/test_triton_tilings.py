"""The tiles that a search may choose from: few, different, correct on ragged sizes, and none of them spills."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rooffuse.codegen.build_triton import compile_for, load_launcher
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.ir import Kernel
from rooffuse.codegen.triton_kernel import print_kernel
from rooffuse.codegen.triton_tilings import MOST_TILINGS, default_tiles, tilings
from rooffuse.cost_model import get_device
from rooffuse.targets import target_for
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from .cases import BY_NAME, rms_norm, rope
from .kernels import Lowered, Memory, assert_same, lower, lower_case
from .row_parts import STRIP, norm_backward
from .test_triton_build import resources

#: One of each shape of work, at sizes that no tile divides.
RAGGED = [
    "pointwise_1000",
    "transpose_129",
    "softmax_row_1000",
    "layer_norm_4097",
    "argmax_row_1000",
    "softmax_70001",
    "statistics_20011",
    "cumsum_with_total_1000",
    "cumsum_row_4097",
    "softmax_column_1000",
    "sum_column_4097",
    "argmin_column_129",
    "label_log_probability_300",
    "two_sizes",
    "quantised_16_7",
    "best_groups_33_9",
    "segments_of_channels",
    "rope",
    "embedding",
]


def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (x @ w).relu()


def divergence(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    p, q = F.log_softmax(x.float(), -1), F.log_softmax(y.float(), -1)
    return (p.exp() * (p - q)).sum(-1)


REAL = {
    "pointwise": (lambda x, y: F.silu(x) * y, [(8192, 14336), (8192, 14336)]),
    "softmax": (lambda x: F.softmax(x, -1), [(4096, 4096)]),
    "rms_norm": (rms_norm, [(4096, 4096), (4096, 4096), (4096,)]),
    "rope": (rope, [(2, 32, 2048, 128), (2048, 128), (2048, 128)]),
    "cross_entropy": (lambda x: F.log_softmax(x, -1), [(256, 32000)]),
    "vocabulary": (lambda x: F.softmax(x, -1), [(1024, 128256)]),
    "two_vocabularies": (divergence, [(1024, 50304), (1024, 50304)]),
    "column_sum": (lambda x: x.sum(0), [(4096, 4096)]),
    "norm_backward": (norm_backward, [(6144, 1024), (6144, 1024), (1024,)]),
    "product": (product, [(512, 1024), (1024, 2048)]),
}


def real(name: str) -> Kernel:
    fn, shapes = REAL[name]
    with FakeTensorMode():
        inputs = [torch.empty(s, dtype=torch.bfloat16) for s in shapes]
    return target_for(get_device("h100")).finish(lower(fn, *inputs).group.kernel)


def run(lowered: Lowered, inputs: list[torch.Tensor], tiles: tuple, cache: DiskCache) -> list[torch.Tensor]:
    memory = Memory(lowered, inputs)
    source = print_kernel(lowered.group.kernel, tiles=tiles)
    load_launcher(source, cache, torch.device("cpu"), interpreted=True)(*memory.all_flat())
    return memory.results()


@pytest.mark.parametrize("name", RAGGED)
def test_every_tiling_computes_the_same(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    lowered = lower_case(case)
    for tiling in tilings(lowered.group.kernel, 4):
        assert_same(run(lowered, case.inputs(), tiling.tiles, DiskCache(tmp_path)), case.fn(*case.inputs()))


@pytest.mark.parametrize("rows, inner, columns", [(33, 70, 50), (130, 200, 129)])
def test_every_tiling_of_a_product_computes_the_same(rows: int, inner: int, columns: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    inputs = [torch.randn(rows, inner).bfloat16(), (torch.randn(inner, columns) / inner**0.5).bfloat16()]
    lowered = lower(product, *inputs)
    found = tilings(lowered.group.kernel, 4)
    assert len(found) > 2
    for tiling in found:
        assert_same(run(lowered, inputs, tiling.tiles, DiskCache(tmp_path)), product(*inputs))


def test_every_tiling_of_strips_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(3)
    inputs = [torch.randn(4 * STRIP, 200), torch.randn(4 * STRIP, 200), torch.randn(200)]
    lowered = lower(norm_backward, *inputs)
    assert lowered.group.kernel.nests[0].strip
    for tiling in tilings(lowered.group.kernel, 4):
        assert_same(run(lowered, inputs, tiling.tiles, DiskCache(tmp_path)), norm_backward(*inputs))


@pytest.mark.parametrize("name", REAL)
def test_every_tiling_compiles_without_spills(name: str, tmp_path: Path) -> None:
    kernel = real(name)
    found = tilings(kernel, 264)
    assert 2 <= len(found) <= MOST_TILINGS
    for tiling in found:
        source = print_kernel(kernel, tiles=tiling.tiles)
        used = resources(compile_for(source, DiskCache(tmp_path), 90).asm["cubin"], tmp_path)
        assert used["LOCAL"] == 0 and used["STACK"] == 0, f"{name}, {tiling.name}: {used}"


@pytest.mark.parametrize("name", REAL)
def test_the_default_comes_first_and_all_differ(name: str) -> None:
    kernel = real(name)
    found = tilings(kernel, 264)
    assert found[0].name == "default" and found[0].tiles == default_tiles(kernel, 264)
    assert print_kernel(kernel, tiles=found[0].tiles) == print_kernel(kernel, programs_wanted=264)
    assert len({t.tiles for t in found}) == len({t.name for t in found}) == len(found)
    assert found == tilings(kernel, 264)


def test_long_rows_are_offered_both_kept_and_looped() -> None:
    softmax = tilings(real("softmax"), 264)
    assert {t.tiles[0].persistent for t in softmax} == {True, False}
    # By price a row that is read again comes last.
    assert [t.tiles[0].persistent for t in softmax] == [True] * (len(softmax) - 1) + [False]


def test_long_rows_are_taken_one_at_a_time_by_each_multiprocessor() -> None:
    default, *others = (t.tiles[0] for t in tilings(real("vocabulary"), 264))
    assert default.resident and default.programs == 132
    assert "a program for each row" in {t.name for t in tilings(real("vocabulary"), 264)}
    assert {t.programs for t in others} == {132, 1024}


def test_a_tile_that_does_not_fit_in_registers_is_not_offered() -> None:
    default, *others = tilings(real("cross_entropy"), 264)
    assert default.tiles[0].persistent and default.tiles[0].rblock == 32768
    assert all(t.tiles[0].xblock * t.tiles[0].rblock <= 32768 and not t.tiles[0].persistent for t in others)


def test_only_the_largest_nest_is_cut_otherwise() -> None:
    case = BY_NAME["two_sizes"]
    x, y = torch.randn(500, 600), torch.randn(7)
    kernel = lower(case.fn, x, y).group.kernel
    first, second = default_tiles(kernel, 264)
    large = 0 if first.programs > second.programs else 1
    found = tilings(kernel, 264)
    assert len(found) > 2 and len({t.tiles[1 - large] for t in found}) == 1


def test_stages_are_part_of_what_is_compiled(tmp_path: Path) -> None:
    kernel = real("product")
    four = next(t for t in tilings(kernel, 264) if t.tiles[0].stages == 4)
    source, default = print_kernel(kernel, tiles=four.tiles), print_kernel(kernel)
    assert source.text == default.text and (source.stages, default.stages) == (4, None)
    shared = [compile_for(s, DiskCache(tmp_path), 90).metadata.shared for s in (default, source)]
    assert shared[0] < shared[1]
    assert replace(source, stages=None) == default
