"""What is measured: a case is a name, a suite, and a function that makes a callable with its inputs."""
from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Made = tuple[Callable[..., Any], tuple[Any, ...]]

#: Suites in the order of running, and the modules that register their cases.
SUITES = {"kernels": ("workloads", "wider_workloads", "rarer_workloads"), "blocks": ("blocks",), "decode": ("decode",),
          "training": ("training",), "compile": ("compiling",), "models": ("models",)}


@dataclass(frozen=True)
class Case:
    """``make(device, dtype)`` returns ``(callable, args)``; nothing of the measuring code knows its shapes.

    A callable with parameters is an ``nn.Module``, so that they count among the bytes that have to be moved; ``floor``
    gives those bytes for ``(callable, args)`` where not all of each input has to be read. With ``training`` the
    callable is a module that returns a loss, and the gradients of its parameters are part of the work. ``quick`` cases
    are in a quick round. ``devices`` are those that the case is meant for. ``tolerance`` replaces the type's default.
    ``host_bound`` asks the compilers for their mode against launch costs ("reduce-overhead").
    """

    name: str
    suite: str
    make: Callable[[str, torch.dtype], Made]
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    training: bool = False
    tolerance: float | None = None
    floor: Callable[[Callable[..., Any], tuple[Any, ...]], int] | None = None
    quick: bool = True
    devices: tuple[str, ...] = ("cpu", "cuda")
    host_bound: bool = False


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_CASES: dict[tuple[str, str], Case] = {}


def case(suite: str, name: str, **options: Any):
    """Register a case under ``suite``. Raises ValueError for a name that is there already or an unknown suite."""
    if suite not in SUITES:
        raise ValueError(f"there is no suite {suite!r}; there are {', '.join(SUITES)}")

    def register(make):
        if (suite, name) in _CASES:
            raise ValueError(f"suite {suite} already has a case {name}")
        _CASES[suite, name] = Case(name, suite, make, **options)
        return make

    return register


def cases_of(suite: str, pattern: str = "", device: str = "") -> list[Case]:
    """Cases of a suite whose names contain ``pattern`` and that are meant for ``device`` (any, if empty).

    Raises ValueError for a suite that doesn't exist.
    """
    if suite not in SUITES:
        raise ValueError(f"there is no suite {suite!r}; there are {', '.join(SUITES)}")
    for module in SUITES[suite]:  # importing one registers its cases
        importlib.import_module(f".{module}", __package__)
    return [c for (s, n), c in _CASES.items() if s == suite and pattern in n and (not device or device in c.devices)]


def case_named(suite: str, name: str) -> Case:
    """Raises ValueError if the suite has no case of that name."""
    found = {c.name: c for c in cases_of(suite)}
    if name not in found:
        raise ValueError(f"suite {suite} has no case {name!r}; it has {', '.join(found)}")
    return found[name]
