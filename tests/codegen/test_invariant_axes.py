"""Maps that are gone through along an axis which costly values don't vary along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.invariant_axes import ACROSS, LONGEST, go_along_invariant_axes, places_along
from rooffuse.codegen.ir import Compute, Load, Stmt, Store
from rooffuse.codegen.operations import operation_cost
from rooffuse.codegen.sweeps import plan_phases
from rooffuse.codegen.triton_kernel import print_kernel
from rooffuse.codegen.triton_tiles import COSTLY, choose_tile
from rooffuse.codegen.verify import verify
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from .kernels import Lowered, assert_same, lower, run_interpreter, run_triton

#: Bytes of a cache in which everything here stays.
CACHE = 1 << 40


def with_positions(x: Tensor) -> Tensor:
    place = torch.arange(x.shape[1]).float()[:, None]
    frequency = torch.exp(torch.arange(0, x.shape[2], 2).float() * -0.01)
    return x + torch.cat([torch.sin(place * frequency), torch.cos(place * frequency)], -1)


def turned_heads(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[1]).float()[:, None] / 100 ** (torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    angle = torch.cat([angle, angle], -1)[:, None]
    a, b = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()


def gated(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    gate = F.softplus(y).tanh()
    return x * gate, (x > gate)


def in_steps(t: Tensor, w: Tensor) -> Tensor:
    return torch.sin(t[:, None]) * w.log().exp().square()


CASES = {
    "positions": (with_positions, (8, 20, 130)),
    "positions of odd batches": (with_positions, (9, 3, 514)),
    "heads": (turned_heads, (2, 9, 16, 64)),
    "gate of all rows": (gated, (64, 3, 65), (3, 65)),
    "gate of a middle axis": (gated, (5, 32, 129), (5, 1, 129)),
    "long axis in parts": (in_steps, (36000,), (7,)),
}


def cost(body: Sequence[Stmt]) -> int:
    return sum(operation_cost(s.op, special_units=True) for s in body if isinstance(s, Compute))


def rows(lowered: Lowered, programs: int, cache_bytes: int = CACHE) -> Lowered:
    kernel = go_along_invariant_axes(lowered.group.kernel, programs, cache_bytes)
    return replace(lowered, group=replace(lowered.group, kernel=verify(kernel)))


@pytest.mark.parametrize("name", CASES)
def test_the_same_results_for_fewer_operations(name: str, tmp_path: Path) -> None:
    fn, *shapes = CASES[name]
    torch.manual_seed(1)
    inputs = [torch.rand(s) + 0.1 for s in shapes]
    lowered = lower(fn, *inputs)
    changed = rows(lowered, 1)
    (nest,) = changed.group.kernel.nests
    assert len(nest.reduction) == 1 and 4 <= nest.reduction[0].size <= LONGEST
    once, repeated = plan_phases(nest)
    assert not once.sweep and repeated.sweep
    assert cost(once.body) >= COSTLY and cost(repeated.body) < cost(lowered.group.kernel.nests[0].body) - COSTLY
    assert_same(run_interpreter(changed, inputs), fn(*inputs))
    assert_same(run_triton(changed, inputs, DiskCache(tmp_path)), fn(*inputs))


#: A function, its inputs' sizes, the places that a program goes along, and bytes that are touched from one to the next.
LOST = {
    "mask of all heads": (lambda x, m: x + m[:, None], [(3, 6, 5, 130), (3, 5, 130)], 6, 3 * 4 * 5 * 130),
    "mask of all batches": (lambda x, m: x * m, [(2, 7, 515), (7, 515)], 2, 3 * 4 * 7 * 515),
    "change of colours": (lambda x, m: x[:, 0] * m[:, 0, None, None] + x[:, 1] * m[:, 1, None, None],
                          [(1, 2, 40, 40), (3, 2)], 3, 3 * 4 * 1600 + 8),
}


@pytest.mark.parametrize("name", LOST)
def test_what_a_cache_would_lose_is_loaded_once(name: str, tmp_path: Path) -> None:
    fn, shapes, places, touched = LOST[name]
    torch.manual_seed(1)
    inputs = [torch.rand(s) for s in shapes]
    lowered = lower(fn, *inputs)
    assert rows(lowered, 1, touched).group.kernel == lowered.group.kernel
    changed = rows(lowered, 1, touched - 1)
    (nest,) = changed.group.kernel.nests
    assert [a.size for a in nest.reduction] == [places]
    once, repeated = plan_phases(nest)
    assert any(isinstance(s, Load) for s in once.body) and any(isinstance(s, Store) for s in repeated.body)
    assert_same(run_interpreter(changed, inputs), fn(*inputs))
    assert_same(run_triton(changed, inputs, DiskCache(tmp_path)), fn(*inputs))


def test_what_is_little_of_what_a_cache_loses_is_loaded_again() -> None:
    lowered = lower(lambda x, v: x * v[:, None], torch.empty(64, 30, 300), torch.empty(30))
    assert rows(lowered, 1, 1 << 10).group.kernel == lowered.group.kernel


def biased(x: Tensor, table: Tensor) -> Tensor:
    """A softmax with a bias that depends on the logarithm of a distance."""
    place = torch.arange(x.shape[-1])
    distance = (place - torch.arange(x.shape[-2])[:, None]).abs()
    bucket = (torch.log(distance.float() + 1) * 2).long().clamp(max=table.shape[0] - 1)
    return (x + table[bucket].permute(2, 0, 1)).softmax(-1)


def normed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    scaled = x * torch.erf(y)
    return F.layer_norm(scaled, scaled.shape[-1:]), scaled.sum(-1)


ROWS = {
    "bias of all sequences": (biased, [(8, 3, 5, 37), (4, 3)], 8),
    "bias of heads": (biased, [(3, 4, 6, 128), (4, 4)], 4),
    "table of all rows": (normed, [(6, 4, 300), (4, 300)], 2),
    "vector of all rows": (normed, [(24, 65), (65,)], 8),
    "long rows": (normed, [(8, 9000), (9000,)], 2),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_side_by_side_share_what_is_costly(name: str, tmp_path: Path) -> None:
    fn, shapes, places = ROWS[name]
    torch.manual_seed(1)
    inputs = [torch.randn(s) for s in shapes]
    lowered = lower(fn, *inputs)
    changed = rows(lowered, 1)
    (nest,) = changed.group.kernel.nests
    assert choose_tile(changed.group.kernel, nest, 1).xblock == places == nest.parallel[-1].size
    shared = [s for s in nest.body if isinstance(s, Compute) and s.op in ("log", "erf")]
    assert shared and not any(nest.parallel[-1].symbol in nest.scopes[s.name] for s in shared)
    assert_same(run_interpreter(changed, inputs), fn(*inputs))
    assert_same(run_triton(changed, inputs, DiskCache(tmp_path)), fn(*inputs))


def test_a_program_computes_what_rows_share_once(tmp_path: Path) -> None:
    def rooted(x: Tensor, y: Tensor) -> Tensor:
        for _ in range(4):
            y = (y + 1).rsqrt()
        return (x * y).sum(-1)

    with FakeTensorMode():
        lowered = lower(rooted, torch.empty(8, 2048, 1024), torch.empty(2048, 1024))
    for programs, grid, elements in ((1, 2048, 8192), (1 << 20, 16384, 1024)):
        source = print_kernel(rows(lowered, programs).group.kernel, programs_wanted=264)
        threads = 32 * source.warps
        ptx = compile_for(source, DiskCache(tmp_path), 90).asm["ptx"]
        assert source.grid == grid and elements // threads == (64 if programs == 1 else 16)
        assert ptx.count("rsqrt.approx") == 4 * 1024 // threads  # of a row, whether a program has one or eight


def test_enough_programs_are_left() -> None:
    x = torch.empty(64, 16, 4096)
    lowered = lower(with_positions, x)
    for programs, places in ((1, 64), (64, 64), (256, 16), (1024, 4)):
        (nest,) = rows(lowered, programs).group.kernel.nests
        assert nest.reduction[0].size == places
        assert x.numel() // (places * ACROSS) >= programs
    assert not rows(lowered, 2048).group.kernel.nests[0].reduction


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, y: x * y,  # nothing costly
        lambda x, y: (x * y).sin(),  # varies along all axes
        lambda x, y: x * y.sin() + x.amax(),  # reduces
        lambda x, y: (x * y.sin(), y.sin() + 1),  # stores what doesn't vary
        lambda x, y: x[:61] * y.sin(),  # no few places divide
        lambda x, y: (x[:61] * y.sin()).sum(-1),
        lambda x, y: (x * y).softmax(-1),  # nothing costly in rows
        lambda x, y: (x * y).sin().sum(-1),
        lambda x, y: (x * y.sin()).sum(0),  # rows that go across memory
    ],
)
def test_other_kernels_stay_as_they_are(fn) -> None:
    x, y = torch.empty(64, 300), torch.empty(300)
    kernel = lower(fn, x, y).group.kernel
    assert go_along_invariant_axes(kernel, 1, CACHE) == kernel


def test_a_buffer_may_be_overwritten_where_it_is_read() -> None:
    lowered = lower(with_positions, torch.empty(8, 20, 130))
    kernel = lowered.group.kernel
    inputs = [b.name for b in kernel.buffers if b.name in kernel.read]
    assert inputs == ["i0"]
    (nest,) = kernel.nests
    store = next(s for s in nest.body if isinstance(s, Store))
    for index, changed in ((store.index, True), (20 * 130 * 8 - 1 - store.index, False)):
        body = tuple(replace(s, buffer="i0", index=index) if s is store else s for s in nest.body)
        overwriting = replace(kernel, nests=(replace(nest, body=body),))
        assert (go_along_invariant_axes(overwriting, 1, CACHE) != overwriting) == changed


def test_an_axis_is_cut_where_it_divides() -> None:
    assert [places_along(n, 99) for n in (1, 37, 64, 96, 130, 131)] == [1, 37, 64, 48, 26, 1]
    assert places_along(64, 9) == 8 and places_along(64, 0) == 1
