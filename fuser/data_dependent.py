"""Graphs in which sizes or numbers depend on what tensors hold: cut where one is read, and compiled in pieces.

``x[mask]`` has as many rows as the mask has ones, which nobody knows before the program has come to it. Such calls run
on their own, and what comes after is a graph whose sizes are then known.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rooffuse.passes.graph import packet_name
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.passes.split_module import split_module

#: Makes a boxed function of a graph with symbolic sizes.
Compile = Callable[[GraphModule], Callable[[list[Any]], Any]]


def reads_sizes(gm: GraphModule) -> bool:
    """Whether some call of the graph makes a size, or a number, of what a tensor holds."""
    return any(map(_reads, gm.graph.nodes))


def has_read_sizes(gm: GraphModule) -> bool:
    """Whether any size in the graph is one that depends on what tensors held: it may be another one each time."""
    return any(map(_is_read, gm.graph.nodes))


def _reads(node: Node) -> bool:
    """Whether the call reads a size or a number. Of two that read the same one the first alone is said to bind it."""
    if node.op != "call_function" or node.meta.get("unbacked_bindings"):
        return node.op == "call_function"
    tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
    if torch.Tag.dynamic_output_shape not in tags and torch.Tag.data_dependent_output not in tags:
        return False
    masks = any(n.meta["val"].dtype in (torch.bool, torch.uint8) for n in node.all_input_nodes[1:]
                if isinstance(n.meta.get("val"), torch.Tensor))
    return (masks or not packet_name(node.target).startswith("aten.index")) and _is_read(node)


def _is_read(node: Node) -> bool:
    value = node.meta.get("val")
    return any(isinstance(v, torch.Tensor | torch.SymInt) and bool(free_unbacked_symbols(v))
               for v in (value if isinstance(value, list | tuple) else [value]))


class _Piece(torch.nn.Module):
    """A compiled piece in the place of its FX module."""

    def __init__(self, function: Callable[[list[Any]], Any], single: bool) -> None:
        super().__init__()
        self.function, self.single = function, single

    def forward(self, *args: Any) -> Any:
        result = self.function(list(args))
        return result[0] if self.single else result


class CutFunction:
    """Runs a graph in pieces: compiled ones, and between them the calls that read sizes or numbers from tensors."""

    def __init__(self, gm: GraphModule, compiled: Compile) -> None:
        self._boxed_call = True  # of the instance: wrappers copy those attributes
        number, numbers = 0, {}
        for node in gm.graph.nodes:
            cut = _reads(node)
            number += cut  # 2k + 1 is the k-th call, 2k what comes before it
            numbers[node] = number
            number += cut
        self.module = split_module(gm, gm, numbers.__getitem__, keep_original_order=True)
        for name, piece in list(self.module.named_children()):
            if isinstance(piece, GraphModule) and not reads_sizes(piece):
                output = piece.graph.output_node()
                if single := isinstance(output.args[0], Node):  # graphs return tuples
                    output.args = (output.args,)
                    piece.recompile()
                setattr(self.module, name, _Piece(compiled(piece), single))

    def __call__(self, args: list[Any]) -> Any:
        inputs = list(args)
        args.clear()
        with torch.no_grad():
            return self.module(*inputs)
