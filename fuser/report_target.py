"""Finding what the command line is asked to report on: ``file.py:function`` or ``module:function``."""
from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

CONVENTION = "(callable, args) or (callable, args, kwargs)"


class TargetError(ValueError):
    """A target that can't be found, imported or used; the message names what was looked for and where."""


@dataclass(frozen=True)
class ReportTarget:
    """What to trace: ``function(*args, **kwargs)``."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def _where(error: BaseException, file: str | None) -> str:
    """The innermost place in ``file``, or outside of this one, that ``error`` comes from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [f for f in frames if f.filename == file] or frames
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _import_file(name: str) -> ModuleType:
    path = Path(name).expanduser()
    if not path.is_file():
        raise TargetError(f"there is no file {name!r} (looked for {path.absolute()})")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{name!r} is no Python file; it should end in .py")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.absolute())
    if folder not in sys.path:  # as when Python runs the file
        sys.path.insert(0, folder)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[path.stem]
        raise TargetError(f"importing {name!r} raised {_one_line(error)}{_where(error, str(path))}") from error
    return module


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # a console script doesn't look in the working folder
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(f"there is no module {name!r} (looked in {Path.cwd()} and on Python's path); "
                              "a file is written as path/to/file.py:function") from None
        raise TargetError(f"importing {name!r} raised {_one_line(error)}{_where(error, None)}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"importing {name!r} raised {_one_line(error)}{_where(error, None)}") from error


def _functions(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items()
            if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
            and not isinstance(value, type)]


def load_target(target: str) -> ReportTarget:
    """Import the target's function and call it for what to trace.

    Raises TargetError if the text has no colon, the file, module or function isn't there, importing or calling it
    raises, or the result isn't ``(callable, args)`` or ``(callable, args, kwargs)``.
    """
    home, colon, name = target.rpartition(":")
    if not colon or not home or not name:
        raise TargetError(f"{target!r} names no function; write file.py:function or module:function")
    module = _import_file(home) if home.endswith(".py") or "/" in home else _import_module(home)
    function = getattr(module, name, None)
    if function is None:
        known = ", ".join(_functions(module)) or "no functions"
        raise TargetError(f"{home} has no function {name!r}; it has {known}")
    if not callable(function):
        raise TargetError(f"{target} is {type(function).__name__}, not a function that returns {CONVENTION}")
    try:
        result = function()
    except Exception as error:
        raise TargetError(f"calling {target} without arguments raised {_one_line(error)}"
                          f"{_where(error, getattr(module, '__file__', None))}; it must return {CONVENTION}") from error
    return _checked(target, result)


def _checked(target: str, result: Any) -> ReportTarget:
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        got = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise TargetError(f"{target} returned {got}; it must return {CONVENTION}")
    function, args, kwargs = (*result, {})[:3]
    if not callable(function):
        raise TargetError(f"{target} returned {type(function).__name__} first, which can't be called; "
                          f"it must return {CONVENTION}")
    if not isinstance(args, Sequence) or isinstance(args, str):
        raise TargetError(f"{target} returned {type(args).__name__} for args; they must be a tuple, as in "
                          "(callable, (x,))")
    if not isinstance(kwargs, Mapping):
        raise TargetError(f"{target} returned {type(kwargs).__name__} for kwargs; they must be a dictionary")
    return ReportTarget(function, tuple(args), kwargs)
