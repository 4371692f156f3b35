"""rooffuse: a torch.compile backend that fuses by a roofline cost model.

``torch.compile(model, backend="rooffuse")`` needs no import. ``explain`` says what it would do, on any device, without
running anything. Importing this package imports neither torch nor its own parts; a name does when it is first used.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .explanation import explain
    from .formula_rows import Formulas, formulas
    from .options import OptionError, Options, make_options
    from .report import Report
    from .result_memory import empty_cache

    __version__: str

__all__ = ["Formulas", "OptionError", "Options", "Report", "__version__", "empty_cache", "explain", "formulas",
           "make_options"]

_HOMES = {"explain": "explanation", "Report": "report", "Options": "options", "OptionError": "options",
          "make_options": "options", "empty_cache": "result_memory", "formulas": "formula_rows",
          "Formulas": "formula_rows"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rooffuse")
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value  # a submodule of the same name would otherwise hide it from now on
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
