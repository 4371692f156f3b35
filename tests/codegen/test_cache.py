"""The cache of compiled kernels: damaged entries, several processes, no second compilation."""

from __future__ import annotations

import ctypes
import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rooffuse.codegen import build_cpp
from rooffuse.codegen.build_cpp import CompilationFailed, compile_library, find_compiler, load_library
from rooffuse.codegen.cache import DiskCache, digest
from rooffuse.codegen.cpp_unit import print_unit
from torch.nn import functional as F

from .kernels import Memory, lower

SOURCE = 'extern "C" int rooffuse_run(long, long, void* const*) { return %d; }\n'


def counting_compiler(folder: Path, seconds: float = 0) -> tuple[Path, Path]:
    """A compiler that appends a line to a log for each start."""
    log, script = folder / "starts", folder / "compiler"
    script.write_text(f'#!/bin/sh\necho start >> "{log}"\nsleep {seconds}\nexec "{find_compiler()}" "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    return script, log


def starts(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_second_request_does_not_compile(tmp_path: Path) -> None:
    compiler, log = counting_compiler(tmp_path)
    first = compile_library(SOURCE % 1, DiskCache(tmp_path / "cache"), str(compiler))
    second = compile_library(SOURCE % 1, DiskCache(tmp_path / "cache"), str(compiler))
    assert first == second and starts(log) == 1
    assert load_library(first).rooffuse_run(0, 0, None) == 1


def test_another_source_is_another_entry(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    assert compile_library(SOURCE % 2, cache) != compile_library(SOURCE % 3, cache)


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(p.read_bytes()[:100]),
        lambda p: p.write_bytes(b""),
        lambda p: p.unlink(),
        lambda p: Path(f"{p}.sha256").unlink(),
    ],
    ids=["cut", "emptied", "deleted", "without checksum"],
)
def test_damaged_entry_is_built_again(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler, log = counting_compiler(tmp_path)
    cache = DiskCache(tmp_path / "cache")
    path = compile_library(SOURCE % 4, cache, str(compiler))
    damage(path)
    with caplog.at_level(logging.WARNING, logger="rooffuse"):
        again = compile_library(SOURCE % 4, cache, str(compiler))
    assert again == path and starts(log) == 2
    assert load_library(path).rooffuse_run(0, 0, None) == 4
    gone = damage.__code__.co_names[0] == "unlink"
    assert gone or any("damaged" in r.getMessage() for r in caplog.records)


def test_processes_that_ask_at_once_compile_once(tmp_path: Path) -> None:
    compiler, log = counting_compiler(tmp_path, seconds=0.5)
    code = (
        f"from pathlib import Path; from rooffuse.codegen.cache import DiskCache\n"
        f"from rooffuse.codegen.build_cpp import compile_library, load_library\n"
        f"print('ready', flush=True); input()\n"
        f"p = compile_library({SOURCE % 5!r}, DiskCache(Path({str(tmp_path / 'cache')!r})), {str(compiler)!r})\n"
        f"assert load_library(p).rooffuse_run(0, 0, None) == 5"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    assert [w.wait(timeout=60) for w in workers] == [0, 0]
    for worker in workers:
        worker.stdin.close()
        worker.stdout.close()
    assert starts(log) == 1


def test_refused_source_leaves_no_entry(tmp_path: Path) -> None:
    with pytest.raises(CompilationFailed, match="error"):
        compile_library("this is not C++", DiskCache(tmp_path))
    assert not list(tmp_path.rglob("*.so")) and not list(tmp_path.rglob("*.cpp"))


def test_failed_build_leaves_the_lock_free(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("no")

    cache = DiskCache(tmp_path)
    with pytest.raises(RuntimeError):
        cache.get("ab", ".txt", fail)
    start = time.monotonic()
    assert cache.get("ab", ".txt", lambda p: p.write_text("x") and None).read_text() == "x"
    assert time.monotonic() - start < 5


def test_digest_delimits_its_parts() -> None:
    assert digest("ab", "c") != digest("a", "bc")


def test_second_process_makes_no_device_code(tmp_path: Path) -> None:
    code = """
import sys, torch, triton.backends.nvidia.compiler as nvidia
from pathlib import Path
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.lower_group import lower_group
from rooffuse.codegen.triton_kernel import print_kernel
from torch.fx.experimental.proxy_tensor import make_fx
calls, original = [], nvidia.CUDABackend.make_cubin
nvidia.CUDABackend.make_cubin = lambda *a, **k: (calls.append(a), original(*a, **k))[1]
graph = make_fx(lambda x: (x * 2).sum(-1), tracing_mode="fake")(torch.randn(8, 64)).graph
compile_for(print_kernel(lower_group(graph).kernel), DiskCache(Path(sys.argv[1])), 90)
print(len(calls))
"""
    environ = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    command = [sys.executable, "-c", code, str(tmp_path / "kernels")]
    runs = [subprocess.run(command, capture_output=True, text=True, env=environ, check=True) for _ in range(2)]
    assert [r.stdout.split()[-1] for r in runs] == ["1", "0"]


@pytest.mark.parametrize("processors, compilers", [(1, 1), (2, 3), (64, 6)])
def test_kernels_are_compiled_side_by_side(processors: int, compilers: int, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compiler makes kernels of its own, and one links them; one of them looks up places, which it may fail in."""
    monkeypatch.setattr(build_cpp, "LEAST_PART", 2)
    monkeypatch.setattr(build_cpp, "_processors", lambda: processors)
    inputs = [torch.randn(40, 30), torch.tensor([3, 39, 0])]
    functions = [torch.softmax, lambda x, _: x.exp(), lambda x, _: F.layer_norm(x, (30,)), lambda x, _: x.sum(-1)]
    kernels = [lower(lambda x, f=f: f(x, -1), inputs[0]) for f in functions] + [lower(lambda x, i: x[i], *inputs)]
    memories = [Memory(k, inputs[:1] if k is not kernels[-1] else inputs) for k in kernels]
    table, calls = [], []
    for number, memory in enumerate(memories):
        tensors = memory.all_flat()
        calls.append((number, tuple(range(len(table), len(table) + len(tensors)))))
        table += tensors
    compiler, log = counting_compiler(tmp_path)
    source = print_unit([k.group.kernel for k in kernels], calls)
    library = load_library(compile_library(source, DiskCache(tmp_path / "cache"), str(compiler)))
    assert starts(log) == compilers and not list(tmp_path.rglob("*.o"))
    pointers = (ctypes.c_void_p * len(table))(*[t.data_ptr() for t in table])
    assert library.rooffuse_run(0, len(calls), ctypes.addressof(pointers)) == 0
    for function, memory in zip(functions, memories):
        torch.testing.assert_close(memory.results()[0], function(inputs[0], -1))
    assert torch.equal(memories[-1].results()[0], inputs[0][inputs[1]])
    inputs[1][1] = 40
    failing = Memory(kernels[-1], inputs).all_flat()
    pointers = (ctypes.c_void_p * len(table))(*[t.data_ptr() for t in [*table[:-len(failing)], *failing]])
    assert library.rooffuse_run(len(calls) - 1, len(calls), ctypes.addressof(pointers)) == 1


def test_a_part_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cpp, "LEAST_PART", 1)
    monkeypatch.setattr(build_cpp, "_processors", lambda: 2)
    kernel = lower(torch.exp, torch.randn(40)).group.kernel
    source = print_unit([kernel, kernel], [(0, (0, 1)), (1, (0, 1))])
    with pytest.raises(CompilationFailed, match="this is no C"):
        compile_library(source.replace("#if RF_HERE(1)\n", "#if RF_HERE(1)\nthis is no C\n"), DiskCache(tmp_path))
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".o", ".cpp", ".so")]


def test_parts_have_about_as_many_loops() -> None:
    assert build_cpp._parts([], 4) == [] and build_cpp._parts([3], 4) == [(0, 1)]
    assert build_cpp._parts([9, 2, 7, 4, 7, 4, 7, 8, 7], 2) == [(0, 5), (5, 9)]
    for loops in ([1] * 100, [50, 1, 1, 1], [1, 1, 1, 50], [7, 50, 9, 50, 1]):
        for processors in (1, 2, 3, 16):
            parts = build_cpp._parts(loops, processors)
            assert len(parts) <= min(processors, max(1, sum(loops) // build_cpp.LEAST_PART))
            assert [k for a, b in parts for k in range(a, b)] == list(range(len(loops)))
            assert all(b > a for a, b in parts)
