"""The command ``rooffuse``. Nothing heavy is imported before it is needed, so that help appears at once."""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import cli_help

if TYPE_CHECKING:
    from .presets import LoadedModel
    from .report import Report
    from .report_target import ReportTarget


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of things; it must be 1 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number; it must be more than 0")
    return value


def _target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="file.py:function, module:function, a preset or config.json")


def _model_options(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("presets and config.json")
    model.add_argument("--phase", choices=("prefill", "decode", "train"), help="what to run (default: decode, or "
                       "prefill for a model that doesn't decode)")
    model.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="type of weights and cache (default: bf16)")
    model.add_argument("--batch", metavar="N", type=_count, help="sequences or images (default: 1)")
    model.add_argument("--context", metavar="N", type=_count, help="tokens (default: 1024, or what the model takes)")


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="rooffuse", formatter_class=raw, epilog=cli_help.EXAMPLES,
        description="A torch.compile backend that fuses by a roofline cost model. The command explains its plans.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    report = commands.add_parser("report", formatter_class=raw, description=cli_help.REPORT,
                                 epilog=cli_help.REPORT_EXAMPLES,
                                 help="price a function node by node and kernel by kernel, for any device")
    _target(report)
    report.add_argument("--device", metavar="D", help="a name of `rooffuse devices`, or a TOML file (default: this "
                                                      "machine's)")
    report.add_argument("--json", metavar="FILE", help="write the report as JSON; - for standard output, with no text")
    report.add_argument("--source", metavar="KERNEL", nargs="?", const="",
                        help="print a kernel's code in place of the report; of all generated kernels without a name")
    report.add_argument("--level", choices=("node", "kernel", "module"),
                        help="show one table: nodes, kernels, or totals by module, kind and bound (default: nodes and "
                             "kernels)")
    report.add_argument("--sort", choices=("time", "bytes", "flops", "name"),
                        help="order of the rows (default: the order of running)")
    report.add_argument("--top", metavar="N", type=_count, help="show the first N rows of each table")
    report.add_argument("--csv", metavar="FILE", help="write the rows of --level (default: nodes) as CSV")
    report.add_argument("--html", metavar="FILE", help="write a page with an interactive roofline and sortable tables")
    report.add_argument("--png", metavar="FILE", help="write a plot of the roofline (needs matplotlib)")
    formulas = report.add_argument_group("formulas in place of the report")
    formulas.add_argument("--formulas", action="store_true",
                          help="print FLOPs and bytes as formulas in B (batch) and S (context)")
    formulas.add_argument("--sizes", metavar="B=1,8", nargs="+", action="extend",
                          help="sizes to evaluate them for, as --sizes B=1,8,64 S=1024,4096")
    formulas.add_argument("--symbols", metavar="B=8,d=64", help="for functions: names of sizes, as B=8,d=4096; every "
                          "dimension of that size gets the name")
    _model_options(report)
    report.set_defaults(run=_report)

    profile = commands.add_parser("profile", formatter_class=raw, description=cli_help.PROFILE,
                                  epilog=cli_help.PROFILE_EXAMPLES,
                                  help="time every kernel beside its prediction")
    _target(profile)
    profile.add_argument("--device", choices=("cpu", "cuda"), help="where to run it (default: the GPU if the target's "
                         "tensors are there, else the CPU)")
    profile.add_argument("--sort", choices=("time", "lost", "ratio", "bytes", "flops", "name"),
                         help="order of the rows (default: the order of running)")
    profile.add_argument("--top", metavar="N", type=_count, help="show the first N rows")
    profile.add_argument("--budget", metavar="S", type=_positive, default=10.0,
                         help="about how many seconds to run (default: 10)")
    profile.add_argument("--json", metavar="FILE", help="write the kernels as JSON; - for standard output, no text")
    _model_options(profile)
    profile.set_defaults(run=_profile)

    decode = commands.add_parser("plan-decode", formatter_class=raw, description=cli_help.PLAN,
                                 epilog=cli_help.PLAN_EXAMPLES, help="floors of generating text, by device and batch")
    decode.add_argument("model", metavar="PRESET_OR_CONFIG", help="a preset or a config.json")
    decode.add_argument("--device", metavar="D,…", default="h100", help="names or TOML files (default: h100)")
    decode.add_argument("--batch", metavar="B", default="1..256", help="8, or 1,8,64, or powers of two as 1..256 "
                                                                       "(default: 1..256)")
    decode.add_argument("--context", metavar="N", type=_count,
                        help="tokens a sequence (default: 4096, or what the model takes)")
    decode.add_argument("--formats", metavar="F,…", default="bf16,int8,int4",
                        help="of weights and KV cache, as bf16 or int4/int8 (default: bf16,int8,int4)")
    decode.add_argument("--tp", metavar="N", type=_count, default=1, help="devices that share the model (default: 1)")
    decode.add_argument("--speculate", metavar="K,P", help="drafted tokens and the probability that one is accepted")
    decode.add_argument("--price", metavar="$", type=_positive, help="dollars an hour of one device")
    decode.add_argument("--json", metavar="FILE", help="write the plan as JSON; - for standard output, no text")
    decode.add_argument("--png", metavar="FILE", help="write a plot of tokens a second (needs matplotlib)")
    decode.set_defaults(run=_plan_decode)

    calibrate = commands.add_parser("calibrate", formatter_class=raw, description=cli_help.CALIBRATE,
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
    if arguments.formulas or arguments.sizes or arguments.symbols:
        return _formulas(arguments)
    from .explanation import explain_call
    from .report_files import csv_text, save_plot

    try:
        from rooffuse.cost_model import get_device

        device = get_device(arguments.device) if arguments.device else None
        target = _loaded(arguments)
        with _tracing(arguments.target):
            report = explain_call(target.function, target.args, target.kwargs, device)
        text = _source(report, arguments.source) if arguments.source is not None else report.text(
            arguments.level, arguments.sort, arguments.top)
    except KeyError as error:  # no such kernel
        return _complain(str(error.args[0]))
    except ValueError as error:  # the device, the target, an option in the environment
        return _complain(str(error))
    try:
        if arguments.csv:
            _write(arguments.csv, csv_text(report, arguments.level))
        if arguments.html:
            from .report_page import page

            given = [f"{name} {value}" for name, value in _scenario(arguments).items()]
            _write(arguments.html, page(report, ", ".join([arguments.target, *given])))
        if arguments.png:
            save_plot(report, arguments.png)
    except ValueError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"can't write {error.filename or arguments.png!r}: {error.strerror}")
    return _written(text, arguments.json, report.to_dict())


def _formulas(arguments: argparse.Namespace) -> int:
    from .explanation import chosen_device
    from .formula_target import function_formulas, model_formulas, parse_sizes, parse_symbols
    from .presets import LoadedModel

    try:
        for name in ("source", "level", "html", "png"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} is of plans, and formulas have none; leave it or --formulas out")
        symbols = parse_symbols(arguments.symbols) if arguments.symbols else None
        several = parse_sizes(arguments.sizes) if arguments.sizes else []
        target = _found(arguments)
        device = chosen_device(arguments.device, () if isinstance(target, LoadedModel) else
                               (target.function, target.args, dict(target.kwargs)))
        if isinstance(target, LoadedModel) and symbols is not None:
            raise ValueError("--symbols is for functions; a model's formulas are in B, its batch, and S, its context")
        with _tracing(arguments.target):
            found = model_formulas(target, device) if isinstance(target, LoadedModel) else \
                function_formulas(target, device, symbols)
        text, data = found.text(arguments.sort, arguments.top, several), found.to_dict(several)
        if arguments.csv:
            _write(arguments.csv, found.csv())
    except ValueError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"can't write {error.filename!r}: {error.strerror}")
    return _written(text, arguments.json, data)


def _write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


def _scenario(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of models that were given."""
    options = {name: getattr(arguments, name) for name in ("phase", "dtype", "batch", "context")}
    return {name: value for name, value in options.items() if value is not None}


def _found(arguments: argparse.Namespace) -> ReportTarget | LoadedModel:
    """What the target and the options of models name. Raises ValueError for options that it doesn't take."""
    from .presets import PRESETS, Scenario, is_model, prepared_model
    from .report_target import load_target

    given = _scenario(arguments)
    if is_model(arguments.target):
        return prepared_model(arguments.target, Scenario(**given))
    if given:
        raise ValueError(f"--{next(iter(given))} is for presets and config.json; {arguments.target!r} makes its own "
                         "arguments")
    if ":" not in arguments.target:
        raise ValueError(f"{arguments.target!r} names no function and no preset; write file.py:function, "
                         f"module:function, a config.json, or one of {', '.join(PRESETS)}")
    return load_target(arguments.target)


def _loaded(arguments: argparse.Namespace) -> ReportTarget:
    """What to trace for them."""
    from .presets import LoadedModel

    found = _found(arguments)
    return found.on_meta() if isinstance(found, LoadedModel) else found


def _written(text: str, json_file: str | None, data: dict[str, Any]) -> int:
    """Print the text, or write the data where ``--json`` says."""
    if json_file is not None:
        encoded = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        if json_file == "-":
            sys.stdout.write(encoded)
            return 0
        try:
            _write(json_file, encoded)
        except OSError as error:
            return _complain(f"can't write {json_file!r}: {error.strerror}")
    print(text)
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from .profiling import profile_call

    try:
        target = _loaded(arguments)
        with _tracing(arguments.target):
            profile = profile_call(target.function, target.args, target.kwargs, arguments.budget, arguments.device)
        text = profile.text(arguments.sort, arguments.top)
    except ValueError as error:
        return _complain(str(error))
    return _written(text, arguments.json, profile.to_dict())


def _plan_decode(arguments: argparse.Namespace) -> int:
    from rooffuse.cost_model import get_device

    from . import decode_plan

    try:
        request = decode_plan.Request(
            tuple(get_device(name) for name in arguments.device.split(",")), decode_plan.parse_batches(arguments.batch),
            decode_plan.parse_formats(arguments.formats),
            decode_plan.context_of(arguments.model, arguments.context), arguments.tp,
            decode_plan.parse_speculation(arguments.speculate) if arguments.speculate else None, arguments.price)
        data = decode_plan.plan(decode_plan.decoder_shape(arguments.model), request)
        if arguments.png:
            decode_plan.save_plot(data, arguments.png)
    except ValueError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"can't write {error.filename or arguments.png!r}: {error.strerror}")
    return _written(decode_plan.plan_text(data), arguments.json, data)


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
