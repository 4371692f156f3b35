"""Options of the backend: one frozen value, the only reader of the environment."""
from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rooffuse.cost_model.user_folder import user_cache_folder

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
RANDOM = ("auto", "eager", "kernel")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


class OptionError(ValueError):
    """An option or mode that rooffuse doesn't know, or a value that it can't take."""


@dataclass(frozen=True)
class Options:
    """What a user can choose. Each field is also an environment variable: ``ROOFFUSE_`` and the name in capitals.

    cuda_graphs: "auto" decides per graph by price, True captures wherever it is possible, False never.
    strict: raise where a part of the graph would fall back to running its FX nodes.
    eager_casts: round to bfloat16 and float16 after every operator as eager does, not only at stores.
    autotune: choose among a few candidates of each kernel by measuring them, once a machine and for about 20 seconds
        a graph at most (see `autotune.Search`). Also ``mode="max-autotune"`` and ``"max-autotune-no-cudagraphs"``.
    random: where random numbers come from. "eager" calls the framework, whose numbers are eager's on the CPU; "kernel"
        computes others of the same distributions inside of kernels, seeded by the framework's generator; "auto" is
        "kernel" on a GPU and "eager" on the CPU.
    keep_memory: on the CPU, results of 1 MiB and more lie in memory that earlier ones left when they were released, at
        most an eighth of the machine's (see `result_memory`); `rooffuse.empty_cache` gives it back to the system.
    verify: check every memory plan, and every kernel of the loop IR by its rules.
    dump: folder for each stage's graph, the groups, the kernels and the plan; empty for none.
    cache_dir: folder of the kernel cache; empty for the user's cache folder.
    """

    cuda_graphs: bool | str = "auto"
    strict: bool = False
    eager_casts: bool = False
    autotune: bool = False
    random: str = "auto"
    keep_memory: bool = True
    verify: bool = False
    dump: str = ""
    cache_dir: str = ""

    @property
    def cache_folder(self) -> Path:
        """Where built kernels are kept."""
        if self.cache_dir:
            return Path(self.cache_dir).expanduser()
        return user_cache_folder()


def option_names() -> tuple[str, ...]:
    return tuple(f.name for f in fields(Options))


def _parse(name: str, value: Any, source: str) -> Any:
    """``value`` as the type of option ``name``; text such as "1" or "off" counts for truth values."""
    text = str(value).strip().lower()
    if name in ("dump", "cache_dir"):
        if value is None or isinstance(value, str | os.PathLike):
            return "" if value is None else os.fspath(value)
        raise OptionError(f"{source}: {name} takes a folder, not {value!r}")
    if name == "cuda_graphs" and text == "auto":
        return "auto"
    if name == "random":
        if text in RANDOM:
            return text
        raise OptionError(f"{source}: random takes {', '.join(map(repr, RANDOM))}, not {value!r}")
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    allowed = "'auto', True or False" if name == "cuda_graphs" else "True or False"
    raise OptionError(f"{source}: {name} takes {allowed}, not {value!r}")


def make_options(mode: str | None = None, options: Mapping[str, Any] | None = None,
                 environ: Mapping[str, str] | None = None) -> Options:
    """Defaults, then the environment, then ``mode``, then ``options``; later ones win.

    Raises OptionError for a mode, option or value that isn't known; the message lists the known ones.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for name in option_names():
        variable = f"ROOFFUSE_{name.upper()}"
        if variable in environ:
            values[name] = _parse(name, environ[variable], f"environment variable {variable}")
    if mode not in (None, *MODES):
        raise OptionError(f"rooffuse has no mode {mode!r}; it knows {', '.join(MODES)}")
    if mode == "reduce-overhead":
        values["cuda_graphs"] = True
    elif mode == "max-autotune-no-cudagraphs":
        values["cuda_graphs"] = False
    if mode is not None and mode.startswith("max-autotune"):
        values["autotune"] = True
    for name, value in (options or {}).items():
        if name not in option_names():
            close = difflib.get_close_matches(name, option_names(), 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise OptionError(f"rooffuse has no option {name!r}{hint}; it knows {', '.join(option_names())}")
        values[name] = _parse(name, value, "options")
    return replace(Options(), **values)
