"""Rows summed by lanes: every way that a row's length can fall into steps, blocks and a rest."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rooffuse.codegen.build_cpp import FLAGS, find_compiler
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_lanes import BLOCK, BYTE_LANES, LANES, lane_blocks
from rooffuse.codegen.cpp_unit import print_function, print_unit
from torch import Tensor

from .kernels import CppUnit, assert_same, lower

#: One step, a rest alone, steps and a rest, one block, several, several and a rest, and 31 steps: no block of those.
SIZES = (32, 31, 37, 96, 300, 512, 544, 768, 1056, 2060, 4096, 1000)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(-1), (x * x).mean(-1)


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amax(-1), x.amin(-1)


def places(x: Tensor) -> tuple[Tensor, ...]:
    return x.argmax(-1), (x > 9).any(-1), (x < 9).all(-1), (x > 0).to(torch.int32).argmin(-1)


def rolled(x: Tensor) -> tuple[Tensor, Tensor]:
    around = x.roll(3, -1) * x + x.roll(-1, -1)
    return around.sum(-1), around


def masked(x: Tensor, keep: Tensor) -> Tensor:
    return torch.softmax(x.masked_fill(keep, -torch.inf), -1)


def around(x: Tensor) -> Tensor:
    return F.pad(x, (40, 40)).square().sum(-1)


def bordered(x: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(x, (2, 1, 2, -1), value=-2.0)
    return (padded * 0.3 + 3.1).sum(-1), padded.amax(-1)


@pytest.fixture(scope="module")
def unit(tmp_path_factory) -> tuple[CppUnit, dict]:
    calls = {}
    for size in SIZES:
        x = torch.randn(9, size, generator=torch.Generator().manual_seed(size))
        odd = x.clone()
        odd[1, 0], odd[2, -1], odd[3, size // 2], odd[4] = torch.nan, torch.nan, -torch.inf, torch.nan
        calls |= {f"moments {size}": (moments, (x,)), f"half {size}": (moments, (x.bfloat16().float(),)),
                  f"extremes {size}": (extremes, (odd,)), f"places {size}": (places, (odd,)),
                  f"rolled {size}": (rolled, (x,)), f"masked {size}": (masked, (x, x > 1)),
                  f"around {size}": (around, (x,)), f"bordered {size}": (bordered, (x[:2],))}
    lowered = {n: lower(fn, *args) for n, (fn, args) in calls.items()}
    return CppUnit(lowered, DiskCache(tmp_path_factory.mktemp("kernels"))), {n: (*calls[n], lowered[n]) for n in calls}


@pytest.mark.parametrize("what", ["moments", "half", "extremes", "places", "rolled", "masked", "around",
                                  "bordered"])
def test_rows_of_any_length(unit: tuple[CppUnit, dict], what: str) -> None:
    library, calls = unit
    for size in SIZES:
        fn, args, lowered = calls[f"{what} {size}"]
        expected = fn(*[a.double() if a.is_floating_point() else a for a in args])
        expected = [e.float() if e.is_floating_point() else e
                    for e in (expected if isinstance(expected, tuple) else (expected,))]
        assert_same(library.run(f"{what} {size}", lowered, args), expected)


@pytest.mark.parametrize("lanes", [LANES, BYTE_LANES])
def test_blocks_go_over_all_steps(lanes: int) -> None:
    for size in range(1, 5000, 7):
        runs = lane_blocks(size, lanes)
        assert [at for first, last, block in runs for at in range(first, last, block)] == sorted(
            {at for first, last, block in runs for at in range(first, last, block)})
        assert sum(last - first for first, last, _ in runs) == size // lanes * lanes and len(runs) <= 2
        for (_, before, _), (after, _, _) in zip(runs, runs[1:]):
            assert before == after
        for first, last, block in runs:
            assert block <= BLOCK and block % lanes == 0 and (last - first) % block == 0
        assert size // lanes <= 4 or max(block for _, _, block in runs) >= min(BLOCK // 4, size // lanes * lanes)


def test_lanes_are_as_many_as_the_narrowest_type_has() -> None:
    x = torch.randn(4, 512)
    assert f"[{LANES}]" in print_function(lower(moments, x).group.kernel, "kernel")
    assert f"[{BYTE_LANES}]" in print_function(lower(masked, x, x > 0).group.kernel, "kernel")
    assert "_of<" not in print_function(lower(moments, torch.randn(4, LANES - 1)).group.kernel, "kernel")


def test_places_of_extremes_are_found_by_lane() -> None:
    text = print_function(lower(places, torch.randn(4, 512)).group.kernel, "kernel")
    assert f"rf_first_max_of<{LANES}>" in text and f"rf_first_min_of<{LANES}>" in text


def test_a_row_that_is_rolled_around_is_read_in_runs() -> None:
    """Two for each way: a remainder for each element would be a gather."""
    text = print_function(lower(rolled, torch.randn(4, 512)).group.kernel, "kernel")
    assert "%" not in text and text.count("r0 = ") >= 3


def test_a_border_shorter_than_a_step_is_a_rest(unit: tuple[CppUnit, dict]) -> None:
    """Sums of equal numbers go by lane whatever g++ makes of their loop: one after the other they round to one side."""
    library, calls = unit
    for size in (32, 512, 768, 4096):
        fn, args, lowered = calls[f"bordered {size}"]
        assert f"rf_sum_of<{LANES}>" in print_function(lowered.group.kernel, "kernel")
        sums, exact = library.run(f"bordered {size}", lowered, args)[0].double(), fn(args[0].double())[0]
        assert float(((sums - exact) / exact).abs().max()) < 8 * 2.0**-24


def total_and_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    return (x * 0.3).sum(), x.sum((0, 2))


def total_and_product(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(), (x * 10).prod()


@pytest.mark.parametrize("fn", [total_and_columns, total_and_product])
def test_sums_over_several_loops_are_taken_in_parts(fn: Callable, tmp_path: Path) -> None:
    """So that none has thousands of terms, whose roundings all go to one side where they are equal."""
    args = (torch.full((160, 34, 2), 0.1),)
    lowered = lower(fn, *args)
    total = CppUnit({"fn": lowered}, DiskCache(tmp_path)).run("fn", lowered, args)[0].double()
    exact = fn(args[0].double())[0]
    assert float((total - exact).abs() / exact) < 32 * 2.0**-24


def test_a_condition_that_a_row_shares_is_asked_before_its_loop(tmp_path: Path) -> None:
    """Within it g++ adds one number after the other, with a condition on the row and results as long as it."""
    def fn(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (0, 1, 2, -1), value=-2.0)
        return (padded * 0.3 + a).sum(-1), padded

    args = torch.randn(2, 2048), torch.tensor([3.1])
    lowered = lower(fn, *args)
    text = print_function(lowered.group.kernel, "kernel")
    assert "= true;" in text.split("#pragma omp simd")[0]
    sums, exact = (CppUnit({"fn": lowered}, DiskCache(tmp_path)).run("fn", lowered, args)[0].double(),
                   fn(*[x.double() for x in args])[0])
    assert float(((sums - exact) / exact).abs().max()) < 32 * 2.0**-24


def test_a_sum_that_all_columns_share_leaves_them_the_lanes() -> None:
    """The loop goes along memory, and the shared sum is one number in it."""
    args = torch.randn(8, 64, 1024), torch.rand(8, 64)
    text = print_function(lower(lambda x, w: (x * (w / w.sum(0))[..., None]).sum(0), *args).group.kernel, "kernel")
    inner = re.findall(r"for \(int64_t j = 0; j < end - begin; \+\+j\) {\n\s*const int64_t (p\d)", text)
    assert set(inner) == {"p1"}
    assert len(re.findall(r"float acc_v\d+ = 0.0f;", text)) == 1


def assembly_of(fn: Callable, args: tuple[Tensor, ...], folder: Path) -> str:
    """What g++ makes of the kernel of ``fn``."""
    if platform.machine() != "x86_64" or "g++" not in Path(find_compiler()).name:
        pytest.skip("reads what g++ makes for x86")
    source = folder / "kernel.cpp"
    source.write_text(print_unit([lower(fn, *args).group.kernel], []))
    command = [find_compiler(), *FLAGS, "-DRF_FROM=0", "-DRF_TO=1", "-S", "-o", "-", str(source)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return found[found.index("kernel"):]


def test_a_value_rounded_on_the_way_keeps_its_loop_vectorised(tmp_path: Path) -> None:
    """Chosen as a constant for what is no number, the error function of it was scalar code, ten times as slow."""
    loop = assembly_of(lambda x: F.gelu((x * 3).bfloat16()), (torch.randn(64, 4096),), tmp_path)
    assert len(re.findall(r"div[ps]s\s", loop)) == len(re.findall(r"divps\s", loop)) > 0


@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.35"), reason="glibc has no such vector functions")
def test_a_sine_of_a_choice_is_one_of_vectors(tmp_path: Path) -> None:
    """A function that might write to memory would keep what is chosen before it from becoming a select."""
    loop = assembly_of(lambda x, w: (F.silu(x) * w).sin().sum(-1), (torch.randn(64, 4096), torch.randn(4096)), tmp_path)
    assert re.search(r"_ZGV[bcde]N\d+v_sinf", loop) and not re.search(r"\ssinf", loop)


def biased(x: Tensor, bias: Tensor, place: Tensor) -> Tensor:
    """Scores with what depends on how far apart two tokens are, as in DeBERTa (He et al., 2021)."""
    return torch.softmax(x + bias.gather(-1, place.expand_as(x)), -1)


@pytest.mark.parametrize("size", [64, 96, 1100, 3])
def test_rows_that_look_up_their_elements(size: int, tmp_path: Path) -> None:
    """Places are checked in vectors, an index out of range is told of, and nothing is looked up once more."""
    args = torch.randn(40, size), torch.randn(40, 50), torch.randint(0, 50, (1, size))
    lowered = lower(biased, *args)
    text = print_function(lowered.group.kernel, "kernel")
    exponentials = text.split("rf_exp_below")[0].rsplit("for (", 1)[1]
    assert "rf_within(" in text and "rf_bounded" not in text and "rf_within" not in exponentials
    unit = CppUnit({"fn": lowered}, DiskCache(tmp_path))
    assert_same(unit.run("fn", lowered, args), [biased(*args)])
    with pytest.raises(IndexError):
        unit.run("fn", lowered, (*args[:2], args[2].index_fill(1, torch.tensor([size - 1]), 50)))


@pytest.mark.parametrize("fn", [lambda x, place: x[:, place].amax(-1), lambda x, place: x[:, place].argmax(-1),
                                lambda x, place: (x[:, place].sum(-1), x[:, place].square())])
def test_rows_of_what_was_looked_up(fn: Callable, tmp_path: Path) -> None:
    args = torch.randn(40, 50), torch.randint(0, 50, (300,))
    lowered = lower(fn, *args)
    wanted = fn(*args)
    unit = CppUnit({"fn": lowered}, DiskCache(tmp_path))
    assert_same(unit.run("fn", lowered, args), [wanted] if isinstance(wanted, Tensor) else list(wanted))
    with pytest.raises(IndexError):
        unit.run("fn", lowered, (args[0], args[1].index_fill(0, torch.tensor([299]), 50)))
