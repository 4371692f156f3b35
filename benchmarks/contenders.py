"""Who is measured. Each contender gets the same function, inputs, static shapes and threads.

The compilers are told ``dynamic=False``. "inductor" runs in its default mode, and in its documented mode for small
kernels, ``reduce-overhead``, on cases that are bound by the host; rooffuse gets the same mode there. "inductor-max" and
"rooffuse-max" are ``max-autotune`` everywhere.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .cases import Case

CONTENDERS = ("eager", "inductor", "inductor-max", "rooffuse", "rooffuse-max")


def contender(name: str, fn: Callable[..., Any], case: Case) -> Callable[..., Any]:
    """``fn`` as ``name`` runs it. Raises ValueError for a name that isn't known."""
    if name == "eager":
        return fn
    mode = "reduce-overhead" if case.host_bound else None
    if name in ("inductor-max", "rooffuse-max"):
        return torch.compile(fn, backend=name.removesuffix("-max"), dynamic=False, mode="max-autotune")
    if name in ("inductor", "rooffuse"):
        return torch.compile(fn, backend=name, dynamic=False, mode=mode)
    raise ValueError(f"there is no contender {name!r}; there are {', '.join(CONTENDERS)}")


def as_call(case: Case, fn: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    """What is timed: ``run`` itself, or for training ``run`` and the gradients of the parameters of ``fn``."""
    if not case.training:
        return run
    parameters = [p for p in fn.parameters() if p.requires_grad]  # type: ignore[attr-defined]

    def step(*args: Any) -> tuple[Any, ...]:
        loss = run(*args)
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    return step
