"""Compile times in fresh processes: with empty caches, with caches that another function filled, and again with the
case's own results in them.

    python -m benchmarks.cold SUITE CASE DTYPE DEVICE CONTENDER      prints seconds from call to result
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

#: A small case whose compilation leaves behind what others can use, such as Inductor's precompiled header.
PRIMER = ("kernels", "small_mlp_tail")
TIMEOUT_S = 600


@dataclass(frozen=True)
class CompileTimes:
    """Seconds of the first call, imports and model building not counted. ``primed_s`` is None if not asked for."""

    cold_s: float
    warm_s: float
    primed_s: float | None = None


def _in_fresh_process(folder: str, *words: str) -> float:
    environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder + "/triton",
               "ROOFFUSE_CACHE_DIR": folder + "/rooffuse"}
    command = [sys.executable, "-m", "benchmarks.cold", *words]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"compiling {' '.join(words)} in a fresh process failed: {last}")
    return float(result.stdout.split()[-1])


def measure(suite: str, case: str, dtype: str, device: str, contender: str, primed: bool = False) -> CompileTimes:
    """Compile times of one contender. Raises RuntimeError with the process's last line if it fails, and
    subprocess.TimeoutExpired."""
    words = (suite, case, dtype, device, contender)
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (_in_fresh_process(folder, *words) for _ in range(2))
    if not primed:
        return CompileTimes(cold, warm)
    with tempfile.TemporaryDirectory() as folder:
        _in_fresh_process(folder, *PRIMER, dtype, device, contender)
        return CompileTimes(cold, warm, _in_fresh_process(folder, *words))


def first_call(suite: str, name: str, dtype: str, device: str, contender_name: str) -> float:
    """Seconds of the first call; eager has run the case once before."""
    import torch

    from .cases import DTYPES, case_named
    from .contenders import as_call, contender
    from .measure import synchronize

    case = case_named(suite, name)
    fn, args = case.make(device, DTYPES[dtype])
    with torch.set_grad_enabled(case.training):
        as_call(case, fn, fn)(*args)
        synchronize(device)
        start = time.perf_counter()
        as_call(case, fn, contender(contender_name, fn, case))(*args)
        synchronize(device)
        return time.perf_counter() - start


if __name__ == "__main__":
    print(first_call(*sys.argv[1:6]))
