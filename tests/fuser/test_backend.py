"""The entry point as users meet it: torch.compile(..., backend="rooffuse")."""
from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest
import torch
import torch._dynamo
from rooffuse.compile import FallbackError


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setenv("ROOFFUSE_CACHE_DIR", str(tmp_path / "cache"))


def compiled(fn, **options):
    return torch.compile(fn, backend="rooffuse", options={"strict": True, **options})


def test_backend_is_found_without_an_import():
    code = "import torch; print('rooffuse' in torch.compiler.list_backends())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"


def test_strides_of_outputs_are_kept():
    def fn(x):
        return (x + 1).t(), x.permute(1, 0).relu(), x.t() * 2

    x = torch.randn(5, 7)
    for ours, reference in zip(compiled(fn)(x), fn(x)):
        assert ours.stride() == reference.stride()
        torch.testing.assert_close(ours, reference)


def test_outputs_of_two_calls_do_not_share_memory():
    run = compiled(lambda x: x * 2)
    first = run(torch.ones(100))
    run(torch.zeros(100))
    assert torch.equal(first, torch.full((100,), 2.0))


def test_input_mutations_are_kept_through_views():
    def fn(x, y):
        x[1:3].mul_(2)
        y.add_(x.sum())
        return x + y

    ours = [torch.ones(4, 4), torch.zeros(4)]
    reference = [t.clone() for t in ours]
    torch.testing.assert_close(compiled(fn)(*ours), fn(*reference))
    for a, b in zip(ours, reference):
        torch.testing.assert_close(a, b)


def test_a_cache_is_updated_in_place():
    cache = torch.zeros(2, 16, 8)

    def step(cache, k, position):
        cache.index_copy_(1, position, k)
        return cache.sum(1)

    reference = cache.clone()
    run = compiled(step)
    for t in range(4):
        k = torch.randn(2, 1, 8)
        address = cache.data_ptr()
        torch.testing.assert_close(run(cache, k, torch.tensor([t])), step(reference, k, torch.tensor([t])))
        assert cache.data_ptr() == address
        torch.testing.assert_close(cache, reference)


def test_the_run_function_is_boxed():
    from rooffuse.compile import compile_graph
    from rooffuse.options import make_options
    from rooffuse.targets import local_target

    from tests.fuser.graphs import trace

    program = compile_graph(trace(lambda x: x + 1, torch.ones(3)), local_target([]), make_options())
    args = [torch.ones(3)]
    (out,) = program(args)
    assert args == []
    assert program.function._boxed_call
    torch.testing.assert_close(out, torch.full((3,), 2.0))


def test_a_result_of_other_sizes_than_traced_is_no_kernels_input():
    """Its fake kernel says one element, as that of ``_unique`` did in torch 2.11."""
    with torch.library._scoped_library("rooffuse_test", "FRAGMENT") as library:
        library.define("several(Tensor x) -> Tensor")
        library.impl("several", lambda x: x.unique(), "CPU")
        library.impl("several", lambda x: x.new_empty(1), "Meta")
        run = compiled(lambda x: torch.ops.rooffuse_test.several(x) * 2)
        assert run(torch.ones(3)) == 2
        with pytest.raises(RuntimeError, match=r"several\.default\) gave sizes \(3,\) where torch .* traced \(1,\)"):
            run(torch.arange(3.0))


def test_training_step_matches_eager():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.LayerNorm(32), torch.nn.GELU(),
                                torch.nn.Linear(32, 4))
    x = torch.randn(8, 16)
    model(x).softmax(-1).square().sum().backward()
    reference = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled(model)(x).softmax(-1).square().sum().backward()
    for p, grad in zip(model.parameters(), reference):
        torch.testing.assert_close(p.grad, grad)


def test_dynamic_shapes_are_right_for_every_size():
    run = torch.compile(lambda x: torch.softmax(x * 2, -1).sum(0), backend="rooffuse", dynamic=True)
    for n in (1, 2, 3, 7, 17, 33, 64):
        x = torch.randn(n, n + 1)
        torch.testing.assert_close(run(x), torch.softmax(x * 2, -1).sum(0))


def test_more_sizes_than_are_kept_still_give_right_results(caplog):
    from rooffuse.specialise import MAX_SPECIALISATIONS

    run = torch.compile(lambda x: (x * 2).relu(), backend="rooffuse", dynamic=True)
    with caplog.at_level(logging.WARNING, logger="rooffuse.specialise"):
        for n in range(2, MAX_SPECIALISATIONS + 6):
            x = torch.randn(n, 3)
            torch.testing.assert_close(run(x), (x * 2).relu())
    assert sum("combinations of sizes" in r.message for r in caplog.records) == 1


def test_no_recompilation_without_a_reason():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("rooffuse")
    run = torch.compile(lambda x: x * 2 + 1, backend=counter)
    for _ in range(5):
        run(torch.randn(4, 4))
    assert counter.frame_count == 1


def test_dropout_draws_what_eager_draws():
    x = torch.randn(64, 64)
    torch.manual_seed(3)
    reference = torch.nn.functional.dropout(x, 0.4)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(lambda x: torch.nn.functional.dropout(x, 0.4))(x), reference)


def test_an_index_out_of_range_raises():
    run = compiled(lambda w, i: torch.nn.functional.embedding(i, w) * 2)
    run(torch.randn(10, 4), torch.tensor([0, 9]))
    with pytest.raises(IndexError, match="out of range"):
        run(torch.randn(10, 4), torch.tensor([0, 10]))


def test_without_a_compiler_it_warns_once_and_runs(monkeypatch):
    import rooffuse.compile as stage
    from rooffuse.codegen import build_cpp

    monkeypatch.setattr(build_cpp.shutil, "which", lambda name: None)
    monkeypatch.setattr(stage, "_warned", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in range(2):
            torch._dynamo.reset()
            run = torch.compile(lambda x, k=k: (x * (k + 2)).softmax(-1), backend="rooffuse")
            x = torch.randn(4, 9)
            torch.testing.assert_close(run(x), (x * (k + 2)).softmax(-1))
    ours = [w for w in caught if "rooffuse" in str(w.message)]
    assert len(ours) == 1
    assert "apt-get install g++" in str(ours[0].message)


def test_strict_raises_where_a_kernel_would_fall_back(monkeypatch):
    from rooffuse.codegen import build_cpp

    monkeypatch.setattr(build_cpp.shutil, "which", lambda name: None)
    with pytest.raises(Exception, match="can't be compiled") as caught:
        compiled(lambda x: x * 2)(torch.ones(3))
    assert FallbackError.__name__ in str(type(caught.value)) or "can't be compiled" in str(caught.value)


def test_a_kernel_that_the_compiler_refuses_falls_back_alone(monkeypatch):
    import rooffuse.compile as stage
    from rooffuse.codegen.ir import Compute

    whole = stage.print_unit

    def sabotaged(kernels, calls, schedules):
        text = whole(kernels, calls, schedules)
        bad = any(isinstance(s, Compute) and s.op == "tanh" for k in kernels for s in k.statements())
        return text + ("\nthis is no C++\n" if bad else "")

    monkeypatch.setattr(stage, "print_unit", sabotaged)
    run = torch.compile(lambda x, w: (torch.tanh(x) @ w).relu() + 1, backend="rooffuse")
    x, w = torch.randn(8, 8), torch.randn(8, 8)
    torch.testing.assert_close(run(x, w), (torch.tanh(x) @ w).relu() + 1)


def test_eager_casts_round_like_eager():
    def fn(x):
        return ((x + 1) * 3 - x) / 7

    x = torch.randn(1000).to(torch.bfloat16)
    assert torch.equal(compiled(fn, eager_casts=True)(x), fn(x))


def test_dump_writes_every_stage(tmp_path):
    folder = tmp_path / "dump"
    compiled(lambda x, w: (x @ w).relu(), dump=str(folder))(torch.randn(4, 4), torch.randn(4, 4))
    (graph,) = folder.iterdir()
    names = {p.name for p in graph.iterdir()}
    assert {"groups.txt", "fused_graph.txt", "kernels.txt", "kernels.cpp", "memory.txt", "run.py"} <= names
    assert any("decompose" in n for n in names)
    assert "relu" in (graph / "groups.txt").read_text()


def test_concurrent_calls_do_not_share_an_arena():
    from concurrent.futures import ThreadPoolExecutor

    def fn(x, w):
        return ((x @ w).relu() @ w).softmax(-1)

    run = compiled(fn)
    w = torch.randn(64, 64)
    run(torch.randn(64, 64), w)
    inputs = [torch.randn(64, 64) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for x, ours in zip(inputs, pool.map(lambda x: run(x, w), inputs)):
            torch.testing.assert_close(ours, fn(x, w))


def test_second_process_compiles_nothing(tmp_path):
    code = (
        "import torch, sys\n"
        "from rooffuse.codegen import build_cpp\n"
        "calls = []\n"
        "original = build_cpp.subprocess.run\n"
        "build_cpp.subprocess.run = lambda *a, **k: (calls.append(a), original(*a, **k))[1]\n"
        "run = torch.compile(lambda x: x.softmax(-1) * 2, backend='rooffuse', options={'strict': True})\n"
        "run(torch.ones(4, 5))\n"
        "print(len(calls))\n")
    import os

    environ = {**os.environ, "ROOFFUSE_CACHE_DIR": str(tmp_path / "shared")}
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ) for _ in range(2)]
    assert [r.stdout.strip() for r in runs] == ["1", "0"], runs[0].stderr + runs[1].stderr


def test_a_cache_position_out_of_range_raises_and_writes_nothing():
    run = compiled(lambda cache, k, position: cache.index_copy_(1, position, k * 2).sum())
    cache = torch.zeros(2, 8, 4)
    run(cache, torch.ones(2, 1, 4), torch.tensor([7]))
    assert cache.sum() == 2 * 4 * 2
    before = cache.clone()
    with pytest.raises(IndexError, match="out of range"):
        run(cache, torch.ones(2, 1, 4), torch.tensor([8]))
    assert torch.equal(cache, before)


def test_a_cache_write_is_part_of_the_kernel_that_makes_its_rows():
    from rooffuse.compile import kernel_steps, plan_graph
    from rooffuse.cost_model import get_device
    from rooffuse.options import Options
    from rooffuse.targets import target_for

    from tests.fuser.graphs import trace

    def step(cache, k, position, scale):
        cache.index_copy_(1, position, k * scale)
        return k + 1

    gm = trace(step, torch.zeros(2, 8, 4), torch.ones(2, 1, 4), torch.tensor([3]), torch.ones(4))
    plan = plan_graph(gm, target_for(get_device("h100")), Options(verify=True))
    assert len(plan.program.steps) == len(kernel_steps(plan.program)) == 1
