"""Compiles a C++ translation unit to a shared library and loads it, through the on-disk cache."""
from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from .cache import DiskCache, digest
from .cpp_unit import kernel_loops

log = logging.getLogger(__name__)

#: Those that g++ and clang++ both know; what only g++ does is in a pragma of the text's head (cpp_spelling).
FLAGS: tuple[str, ...] = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv",
    "-fopenmp", "-fPIC", "-w",
    # g++ makes one scalar sincos of a sine and a cosine of the same angle, and the loop around it scalar, too.
    "-fno-builtin-sin", "-fno-builtin-cos", "-fno-builtin-sinf", "-fno-builtin-cosf")
# g++ takes 256-bit vectors by default where the processor has 512: kernels here were 15 to 25% slower with those.
if platform.machine() == "x86_64":
    FLAGS += ("-mprefer-vector-width=512",)
LIBRARIES = ("-lm",)
#: Fewest loops that are worth a compiler of their own: g++ takes some 7 ms for each, 25 for a unit and 50 to link.
LEAST_PART = 12


class CompilerMissing(RuntimeError):
    """No C++ compiler was found."""


class CompilationFailed(RuntimeError):
    """The C++ compiler refused a translation unit; the message has its first lines of output."""


def find_compiler() -> str:
    """Path of the C++ compiler: ``$CXX``'s first word, else g++, else clang++. Raises CompilerMissing."""
    wanted = os.environ.get("CXX", "").split()
    for name in (*wanted[:1], "g++", "clang++"):
        path = shutil.which(name)
        if path:
            return path
    raise CompilerMissing(
        "no C++ compiler found (looked for $CXX, g++ and clang++ on PATH); install one, for example with "
        "`apt-get install g++` or `conda install gxx`")


@functools.lru_cache(maxsize=8)
def compiler_identity(compiler: str) -> str:
    """What distinguishes this compiler and processor from others: part of every cache key."""
    stat = os.stat(os.path.realpath(compiler))
    return f"{os.path.realpath(compiler)}:{stat.st_size}:{stat.st_mtime_ns}:{_processor()}"


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    """Model and instruction sets of the processor, because of ``-march=native``."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return digest(*[x for x in lines if x.startswith(("model name", "flags", "Features", "CPU part"))])
    except OSError:
        return platform.processor()


def compile_library(source: str, cache: DiskCache, compiler: str | None = None) -> Path:
    """Path of the shared library for ``source``; the compiler runs only if the cache hasn't got it.

    Raises CompilerMissing or CompilationFailed.
    """
    compiler = compiler or find_compiler()
    key = digest(source, " ".join((*FLAGS, *LIBRARIES)), compiler_identity(compiler))

    def build(path: Path) -> None:
        text = path.with_suffix(".cpp")
        text.write_text(source)
        parts = {path.with_suffix(f".{a}.o"): (a, b) for a, b in _parts(kernel_loops(source), _processors())}
        try:
            if len(parts) < 2:
                _run([compiler, *FLAGS, "-shared", str(text), "-o", str(path), *LIBRARIES])
                return
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(lambda part: _run([compiler, *FLAGS, "-c", f"-DRF_FROM={parts[part][0]}",
                                                 f"-DRF_TO={parts[part][1]}", str(text), "-o", str(part)]), parts))
            _run([compiler, *FLAGS, "-shared", *map(str, parts), "-o", str(path), *LIBRARIES])
        finally:
            for file in (text, *parts):
                file.unlink(missing_ok=True)

    return cache.get(key, ".so", build)


def _run(command: list[str]) -> None:
    log.debug("running %s", " ".join(command))
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        first = "\n".join(result.stderr.splitlines()[:20])
        raise CompilationFailed(f"{command[0]} failed on a generated translation unit:\n{first}")


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _parts(loops: Sequence[int], processors: int) -> list[tuple[int, int]]:
    """Ranges of kernels, by number, that are compiled side by side: of about as many loops each."""
    count = max(1, min(processors, sum(loops) // LEAST_PART))
    edges, done = [0], 0
    for number, own in enumerate(loops):
        done += own
        if done * count >= sum(loops) * len(edges):
            edges.append(number + 1)
    return list(pairwise([*edges[:-1], len(loops)]))


def load_library(path: Path) -> ctypes.CDLL:
    """The library with ``rooffuse_run``'s signature set."""
    library = ctypes.CDLL(str(path))
    library.rooffuse_run.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    library.rooffuse_run.restype = ctypes.c_int
    return library
