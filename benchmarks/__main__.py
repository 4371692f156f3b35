"""Benchmarks as commands: ``python -m benchmarks run --suite kernels --against eager,inductor``."""
from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .rows import Row, folder_for, write_rows


def _ratios(rows: Sequence[Row]) -> str:
    """One line for a case: each contender's time, and ours against it."""
    times = {r.contender: r for r in rows}
    ours = times.get("rooffuse")
    parts = []
    for name, row in times.items():
        if row.median_us is None:
            parts.append(f"{name} {row.note or '-'}")
            continue
        text = f"{name} {row.median_us:10.1f} us"
        if ours is not None and ours.median_us and name != "rooffuse":
            text += f" ({row.median_us / ours.median_us:5.2f}x)"
        if row.cold_s is not None:
            text += f" cold {row.cold_s:.2f} s warm {row.warm_s:.2f} s"
        parts.append(text)
    gbs = f"{ours.achieved_gbs:7.1f} GB/s" if ours and ours.achieved_gbs else ""
    return f"{rows[0].case:32s} {rows[0].dtype}  " + "  ".join(parts) + f"  {gbs}"


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def _summary(rows: Sequence[Row]) -> None:
    by_case: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_case.setdefault((row.case, row.dtype), {})[row.contender] = row
    for name in dict.fromkeys(r.contender for r in rows if r.contender != "rooffuse"):
        pairs = [(c[name], c["rooffuse"]) for c in by_case.values() if name in c and "rooffuse" in c]
        times = [a.median_us / b.median_us for a, b in pairs if a.median_us and b.median_us]
        if times:
            print(f"rooffuse against {name}: {_geometric_mean(times):.2f}x by geometric mean over {len(times)} rows, "
                  f"worst {min(times):.2f}x, best {max(times):.2f}x")
        colds = [a.cold_s / b.cold_s for a, b in pairs if a.cold_s and b.cold_s]
        if colds:
            print(f"  cold compile: {_geometric_mean(colds):.2f}x faster by geometric mean, worst {min(colds):.2f}x")


def _run(options: argparse.Namespace) -> int:
    from .run import run_suite

    rows: list[Row] = []
    path = Path(options.out) if options.out else folder_for(options.device) / f"{options.suite}.csv"
    start = time.perf_counter()
    try:
        for done in run_suite(options.suite, options.against.split(","), options.device, options.only,
                              options.dtype.split(",") if options.dtype else (), 0.3 if options.quick else 1.5,
                              options.cold):
            rows += done
            print(f"[{time.perf_counter() - start:5.0f} s] {_ratios(done)}", flush=True)
    except KeyboardInterrupt:
        print("interrupted: keeping the rows that are done")
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    _summary(rows)
    if not options.dry_run:
        write_rows(path, rows)
        print(f"{len(rows)} rows in {path}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure a suite")
    run.add_argument("--suite", default="kernels", help="kernels or blocks")
    run.add_argument("--against", default="eager,inductor", help="contenders, comma-separated")
    run.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    run.add_argument("--only", default="", help="cases whose names contain this")
    run.add_argument("--dtype", default="", help="fp32, bf16 or both, comma-separated")
    run.add_argument("--quick", action="store_true", help="shorter timing")
    run.add_argument("--cold", action="store_true", help="also compile times, in fresh processes")
    run.add_argument("--dry-run", action="store_true", help="write no rows")
    run.add_argument("--out", help="CSV file for the rows")
    run.set_defaults(command=_run)
    options = parser.parse_args(arguments)
    return options.command(options)


if __name__ == "__main__":
    sys.exit(main())
