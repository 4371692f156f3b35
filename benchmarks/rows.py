"""Rows of results: what each holds, and the CSV files that keep them."""
from __future__ import annotations

import csv
import datetime
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One contender on one case. Times in microseconds (median and quartiles), compile times in seconds; an empty
    cell was not measured."""

    suite: str
    case: str
    dtype: str
    contender: str
    median_us: float | None = None
    low_us: float | None = None
    high_us: float | None = None
    error: float | None = None
    floor_bytes: int | None = None
    achieved_gbs: float | None = None
    cold_s: float | None = None
    warm_s: float | None = None
    note: str = ""
    device: str = ""
    threads: int = 0
    torch: str = ""
    triton: str = ""
    commit: str = ""
    date: str = ""


def device_name(device: str) -> str:
    """The name that the driver or the processor gives itself."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        text = Path("/proc/cpuinfo").read_text()
        return re.search(r"model name\s*:\s*(.+)", text).group(1).strip()  # type: ignore[union-attr]
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def commit() -> str:
    """Short hash of the checked-out commit, with a plus sign if files differ from it."""
    try:
        run = lambda *a: subprocess.run(["git", *a], capture_output=True, text=True, check=True,  # noqa: E731
                                        cwd=Path(__file__).parent).stdout.strip()
        return run("rev-parse", "--short", "HEAD") + ("+" if run("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def context(device: str) -> dict[str, object]:
    """The columns that say where and with what a row was measured."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = ""
    return {"device": device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "triton": version, "commit": commit(), "date": datetime.date.today().isoformat()}


def folder_for(device: str) -> Path:
    """Where rows of this device are kept."""
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` to ``path``; rows of other cases that the file already has stay."""
    rows = list(rows)
    key = lambda r: (r.suite, r.case, r.dtype, r.contender)  # noqa: E731
    kept = {key(r): r for r in read_rows(path)} if path.exists() else {}
    kept.update((key(r), r) for r in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        for row in kept.values():
            writer.writerow({k: _text(v) for k, v in asdict(row).items()})


def _text(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV file."""
    numbers = {"median_us", "low_us", "high_us", "error", "achieved_gbs", "cold_s", "warm_s"}
    whole = {"floor_bytes", "threads"}
    rows = []
    with path.open(newline="") as file:
        for raw in csv.DictReader(file):
            values: dict[str, object] = dict(raw)
            for name in numbers:
                values[name] = float(raw[name]) if raw.get(name) else None
            for name in whole:
                values[name] = int(float(raw[name])) if raw.get(name) else (0 if name == "threads" else None)
            rows.append(Row(**{f.name: values.get(f.name, "") for f in fields(Row)}))  # type: ignore[arg-type]
    return rows
