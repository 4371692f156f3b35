"""Where a node of a graph comes from: the module that called it, and the line of the user's code."""
from __future__ import annotations

import linecache
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType

import torch
from torch.fx import Node

_ROOT = re.compile(r"^[LG]\['(\w+)'\]\.?")
_INDEX = re.compile(r"\[(?:'(\w+)'|(\d+))\]")
_FRAME = re.compile(r'^\s*File "(.+)", line (\d+), in (\S+)$')
_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)


@dataclass(frozen=True)
class Line:
    """A line of source: ``place`` is ``file:line``, ``code`` its text; both empty where nothing is known."""

    place: str = ""
    code: str = ""


def module_path(node: Node) -> str:
    """The innermost module around a node, as a user writes it: ``model.layers.0.mlp``. In a backward graph, that of the
    forward node. Empty outside of modules."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return ""
    path, owner = list(stack.values())[-1]
    return _spelled(path) or getattr(owner, "__name__", str(owner)).rpartition(".")[2]


@lru_cache(maxsize=4096)
def _spelled(path: str) -> str:
    root = _ROOT.match(path)
    rest = path[root.end():] if root else path
    head = "" if root is None or root[1] == "self" else root[1]
    rest = _INDEX.sub(lambda m: f".{m[1] or m[2]}", rest.replace("._modules", "")).replace("()", "")
    return ".".join(part for part in (head, rest.strip(".")) if part)


def source_line(node: Node) -> Line:
    """The innermost line outside of torch that a node was traced from; of the forward for a node of a backward."""
    return _innermost(node.meta.get("stack_trace") or "")


@lru_cache(maxsize=4096)
def _innermost(trace: str) -> Line:
    lines = trace.splitlines()
    for k in range(len(lines) - 1, -1, -1):
        frame = _FRAME.match(lines[k])
        if frame is not None and not frame[1].startswith(_TORCH):
            code = lines[k + 1].strip() if k + 1 < len(lines) else ""
            return Line(f"{_short(frame[1])}:{frame[2]}", code)
    return Line()


def calling_line(frame: FrameType | None) -> Line:
    """The innermost line outside of torch and of this package that is being run, from ``frame`` on."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _OWN, "<")):
            return _line(file, frame.f_lineno)
        frame = frame.f_back
    return Line()


@lru_cache(maxsize=4096)
def _line(file: str, number: int) -> Line:
    return Line(f"{_short(file)}:{number}", linecache.getline(file, number).strip())


def _short(file: str) -> str:
    """``file`` from the working folder or the folder of installed packages on."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        inside = path.relative_to(Path.cwd())
        if "site-packages" not in inside.parts:
            return str(inside)
    return file.rpartition("site-packages/")[2]


def shape_text(value: object) -> str:
    """Sizes and type of a node's tensors: ``bf16[1, 4096]``."""
    if isinstance(value, torch.Tensor):
        return f"{_DTYPES.get(value.dtype, str(value.dtype).removeprefix('torch.'))}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return ", ".join(shape_text(v) for v in value if isinstance(v, torch.Tensor))
    return ""


_DTYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
           torch.int64: "i64", torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
           torch.float8_e4m3fn: "e4m3fn", torch.float8_e5m2: "e5m2"}
