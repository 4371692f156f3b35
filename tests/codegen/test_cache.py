"""The cache of compiled kernels: damaged entries, several processes, no second compilation."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rooffuse.codegen.build_cpp import CompilationFailed, compile_library, find_compiler, load_library
from rooffuse.codegen.cache import DiskCache, digest

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
