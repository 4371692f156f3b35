"""The command ``rooffuse``. Nothing heavy is imported before it is needed, so that help appears at once."""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rooffuse.cost_model import Device

    from .report import Report
    from .report_target import ReportTarget

_EXAMPLES = """\
examples:
  rooffuse report examples/llama.py:decode_step --device h100
  rooffuse report examples/norms.py:add_rms_norm --source
  rooffuse devices
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


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="rooffuse", formatter_class=raw, epilog=_EXAMPLES,
        description="A torch.compile backend that fuses by a roofline cost model. The command explains its plans.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    report = commands.add_parser("report", formatter_class=raw, description=_REPORT, epilog=_REPORT_EXAMPLES,
                                 help="price a function node by node and kernel by kernel, for any device")
    report.add_argument("target", metavar="TARGET", help="file.py:function or module:function")
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


def _explained(name: str, target: ReportTarget, device: Device | None) -> Report:
    """The report. Raises ValueError, with the place in the traced code, for whatever tracing raises."""
    from .explain import explain_call, raised_at

    try:
        return explain_call(target.function, target.args, target.kwargs, device)
    except ValueError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        place = raised_at(error)
        raise ValueError(f"tracing {name} raised {type(error).__name__}: {' '.join(lines[:2])}"
                         f"{f' ({place})' if place else ''}") from error


def _report(arguments: argparse.Namespace) -> int:
    from .report_target import load_target

    try:
        from rooffuse.cost_model import get_device

        device = get_device(arguments.device) if arguments.device else None
        target = load_target(arguments.target)
        report = _explained(arguments.target, target, device)
        text = _source(report, arguments.source) if arguments.source is not None else report.text(
            arguments.level, arguments.sort, arguments.top)
    except KeyError as error:  # no such kernel
        return _complain(str(error.args[0]))
    except ValueError as error:  # the device, the target, an option in the environment
        return _complain(str(error))
    if arguments.json is not None:
        data = json.dumps(report.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        if arguments.json == "-":
            sys.stdout.write(data)
            return 0
        try:
            Path(arguments.json).write_text(data, encoding="utf-8")
        except OSError as error:
            return _complain(f"can't write {arguments.json!r}: {error.strerror}")
    print(text)
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
