"""Benchmarks as commands.

    python -m benchmarks run --suite kernels --against eager,inductor     measure, write rows
    python -m benchmarks compare OLD NEW                                  what moved beyond the noise
    python -m benchmarks table                                            write the README's tables from the rows
    python -m benchmarks plot                                             roofline and speed-ups as PNG and SVG
    python -m benchmarks schedule                                         bytes and launches on a GPU; needs none
    python -m benchmarks predictions                                      predicted beside measured time of kernels
"""
from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .cases import SUITES
from .rows import RESULTS, Row, folder_for, read_rows, write_json, write_rows

README = Path(__file__).parent.parent / "README.md"


def _run(options: argparse.Namespace) -> int:
    from rooffuse.cost_model import local_device

    from .contenders import CONTENDERS
    from .progress import Progress
    from .run import Settings, jobs, run_job
    from .summary import case_line, summary_lines

    against = tuple(options.against.split(","))
    unknown = [n for n in against if n not in CONTENDERS]
    if unknown:
        raise ValueError(f"there is no contender {unknown[0]!r}; there are {', '.join(CONTENDERS)}")
    suites = list(SUITES) if options.suite == "all" else options.suite.split(",")
    settings = Settings(against, options.device, options.only, tuple(options.dtype.split(",")) if options.dtype else (),
                        0.3 if options.quick else 1.5, options.quick, options.cold, options.cold and not options.quick)
    folder = Path(options.out) if options.out else folder_for(options.device)
    work = [(suite, case, dtype) for suite in suites for case, dtype in jobs(suite, settings)]
    if not local_device(options.device).calibrated:
        print("rates of this device are estimates, and so are the roofs; to measure them: "
              f"python -c 'from rooffuse.cost_model import calibrate; calibrate(\"{options.device}\")'")
    rows: list[Row] = []
    progress = Progress(len(work))
    interrupted = False
    try:
        for suite, case, dtype in work:
            done = run_job(case, dtype, settings)
            rows += done
            progress.line(case_line(done))
            if not options.dry_run:
                write_rows(folder / f"{suite}.csv", done)
    except KeyboardInterrupt:
        interrupted = True
    progress.close()
    print("\n".join(summary_lines(rows)))
    if options.json:
        write_json(Path(options.json), rows)
    if not options.dry_run:
        print(f"{len(rows)} rows in {folder}")
    if interrupted:
        print("interrupted: rows of the finished cases are kept")
        return 130
    return 0


def _compare(options: argparse.Namespace) -> int:
    from .compare import compare, report

    changes = compare(read_rows(Path(options.old)), read_rows(Path(options.new)))
    print(report(changes))
    return 1 if any(c.regression for c in changes) else 0


def _table(options: argparse.Namespace) -> int:
    from .table import regenerate

    path = Path(options.readme)
    text = path.read_text(encoding="utf-8")
    fresh = regenerate(text, Path(options.results))
    if options.check:
        print("tables and rows agree" if fresh == text else f"{path} differs from the rows: run python -m benchmarks "
              "table")
        return int(fresh != text)
    path.write_text(fresh, encoding="utf-8")
    return 0


def _plot(options: argparse.Namespace) -> int:
    from .plot import plot

    for file in plot(Path(options.results), Path(options.out)):
        print(file)
    return 0


def _schedule(options: argparse.Namespace) -> int:
    from .schedule import schedule_rows, schedule_table, write_schedule

    rows = schedule_rows(options.only, options.dtype, options.ours_only)
    print(schedule_table(rows))
    if not (options.only or options.ours_only or options.dry_run):
        write_schedule(RESULTS / f"schedule-{options.dtype}.csv", rows, options.dtype)
    return 0


def _predictions(options: argparse.Namespace) -> int:
    from .predictions import predictions, predictions_table

    print(predictions_table(predictions(options.only)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure suites")
    run.add_argument("--suite", default="kernels", help=f"comma-separated: {', '.join(SUITES)}; or all")
    run.add_argument("--against", default="eager,inductor",
                     help="comma-separated: eager, inductor, inductor-max, rooffuse-max")
    run.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    run.add_argument("--only", default="", help="cases whose names contain this")
    run.add_argument("--dtype", default="", help="fp32, bf16 or both, comma-separated")
    run.add_argument("--quick", action="store_true", help="shorter timing, one type a case, no long cases")
    run.add_argument("--cold", action="store_true", help="also compile times, in fresh processes")
    run.add_argument("--dry-run", action="store_true", help="write no rows")
    run.add_argument("--out", help="folder for the rows' CSV files (default: this device's in benchmarks/results)")
    run.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    run.set_defaults(command=_run)
    compare = commands.add_parser("compare", help="what moved beyond the noise; exit status 1 on a regression of ours")
    compare.add_argument("old", help="CSV file or folder of them")
    compare.add_argument("new", help="CSV file or folder of them")
    compare.set_defaults(command=_compare)
    table = commands.add_parser("table", help="write the tables between the README's markers from the rows")
    table.add_argument("--readme", default=str(README))
    table.add_argument("--results", default=str(RESULTS))
    table.add_argument("--check", action="store_true", help="write nothing; exit status 1 if they differ")
    table.set_defaults(command=_table)
    plot = commands.add_parser("plot", help="roofline and speed-up charts, PNG and SVG")
    plot.add_argument("--results", default=str(RESULTS), help="folder with a folder of rows for each device")
    plot.add_argument("--out", default=str(README.parent / "docs" / "figures"))
    plot.set_defaults(command=_plot)
    schedule = commands.add_parser("schedule", help="our GPU schedule beside Inductor's for each kernel workload")
    schedule.add_argument("--only", default="", help="workloads whose names contain this")
    schedule.add_argument("--dtype", default="bf16", choices=("bf16", "fp32", "fp16"))
    schedule.add_argument("--ours-only", action="store_true", help="leave Inductor out, which takes longer")
    schedule.add_argument("--dry-run", action="store_true", help="write no rows; parts of the set never are")
    schedule.set_defaults(command=_schedule)
    predict = commands.add_parser("predictions", help="predicted beside measured time of the kernels, on this CPU")
    predict.add_argument("--only", default="", help="workloads whose names contain this")
    predict.set_defaults(command=_predictions)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 for a regression or a difference, 2 for a wrong request."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it remarks on every small configuration
    try:
        return options.command(options)
    except (ValueError, RuntimeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
