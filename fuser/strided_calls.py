"""Calls that count places in memory from where a storage begins, made where tensors lie in planned memory."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rooffuse.passes import STRIDED
from rooffuse.passes.graph import viewed_arg
from torch.fx import Node


def places_moved(node: Node) -> int | None:
    """How far behind its operand's first element such a call's places begin, in elements: what was the beginning of a
    storage when the graph was traced may be in the middle of planned memory when it runs. None for other calls, for
    views of the graph's inputs, whose storage is the caller's, and for those that say nothing of where they begin."""
    if node.target not in STRIDED:
        return None
    last = len(node.target._schema.arguments) - 1  # type: ignore[union-attr]
    source = root = node.args[0]
    while isinstance(root, Node) and (viewed := viewed_arg(root)) is not None:
        root = viewed
    if not isinstance(source, Node) or not isinstance(root, Node) or root.op in ("placeholder", "get_attr"):
        return None
    first = node.args[last] if len(node.args) > last else None
    return first - source.meta["val"].storage_offset() if type(first) is int else None


def moved_arguments(node: Node, args: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments of a call, given as tensors: counted from where its operand lies."""
    moved = places_moved(node)
    return tuple(args) if moved is None else (*args[:-1], args[0].storage_offset() + moved)
