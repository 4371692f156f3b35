"""Copies of a callable and its arguments in which every tensor is fake: nothing that traces them can touch the
originals, and they take no memory, whatever their size."""
from __future__ import annotations

import copy
import copyreg
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CellType, CodeType, FunctionType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

log = logging.getLogger(__name__)

#: Makes the fake of a tensor in a mode.
Faker = Callable[[torch.Tensor, FakeTensorMode], torch.Tensor]


def fake_tensor(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """``tensor`` as a fake of ``mode``. Meta tensors, and fakes of a device that this machine hasn't, become fakes on
    the CPU: most operators trace on a device that isn't there, and some don't."""
    device = tensor.device.type
    if isinstance(tensor, FakeTensor) and tensor.fake_mode is not mode:
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        if isinstance(tensor, torch.nn.Parameter):
            meta = torch.nn.Parameter(meta, tensor.requires_grad)
        tensor = meta.requires_grad_(tensor.requires_grad)
    result = mode.from_tensor(tensor, static_shapes=True)
    if isinstance(result, FakeTensor) and result.device.type == "meta":
        there = device == "cuda" and torch.cuda.is_available()
        result.fake_device = torch.device("cuda", torch.cuda.current_device()) if there else torch.device("cpu")
    return result


def fake_on(device: torch.device) -> Faker:
    """Makes fakes that are all on ``device``."""

    def fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
        result = fake_tensor(tensor, mode)
        if isinstance(result, FakeTensor):
            result.fake_device = device
        return result

    return fake


class _Faking(TorchFunctionMode):
    """Makes ``copy.deepcopy`` copy tensors as fakes."""

    def __init__(self, mode: FakeTensorMode, fake: Faker) -> None:
        super().__init__()
        self.mode, self.fake = mode, fake
        self.kept: list[Any] = []

    def __torch_function__(self, func: Any, types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                self.kept.append(tensor)
                with torch._C.DisableTorchFunctionSubclass():
                    memo[id(tensor)] = self.fake(tensor, self.mode)
            return memo[id(tensor)]
        if func is torch.Tensor.clone:  # how parameters copy themselves
            with torch._C.DisableTorchFunctionSubclass():
                return self.fake(args[0], self.mode)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@contextmanager
def _meta_devices_as_cpu() -> Iterator[None]:
    """Makes ``copy.deepcopy`` copy the device "meta", which caches and modules remember, as the one of the fakes."""
    table = copyreg.dispatch_table
    before = table.get(torch.device)
    table[torch.device] = lambda device: (torch.device, ("cpu" if device.type == "meta" else str(device),))
    try:
        yield
    finally:
        if before is None:
            del table[torch.device]
        else:
            table[torch.device] = before


def _names(code: CodeType) -> Iterator[str]:
    """Global names that ``code`` and the functions defined inside of it mention."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


class FakeCopier:
    """Copies values for one trace; what is shared between originals is shared between copies. ``fake`` makes the
    copy of a tensor."""

    def __init__(self, mode: FakeTensorMode, fake: Faker = fake_tensor) -> None:
        self._faking = _Faking(mode, fake)
        self._memo: dict[int, Any] = {}
        self._globals: dict[int, dict[str, Any]] = {}

    def __call__(self, value: Any) -> Any:
        """A deep copy with fake tensors. Functions are copied with the tensors, modules and functions that they close
        over or name as globals. What can't be copied stays itself."""
        if isinstance(value, FunctionType):
            return self._function(value)
        with self._faking, _meta_devices_as_cpu():
            try:
                return copy.deepcopy(value, self._memo)
            except Exception as error:  # any class may refuse in its own way; the original still traces
                log.info("%s is traced as it is, since it can't be copied: %s", type(value).__name__, error)
                return value

    def _function(self, function: FunctionType) -> FunctionType:
        if id(function) in self._memo:
            return self._memo[id(function)]
        original = function.__globals__
        space = self._globals.setdefault(id(original), dict(original))
        cells = tuple(self._memo.setdefault(id(c), CellType()) for c in function.__closure__ or ())
        result = FunctionType(function.__code__, space, function.__name__, function.__defaults__, cells or None)
        self._memo[id(function)] = result
        result.__kwdefaults__ = function.__kwdefaults__
        result.__module__, result.__qualname__ = function.__module__, function.__qualname__
        result.__dict__.update(function.__dict__)
        for cell, filled in zip(function.__closure__ or (), cells):
            try:
                filled.cell_contents = self(cell.cell_contents)
            except ValueError:  # a name that has no value yet
                continue
        for name in dict.fromkeys(_names(function.__code__)):
            value = original.get(name)
            if isinstance(value, torch.Tensor | torch.nn.Module | torch.optim.Optimizer) or (
                    isinstance(value, FunctionType) and value.__globals__ is original):
                space[name] = self(value)
        return result
