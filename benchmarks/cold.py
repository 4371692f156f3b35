"""Compile times in fresh processes: with fresh caches (cold), and again with the caches just filled (warm).

    python -m benchmarks.cold SUITE CASE DTYPE DEVICE CONTENDER      prints seconds from call to result
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time


def measure(suite: str, case: str, dtype: str, device: str, contender: str) -> tuple[float, float]:
    """``(cold seconds, warm seconds)`` of the first call, imports and model building not counted."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder + "/triton",
                   "ROOFFUSE_CACHE_DIR": folder + "/rooffuse"}
        command = [sys.executable, "-m", "benchmarks.cold", suite, case, dtype, device, contender]
        times = []
        for _ in range(2):
            result = subprocess.run(command, env=environ, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"{' '.join(command[2:])} failed:\n{result.stderr[-2000:]}")
            times.append(float(result.stdout.split()[-1]))
        return times[0], times[1]


def _first_call(suite: str, name: str, dtype: str, device: str, contender: str) -> float:
    import torch

    from .cases import DTYPES, cases_of
    from .contenders import CONTENDERS

    found = next(c for c in cases_of(suite, name) if c.name == name)
    fn, args = found.make(device, DTYPES[dtype])
    with torch.set_grad_enabled(found.training):
        fn(*args)
        start = time.perf_counter()
        CONTENDERS[contender](fn)(*args)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


if __name__ == "__main__":
    print(_first_call(*sys.argv[1:6]))
