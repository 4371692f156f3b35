"""Graphs with symbolic sizes: one compiled program for each combination of sizes that is met."""
from __future__ import annotations

import logging
import threading
from collections.abc import Hashable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from .compile import Compiled, compile_graph
from .data_dependent import has_read_sizes
from .options import Options
from .targets import local_target

log = logging.getLogger(__name__)

#: Combinations of sizes remembered that were met once.
MAX_MET = 1024
#: Programs kept for one graph; further sizes run the FX graph, and a warning says so.
MAX_SPECIALISATIONS = 16

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def concrete_graph(gm: GraphModule, args: list[Any]) -> GraphModule:
    """``gm`` with the sizes of ``args`` in place of symbols; its placeholders stay, numbers among them unused."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    graph = Graph()
    values: dict[Node, Any] = {}
    copies: dict[Node, Any] = {}
    inputs = iter(args)

    def mapped(value: Any) -> Any:
        return map_arg(value, lambda n: copies[n])

    for node in gm.graph.nodes:
        if node.op == "placeholder":
            value = next(inputs)
            if isinstance(value, torch.Tensor):
                value = mode.from_tensor(value.detach(), static_shapes=True)
            copy = graph.node_copy(node)
            copy.meta = {**node.meta, "val": value}
            values[node], copies[node] = value, copy if isinstance(value, torch.Tensor) else value
        elif node.op == "output":
            graph.output(map_arg(node.args[0], lambda n: copies[n])).meta = dict(node.meta)
        elif node.op == "get_attr":
            value = values[node] = getattr(gm, str(node.target))
            copies[node] = graph.node_copy(node)
            copies[node].meta = dict(node.meta)
            if isinstance(value, torch.Tensor):
                copies[node].meta["val"] = values[node] = mode.from_tensor(value, static_shapes=True)
        else:
            arguments, keywords = map_arg((node.args, node.kwargs), lambda n: values[n])
            with mode:
                value = node.target(*arguments, **keywords)
            values[node] = value
            if _is_number(value):
                copies[node] = value
                continue
            copies[node] = graph.create_node(node.op, node.target, mapped(node.args), mapped(node.kwargs), node.name)
            copies[node].meta = {**node.meta, "val": value}
    return GraphModule(gm, graph)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float | bool)


class SpecialisingFunction:
    """Compiles for the sizes of each call, once a combination. Where some of them are read from what tensors hold
    (``free_unbacked_symbols``), most may be met once: what is met again is compiled."""

    def __init__(self, gm: GraphModule, options: Options, kind: str) -> None:
        self._boxed_call = True  # of the instance: wrappers copy those attributes
        self.gm, self.options, self.kind = gm, options, kind
        self._compiled: dict[tuple[Any, ...], Compiled] = {}
        self._lock = threading.Lock()
        self._told = False
        self._met: dict[Any, None] | None = {} if has_read_sizes(gm) else None

    def __call__(self, args: list[Any]) -> Any:
        key = tuple(tuple(a.shape) + tuple(a.stride()) if isinstance(a, torch.Tensor) else a for a in args)
        compiled = self._compiled.get(key)
        if compiled is None and self._is_met_again(key):
            with self._lock:
                compiled = self._compiled.get(key)
                if compiled is None and len(self._compiled) < MAX_SPECIALISATIONS:
                    graph = concrete_graph(self.gm, list(args))
                    target = local_target(n.meta.get("val") for n in graph.graph.nodes)
                    compiled = compile_graph(graph, target, self.options, name=self.kind)
                    self._compiled[key] = compiled
        if compiled is not None:
            return compiled(args)
        if not self._told and len(self._compiled) >= MAX_SPECIALISATIONS:
            self._told = True
            log.warning("more than %d combinations of sizes met: further ones run as FX nodes", MAX_SPECIALISATIONS)
        inputs = list(args)
        args.clear()
        with torch.no_grad():
            return self.gm(*inputs)

    def _is_met_again(self, key: Hashable) -> bool:
        """Whether a combination of sizes may come again, as far as those of calls before tell."""
        if self._met is None or key in self._met:
            return True
        if len(self._met) >= MAX_MET:
            self._met.pop(next(iter(self._met)), None)
        self._met[key] = None
        return False
