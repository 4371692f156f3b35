"""``rooffuse calibrate``: measures this machine, with a bar that shows how far it is."""
from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from rooffuse.cost_model import calibrate, local_device
from rooffuse.cost_model.calibration import default_folder, stored_in

from .report_text import device_line

_WIDTH = 24
#: Of a CPU the bandwidth of memory and of caches, four types and the launch; of a GPU a type more, and no caches.
_STEPS = 7


def progress_bar(stream: TextIO, steps: int) -> Callable[[str], None]:
    """A function that is called as each of ``steps`` begins, and draws a bar if ``stream`` is a terminal, else a line
    for each step."""
    begun = 0

    def show(step: str) -> None:
        nonlocal begun
        if stream.isatty():
            filled = min(_WIDTH, _WIDTH * begun // steps)
            stream.write(f"\r\x1b[K[{'█' * filled}{'·' * (_WIDTH - filled)}] {begun}/{steps}  {step}")
        else:
            stream.write(f"[{begun + 1}/{steps}] {step}\n")
        stream.flush()
        begun += 1

    return show


def calibrate_here(kind: str, stream: TextIO) -> str:
    """Measure "cpu" or "cuda", store the rates, and return the text that tells them. Raises UnknownDevice without such
    a device, OSError if the figures can't be stored."""
    before = local_device(kind)
    device = calibrate(kind, progress_bar(stream, _STEPS))
    if stream.isatty():
        stream.write("\r\x1b[K")
    rates = ", ".join(f"{key} {rate / 1e12:.3g}" for key, rate in sorted(device.peaks.items()))
    was = "measured" if before.calibrated else "estimated" if kind == "cpu" else "from its datasheet"
    caches = f"; what the last cache holds moves at {device.l2_bandwidth / 1e9:.4g} GB/s" if kind == "cpu" else ""
    return (f"{device_line(device)}\nall peaks in TFLOP/s: {rates}\n"
            f"fixed cost of a kernel {1e6 * device.launch_s:.2f} µs, of a call through torch "
            f"{1e6 * device.dispatch_s:.2f} µs\nbandwidth was {before.bandwidth / 1e9:.4g} GB/s, {was}{caches}\n"
            f"stored in {stored_in(device, default_folder())}; every later plan, report and profile uses it")
