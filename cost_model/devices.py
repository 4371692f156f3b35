"""Devices by name, from a file, or of this machine."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from .calibration import default_folder, load
from .detect import UnknownDevice, detect, find_listed, spelling_key
from .device import Device, device_from_dict
from .device_table import ALIASES, DEVICES


def all_devices() -> tuple[Device, ...]:
    """The built-in table, oldest first."""
    return DEVICES


def device_names() -> tuple[str, ...]:
    """Names of the built-in devices, and ``"cpu"`` for this machine's processor."""
    return (*(device.name for device in DEVICES), "cpu")


def _read_toml(path: Path) -> Device:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef]
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnknownDevice(f"device file {str(path)!r} does not exist; known devices: {_listing()}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"device file {str(path)!r} is not valid TOML: {error}") from error
    return device_from_dict(values)


def _listing() -> str:
    return ", ".join(device_names())


def get_device(name: str, folder: str | os.PathLike[str] | None = None) -> Device:
    """The device called ``name``.

    Takes names and aliases of the table in any case (``"h100"`` is the SXM card, ``"a100"`` the 80 GB one), names as
    the driver spells them (``"NVIDIA H100 80GB HBM3"``), ``"cpu"`` for this machine's processor (calibrated when
    ``folder`` holds its calibration, see `local_device`), and the path of a TOML file with the fields of `Device`.
    Raises `UnknownDevice`, which lists known names and near misses.
    """
    if spelling_key(name) == "cpu":
        return local_device("cpu", folder)
    found = find_listed(name)
    if found is not None:
        return found
    if name.endswith(".toml"):
        return _read_toml(Path(name).expanduser())
    spellings = {spelling_key(known): known for known in device_names()} | ALIASES
    matches = difflib.get_close_matches(spelling_key(name), sorted(spellings), n=3, cutoff=0.5)
    close = [spellings[key] for key in matches]
    hint = f"did you mean {', '.join(dict.fromkeys(close))}; " if close else ""
    raise UnknownDevice(
        f"unknown device {name!r}; {hint}known devices: {_listing()}. A path to a .toml file with the fields of "
        "rooffuse.cost_model.Device works too."
    )


def local_device(torch_device: str = "cpu", folder: str | os.PathLike[str] | None = None) -> Device:
    """This machine's device, with measured rates when a calibration is stored (see `calibrate`).

    ``folder`` is where calibrations lie, by default the user's cache. Raises `UnknownDevice` without such a device.
    """
    device = detect(torch_device)
    return load(device, Path(folder) if folder is not None else default_folder()) or device
