"""Groups of a few neighbouring channels on a CPU: lanes are channels, and what a group's have come to is joined."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_unit import print_function
from rooffuse.codegen.group_lanes import LONGEST_RUN, take_groups_as_lanes
from rooffuse.codegen.ir import Kernel, Nest, Reduce
from rooffuse.codegen.verify import InvalidKernel, verify
from rooffuse.program import inplace_pairs
from torch import Tensor

from .kernels import CppUnit, assert_same, lower, run_interpreter


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 4, weight, bias))


def with_moments(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What training keeps, too: a number for each group."""
    y, mean, rstd = torch.native_group_norm(x, weight, bias, x.shape[0], x.shape[1], x[0, 0].numel(), 4, 1e-5)
    return y, mean * rstd


def scaled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups = x.permute(0, 2, 3, 1).unflatten(-1, (4, -1))
    return groups / (groups.amax((1, 2, 4), keepdim=True) - groups.amin((1, 2, 4), keepdim=True))


def images(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    new = torch.Generator().manual_seed(channels)
    x = torch.randn(3, channels, 5, 7, generator=new).to(memory_format=torch.channels_last)
    return x.to(dtype), torch.randn(channels, generator=new), torch.randn(channels, generator=new)


def rewritten(kernel: Kernel) -> Kernel:
    return verify(take_groups_as_lanes(kernel))


@pytest.mark.parametrize("fn", [normalised, with_moments, scaled])
def test_groups_of_any_size(fn: Callable, tmp_path: Path) -> None:
    calls = {f"{channels} {dtype}": images(channels, dtype) for dtype in (torch.float32, torch.bfloat16)
             for channels in (40, 4 * LONGEST_RUN, 36, 128 // 4)}
    calls = {n: (x, w.to(x.dtype), b.to(x.dtype)) for n, (x, w, b) in calls.items()}
    lowered = {n: lower(fn, *args) for n, args in calls.items()}
    changed = {n: replace(k, group=replace(k.group, kernel=rewritten(k.group.kernel))) for n, k in lowered.items()}
    unit = CppUnit(changed, DiskCache(tmp_path))
    for name, args in calls.items():
        assert any(s.fold > 1 for s in changed[name].group.kernel.statements() if isinstance(s, Reduce))
        expected = fn(*args)
        assert_same(run_interpreter(changed[name], args), expected)
        assert_same(unit.run(name, changed[name], args), expected)


def test_a_loop_goes_over_the_channels_of_several_groups() -> None:
    text = print_function(rewritten(lower(normalised, *images(40)).group.kernel), "kernel")
    assert "40" in text and "j += 10" in text and "%" not in text


def test_other_rows_stay_as_they_are() -> None:
    """Runs that fill vectors, groups that lie apart, and images whose channels do."""
    x, weight, bias = images(4 * LONGEST_RUN + 4)
    for args in ((x, weight, bias), (images(40)[0].contiguous(), *images(40)[1:])):
        kernel = lower(normalised, *args).group.kernel
        assert take_groups_as_lanes(kernel) is kernel


def test_neighbours_are_folded_in_whole_groups() -> None:
    kernel = rewritten(lower(normalised, *images(40)).group.kernel)
    (nest,) = kernel.nests
    body = tuple(replace(s, fold=7) if isinstance(s, Reduce) else s for s in nest.body)
    with pytest.raises(InvalidKernel, match="whole numbers of groups"):
        verify(replace(kernel, nests=(Nest(nest.axes, body),)))


def test_what_a_group_has_in_common_is_stored_once() -> None:
    def loop_of_store(fn: Callable) -> str:
        kernel = rewritten(lower(fn, torch.randn(4, 22, 33)).group.kernel)
        return print_function(kernel, "k").split("o0[")[-2].rsplit("for (", 1)[-1].splitlines()[0]

    def cut(x: Tensor) -> Tensor:
        return x.unflatten(2, (3, 11)).unflatten(1, (2, 11))

    assert "j += 11" in loop_of_store(lambda x: cut(x).mean((2, 4)))
    assert "++j" in loop_of_store(lambda x: cut(x) - cut(x).mean((2, 4), keepdim=True))


def test_what_a_group_updates_is_not_updated_by_each_lane() -> None:
    """Running statistics in training, of images of a few pixels: memory that is read and written, one for a group."""
    def trained(x: Tensor, running: Tensor) -> Tensor:
        mean = x.mean((0, 2))
        running.copy_(running * 0.9 + mean * 0.1)
        return x - mean[:, None]

    x = torch.randn(8, 32, 4)
    kernel = lower(trained, x, torch.zeros(32)).group.kernel
    assert kernel.read & kernel.written and take_groups_as_lanes(kernel) is kernel
    alone = lower(lambda x: x - x.mean((0, 2))[:, None], x).group.kernel
    assert take_groups_as_lanes(alone) is not alone  # the same rows, and nothing that they update


def test_lanes_of_a_group_keep_what_they_read_apart_from_what_they_store() -> None:
    def deviations(x: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean((0, 2))
        return last * 0.9 + mean, x - mean[:, None]

    kernel = lower(deviations, torch.randn(8, 32, 4), torch.randn(32)).group.kernel
    assert inplace_pairs(kernel)["o0"] == ("i1",)
    assert inplace_pairs(rewritten(kernel))["o0"] == ()
