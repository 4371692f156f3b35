"""Progress of a run: a bar where tqdm is installed and someone looks, plain lines otherwise."""
from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Counts ``total`` jobs on standard error; `line` prints a result on standard output without breaking the bar."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.perf_counter()
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, unit="case", leave=False)

    def line(self, text: str) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.write(text)
            self._bar.update()
        else:
            seconds = time.perf_counter() - self._start
            print(f"[{self._done}/{self._total}, {seconds:.0f} s] {text}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
