"""The command ``rooffuse``. Nothing heavy is imported before it is needed, so that help appears at once."""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .report import Report

_EXAMPLES = """\
examples:
  rooffuse report examples/llama.py:decode_step --device h100
  rooffuse report examples/norms.py:add_rms_norm --source
  rooffuse calibrate
  rooffuse profile examples/norms.py:add_rms_norm
  rooffuse devices
"""

_PROFILE = """\
Compile a function for this machine's CPU, run its kernels one by one, and print for each the predicted and the measured
time, what bandwidth and rate it reached, and the microseconds lost above the roof. TARGET is as for `rooffuse report`;
inputs and weights are made up in the traced shapes. Calibrate first: predictions use the rates measured then.
Kernels on a GPU can't be timed yet.
"""

_PROFILE_EXAMPLES = """\
examples:
  rooffuse profile norms.py:softmax
  rooffuse profile examples/llama.py:prefill --sort lost --top 10
  rooffuse profile examples/llama.py:decode_step --json times.json
"""

_CALIBRATE = """\
Measure this machine's streaming bandwidth, the matmul peak of each type and the fixed cost of a kernel, in under a
minute, and keep them in the user's cache folder. Every later plan, report and profile for this machine uses them;
a report's first line says which rates it used.
"""

_REPORT = """\
What rooffuse would do with a function on a device: each node's bytes, FLOPs, intensity, bound and group, the kernels,
memory, fallbacks, CUDA graphs and graph breaks. Nothing is run, and the device need not be there.

TARGET is file.py:function or module:function. The function takes no arguments and returns what to trace, as
(callable, args) or (callable, args, kwargs); meta and fake tensors do. For example, in norms.py:

  def softmax():
      return torch.softmax, (torch.empty(64, 4096, device="meta"), -1)
"""

_REPORT_EXAMPLES = """\
examples:
  rooffuse report norms.py:softmax
  rooffuse report norms.py:softmax --device a100 --level kernel
  rooffuse report examples/llama.py:decode_step --device h100 --sort time --top 10
  rooffuse report examples/llama.py:prefill --device h100 --json plan.json
  rooffuse report examples/llama.py:prefill --device h100 --source fused_0
"""


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows; it must be 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; it must be more than 0")
    return value


def _target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="file.py:function or module:function")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="rooffuse", formatter_class=raw, epilog=_EXAMPLES,
        description="A torch.compile backend that fuses by a roofline cost model. The command explains its plans.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    report = commands.add_parser("report", formatter_class=raw, description=_REPORT, epilog=_REPORT_EXAMPLES,
                                 help="price a function node by node and kernel by kernel, for any device")
    _target(report)
    report.add_argument("--device", metavar="D", help="a name of `rooffuse devices`, or a TOML file (default: this "
                                                      "machine's)")
    report.add_argument("--json", metavar="FILE", help="write the report as JSON; - for standard output, with no text")
    report.add_argument("--source", metavar="KERNEL", nargs="?", const="",
                        help="print a kernel's code in place of the report; of all generated kernels without a name")
    report.add_argument("--level", choices=("node", "kernel"), help="show one table (default: both)")
    report.add_argument("--sort", choices=("time", "bytes", "flops", "name"),
                        help="order of the rows (default: the order of running)")
    report.add_argument("--top", metavar="N", type=_count, help="show the first N rows of each table")
    report.set_defaults(run=_report)

    profile = commands.add_parser("profile", formatter_class=raw, description=_PROFILE, epilog=_PROFILE_EXAMPLES,
                                  help="time every kernel beside its prediction")
    _target(profile)
    profile.add_argument("--sort", choices=("time", "lost", "ratio", "bytes", "flops", "name"),
                         help="order of the rows (default: the order of running)")
    profile.add_argument("--top", metavar="N", type=_count, help="show the first N rows")
    profile.add_argument("--budget", metavar="S", type=_seconds, default=10.0,
                         help="about how many seconds to run (default: 10)")
    profile.add_argument("--json", metavar="FILE", help="write the kernels as JSON; - for standard output, no text")
    profile.set_defaults(run=_profile)

    calibrate = commands.add_parser("calibrate", formatter_class=raw, description=_CALIBRATE,
                                    epilog="examples:\n  rooffuse calibrate\n  rooffuse calibrate --device cuda\n",
                                    help="measure this machine's rates, for every later price")
    calibrate.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what to measure (default: cpu)")
    calibrate.set_defaults(run=_calibrate)

    devices = commands.add_parser("devices", formatter_class=raw, help="list devices with bandwidth, peaks and ridges",
                                  description="List the devices that plans can be made for, this machine's first: "
                                              "bandwidth, dense peaks and ridge points by type.")
    devices.set_defaults(run=_devices)
    return parser


def _source(report: Report, kernel: str) -> str:
    """The code of one kernel, or of all generated kernels, equal graphs once."""
    if kernel:
        return report.source(kernel)
    graphs = {id(g): (k, g) for k, g in reversed(list(enumerate(report.graphs)))}
    found = [(f"{k}:{row.name}", row) for k, g in sorted(graphs.values(), key=lambda pair: pair[0])
             for row in g.kernels if row.kind in ("triton", "cpp")]
    marks = {"triton": "#", "cpp": "//"}
    return "\n\n".join(f"{marks[row.kind]} {name}: {', '.join(row.nodes)}\n{row.source()}" for name, row in found)


@contextmanager
def _tracing(name: str) -> Iterator[None]:
    """Turns whatever tracing the target raises into a ValueError with the place in the traced code."""
    from .explanation import raised_at

    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        place = raised_at(error)
        raise ValueError(f"tracing {name} raised {type(error).__name__}: {' '.join(lines[:2])}"
                         f"{f' ({place})' if place else ''}") from error


def _report(arguments: argparse.Namespace) -> int:
    from .explanation import explain_call
    from .report_target import load_target

    try:
        from rooffuse.cost_model import get_device

        device = get_device(arguments.device) if arguments.device else None
        target = load_target(arguments.target)
        with _tracing(arguments.target):
            report = explain_call(target.function, target.args, target.kwargs, device)
        text = _source(report, arguments.source) if arguments.source is not None else report.text(
            arguments.level, arguments.sort, arguments.top)
    except KeyError as error:  # no such kernel
        return _complain(str(error.args[0]))
    except ValueError as error:  # the device, the target, an option in the environment
        return _complain(str(error))
    return _written(text, arguments.json, report.to_dict())


def _written(text: str, json_file: str | None, data: dict[str, Any]) -> int:
    """Print the text, or write the data where ``--json`` says."""
    if json_file is not None:
        encoded = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        if json_file == "-":
            sys.stdout.write(encoded)
            return 0
        try:
            Path(json_file).write_text(encoded, encoding="utf-8")
        except OSError as error:
            return _complain(f"can't write {json_file!r}: {error.strerror}")
    print(text)
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from .profiling import profile_call
    from .report_target import load_target

    try:
        target = load_target(arguments.target)
        with _tracing(arguments.target):
            profile = profile_call(target.function, target.args, target.kwargs, arguments.budget)
        text = profile.text(arguments.sort, arguments.top)
    except ValueError as error:
        return _complain(str(error))
    return _written(text, arguments.json, profile.to_dict())


def _calibrate(arguments: argparse.Namespace) -> int:
    from .calibrate_command import calibrate_here

    try:
        print(calibrate_here(arguments.device, sys.stderr))
    except ValueError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"can't store the calibration: {error}")
    return 0


def _devices(arguments: argparse.Namespace) -> int:
    from .device_listing import device_table

    print(device_table())
    return 0


def _complain(message: str) -> int:
    print(f"rooffuse: error: {message}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (by default the process's). Returns the exit code: 0, or 2 for what can't be done,
    with one line about it on standard error."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        from importlib.metadata import version

        print(f"rooffuse {version('rooffuse')}")
        return 0
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
