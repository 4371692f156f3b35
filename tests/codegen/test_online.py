"""Online sums: one sweep for a maximum and the exponentials relative to it, or for a mean and the squares of distances
from it, with the values that make it hard."""
from __future__ import annotations

import ctypes

import pytest
import torch
from rooffuse.codegen import triton_kernel, triton_tiles
from rooffuse.codegen.build_cpp import compile_library, load_library
from rooffuse.codegen.build_triton import load_launcher
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.cpp_unit import print_unit
from rooffuse.codegen.interpret import interpret
from rooffuse.codegen.lower_group import lower_group
from rooffuse.codegen.online import merge_deviations, merge_online
from rooffuse.codegen.sweeps import plan_phases
from rooffuse.codegen.verify import verify
from torch.fx.experimental.proxy_tensor import make_fx

INF, NAN = float("inf"), float("nan")


def log_sum(x):
    largest = x.amax(-1, keepdim=True)
    total = (x - largest).exp().sum(-1, keepdim=True)
    return (x - largest).exp() / total, total, (largest + total.log()).squeeze(-1)


def log_sum_exp(x):
    """As the logarithm of a sum of exponentials is decomposed: an infinite maximum isn't subtracted."""
    largest = x.amax(-1, keepdim=True)
    shift = torch.where(largest.isinf(), 0.0, largest)
    total = (x - shift).exp().sum(-1, keepdim=True)
    return total, total.log() + shift, x.mean(-1)


def hard_rows(width):
    torch.manual_seed(0)
    x = torch.randn(9, width) * 3
    x[1] = -INF
    x[2, : width // 2] = -INF
    x[3, 7] = INF
    x[4, 9] = NAN
    x[5, 3:] = -INF
    x[6] = x[6].sort()[0]
    x[7, 0] = -INF
    return x


def lowered(x, fn=log_sum):
    group = lower_group(make_fx(fn, tracing_mode="fake")(x).graph)
    return group, verify(merge_online(group.kernel, lambda kernel, nest: True))


def run_cpp(kernel, buffers, folder):
    ordered = [buffers[b.name] for b in kernel.buffers]
    unit = print_unit([kernel], [(0, tuple(range(len(ordered))))])
    library = load_library(compile_library(unit, DiskCache(folder)))
    assert library.rooffuse_run(0, 1, (ctypes.c_void_p * len(ordered))(*[t.data_ptr() for t in ordered])) == 0


@pytest.mark.parametrize("width", [16, 63, 1000, 5000])
@pytest.mark.parametrize("how", ["interpreter", "cpp", "triton persistent", "triton looped"])
@pytest.mark.parametrize("fn", [log_sum, log_sum_exp])
def test_values_that_have_no_finite_maximum(fn, how, width, tmp_path, monkeypatch):
    x = hard_rows(width)
    group, kernel = lowered(x, fn)
    outputs = [torch.full_like(r, 77.0) for r in fn(x)]
    buffers = {**dict.fromkeys(group.inputs, x), **{name: outputs[k] for name, k in group.outputs.items()}}
    if how == "interpreter":
        interpret(kernel, {name: t.reshape(-1) for name, t in buffers.items()})
    elif how == "cpp":
        run_cpp(kernel, buffers, tmp_path)
    else:
        monkeypatch.setattr(triton_tiles, "PERSISTENT_ELEMENTS", 1 << 20 if "persistent" in how else 0)
        load_launcher(triton_kernel.print_kernel(kernel), DiskCache(tmp_path), torch.device("cpu"), interpreted=True)(
            *[buffers[b.name] for b in kernel.buffers])
    for ours, reference in zip(outputs, fn(x)):
        torch.testing.assert_close(ours, reference, equal_nan=True, atol=1e-5, rtol=1e-5)


def normalized(x):
    away = x - x.mean(-1, keepdim=True)
    squares = (away * away).sum(-1, keepdim=True)
    return away * (squares / x.shape[-1] + 1e-5).rsqrt(), squares, x.sum(-1)


def far_rows(width, dtype):
    """Rows whose mean is far away from zero, whose first element is, that are constant, and that aren't finite."""
    torch.manual_seed(0)
    x = torch.randn(9, width, dtype=torch.float64)
    x[1] += 1000
    x[2, 0] = 1e4
    x[3] = 7.25
    x[4, width // 2] = INF
    x[5, width - 1] = NAN
    x[6] = torch.linspace(-5, 900, width)
    return x.to(dtype)


@pytest.mark.parametrize("width", [16, 63, 1000, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["interpreter", "persistent", "looped"])
def test_deviations_are_as_exact_as_in_two_sweeps(how, dtype, width, tmp_path, monkeypatch):
    x = far_rows(width, dtype)
    group = lower_group(make_fx(normalized, tracing_mode="fake")(x).graph)
    kernel = verify(merge_deviations(group.kernel, lambda kernel, nest: True))
    assert [sum(p.sweep for p in plan_phases(k.nests[0])) for k in (group.kernel, kernel)] == [3, 2]
    outputs = [torch.full_like(r, 77.0) for r in normalized(x)]
    buffers = {**dict.fromkeys(group.inputs, x), **{name: outputs[k] for name, k in group.outputs.items()}}
    if how == "interpreter":
        interpret(kernel, {name: t.reshape(-1) for name, t in buffers.items()})
    else:
        monkeypatch.setattr(triton_tiles, "PERSISTENT_ELEMENTS", 1 << 20 if how == "persistent" else 0)
        source = triton_kernel.print_kernel(kernel)
        assert source.persistent == (how == "persistent")
        load_launcher(source, DiskCache(tmp_path), torch.device("cpu"), interpreted=True)(
            *[buffers[b.name] for b in kernel.buffers])
    near = 2e-5 if dtype == torch.float32 else 1e-12
    scale = x.double().abs().amax(-1, keepdim=True).nan_to_num(1, 1)
    for ours, exact, unit in zip(outputs, normalized(x.double()), (scale, 1, scale[:, 0] * width)):
        torch.testing.assert_close(ours.double() / unit, exact / unit, equal_nan=True, atol=near, rtol=near)


def test_sums_of_other_squares_stay():
    def others(x):
        mean, away = x.mean(-1, keepdim=True), x - 1.0
        short = x - x.sum(-1, keepdim=True) / (x.shape[-1] - 1)
        return (away * away).sum(-1), (short * short).sum(-1), ((x - mean) * x).sum(-1), ((2 * x - mean) ** 2).sum(-1)

    kernel = lower_group(make_fx(others, tracing_mode="fake")(torch.randn(4, 100)).graph).kernel
    assert merge_deviations(kernel, lambda kernel, nest: True) == kernel


def test_it_saves_a_sweep():
    group, kernel = lowered(torch.randn(4, 100))
    before, after = (sum(p.sweep for p in plan_phases(k.nests[0])) for k in (group.kernel, kernel))
    assert (before, after) == (3, 2)
    assert sum(p.sweep for p in plan_phases(lowered(torch.randn(4, 100), log_sum_exp)[1].nests[0])) == 1


def test_other_sums_stay():
    def variance(x):
        centred = x - x.mean(-1, keepdim=True)
        largest = x.amax(-1, keepdim=True)
        floor = torch.where(largest.isinf(), 1.0, largest)
        return (centred * centred).sum(-1), (x - x.amin(-1, keepdim=True)).exp().sum(-1), (x - floor).exp().sum(-1)

    kernel = lower_group(make_fx(variance, tracing_mode="fake")(torch.randn(4, 100)).graph).kernel
    assert merge_online(kernel, lambda kernel, nest: True) == kernel
