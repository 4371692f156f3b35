"""Who is measured. Each contender gets the same function, inputs, static shapes and threads."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _eager(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn


def _inductor(fn: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(fn, backend="inductor", dynamic=False)


def _inductor_max(fn: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(fn, backend="inductor", dynamic=False, mode="max-autotune")


def _rooffuse(fn: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(fn, backend="rooffuse", dynamic=False)


CONTENDERS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "eager": _eager, "inductor": _inductor, "inductor-max": _inductor_max, "rooffuse": _rooffuse}
