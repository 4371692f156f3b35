"""Rows of results: what each holds, and the CSV files that keep them."""
from __future__ import annotations

import csv
import datetime
import functools
import json
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
    """One contender on one case. An empty cell was not measured or isn't known.

    Times in microseconds: median, lower and upper quartile of a warm call. ``error`` is the largest difference from
    eager, relative to the largest value. ``floor_bytes`` are what any schedule must move, ``bytes_over_floor`` what the
    compiler itself counts for its schedule, over that floor. ``roof_us`` is the least time that the device's bandwidth
    and peaks allow, ``share_of_roof`` that time over the median; it passes 1 where data stays in a cache.
    ``predicted_us`` is the sum of the plan's predicted steps. Compile times in seconds, of the first call in a fresh
    process: ``cold_s`` with empty caches, ``primed_s`` with caches that another function filled, ``warm_s`` with the
    case itself in them; ``plan_s`` is the time from ATen graph to plan.
    """

    suite: str
    case: str
    dtype: str
    contender: str
    median_us: float | None = None
    low_us: float | None = None
    high_us: float | None = None
    error: float | None = None
    floor_bytes: int | None = None
    flops: int | None = None
    achieved_gbs: float | None = None
    roof_us: float | None = None
    share_of_roof: float | None = None
    predicted_us: float | None = None
    bytes_over_floor: float | None = None
    launches: int | None = None
    peak_bytes: int | None = None
    cold_s: float | None = None
    primed_s: float | None = None
    warm_s: float | None = None
    plan_s: float | None = None
    note: str = ""
    device_type: str = ""
    device: str = ""
    roof_gbs: float | None = None
    calibrated: str = ""
    threads: int | None = None
    driver: str = ""
    python: str = ""
    torch: str = ""
    triton: str = ""
    commit: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.suite, self.case, self.dtype, self.contender


_INTEGERS = {f.name for f in fields(Row) if str(f.type).startswith("int")}
_FLOATS = {f.name for f in fields(Row) if str(f.type).startswith("float")}


@functools.cache
def device_name(device: str) -> str:
    """The name that the driver or the processor gives itself."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        text = Path("/proc/cpuinfo").read_text()
        return re.search(r"model name\s*:\s*(.+)", text).group(1).strip()  # type: ignore[union-attr]
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30,
                              cwd=Path(__file__).parent).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def commit() -> str:
    """Short hash of the checked-out commit, with a plus sign if files differ from it; empty outside of a checkout."""
    found = _output("git", "rev-parse", "--short", "HEAD")
    return found + ("+" if found and _output("git", "status", "--porcelain", "-uno") else "")


@functools.cache
def driver(device: str) -> str:
    """The CUDA driver's version; for a CPU the kernel's."""
    if device == "cuda":
        return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    return f"{platform.system()} {platform.release()}"


def context(device: str) -> dict[str, object]:
    """The columns that say where and with what a row was measured."""
    from rooffuse.cost_model import local_device

    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = ""
    priced = local_device(device)
    return {"device_type": device, "device": device_name(device), "roof_gbs": priced.bandwidth / 1e9,
            "calibrated": "yes" if priced.calibrated else "no", "threads": torch.get_num_threads(),
            "driver": driver(device), "python": platform.python_version(), "torch": torch.__version__,
            "triton": version, "commit": commit(), "date": datetime.date.today().isoformat()}


def folder_for(device: str) -> Path:
    """Where rows of this device are kept."""
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` to ``path``; rows of other cases that the file already has stay."""
    kept = {r.key: r for r in read_rows(path)} if path.exists() else {}
    kept.update((r.key, r) for r in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    incomplete = path.with_suffix(".tmp")
    with incomplete.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in kept.values():
            writer.writerow({k: _text(v) for k, v in asdict(row).items()})
    incomplete.replace(path)


def _text(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV file, or of all CSV files of a folder in the order of their names.

    Raises ValueError if there is no such file, or it isn't one of rows.
    """
    if path.is_dir():
        return [r for file in sorted(path.glob("*.csv")) for r in read_rows(file)]
    if not path.exists():
        raise ValueError(f"there is no file or folder {str(path)!r} with rows")
    rows = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = {"suite", "case", "dtype", "contender"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} holds no rows of benchmarks: it has no columns {', '.join(sorted(missing))}")
        for raw in reader:
            rows.append(Row(**{f.name: _value(f.name, raw.get(f.name) or "")
                               for f in fields(Row)}))  # type: ignore[arg-type]
    return rows


def _value(name: str, text: str) -> object:
    if name in _INTEGERS:
        return int(float(text)) if text else None
    if name in _FLOATS:
        return float(text) if text else None
    return text


def write_json(path: Path, rows: Iterable[Row]) -> None:
    """The same rows as a JSON list of objects; what wasn't measured is null."""
    path.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
