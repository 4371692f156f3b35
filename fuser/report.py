"""The report of a plan: what each node and each kernel moves, computes and takes, as data, text and HTML."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rooffuse.cost_model import Device

    from .dynamo_scope import GraphBreak


@dataclass(frozen=True)
class NodeRow:
    """One operator call, priced alone. ``group`` is the kernel that it runs in; "" for what runs in none.

    Bytes as integers, ``intensity`` in FLOP/byte (0.0 where nothing is moved), ``time_us`` in microseconds with one
    launch; ``bound`` is "memory", "compute", "launch", or "none" for what costs nothing.

    ``kind`` is that of the cost model, ``module`` the path of the module around the call, ``source`` and ``code`` the
    user's line as ``file:line`` and its text (all three empty where unknown), ``shape`` the result's type and sizes,
    ``peak`` and ``unit`` the rate of the device that bounds it. ``known`` is False for an operator without a formula,
    which is priced by its tensors. ``origin`` is the operator that the call was decomposed from, or itself;
    ``expands`` says that it reads an expanded tensor, so that a copy of it repeats values.
    """

    name: str
    op: str
    group: str
    bytes_read: int
    bytes_written: int
    flops: int
    intensity: float
    bound: str
    time_us: float
    kind: str = "other"
    module: str = ""
    source: str = ""
    code: str = ""
    shape: str = ""
    peak: str = "fp32"
    unit: str = "vector"
    known: bool = True
    origin: str = ""
    expands: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "op": self.op, "group": self.group, "bytes_read": self.bytes_read,
                "bytes_written": self.bytes_written, "flops": self.flops, "intensity": self.intensity,
                "bound": self.bound, "time_us": self.time_us}


@dataclass(frozen=True)
class KernelRow:
    """One launch. ``kind`` is "triton" or "cpp" for a generated kernel, "extern" for a library call, "fallback" for an
    operator that should be in a kernel and can't be. Units as in `NodeRow`; a second sweep over data that isn't held on
    chip counts its bytes again. ``source`` makes the code; ``peak`` and ``unit`` choose the rate that bounds it.
    ``tuned`` says what a search among candidates chose, and is "" without the option ``autotune`` and for kernels that
    have no other candidate."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    flops: int
    intensity: float
    bound: str
    time_us: float
    source: Callable[[], str] = field(default=str, repr=False, compare=False)
    peak: str = "fp32"
    unit: str = "vector"
    tuned: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "nodes": list(self.nodes), "bytes_read": self.bytes_read,
                "bytes_written": self.bytes_written, "flops": self.flops, "intensity": self.intensity,
                "bound": self.bound, "time_us": self.time_us}


@dataclass(frozen=True)
class FallbackRow:
    """Nodes that run as plain operator calls though a kernel was wanted for them, and why."""

    nodes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class RefusedMerge:
    """Two kernels, named by their first nodes, that would have saved ``saving_us`` as one, and why they aren't."""

    first: str
    second: str
    saving_us: float
    reason: str


@dataclass(frozen=True)
class GraphReport:
    """One graph. ``kind`` is "inference", "forward" or "backward".

    ``arena_bytes`` is what intermediates share; ``unplanned_bytes`` are allocated in each call: results that the
    caller keeps, and what library calls allocate for themselves. ``input_bytes`` is what must be read of the graph's
    inputs, each once: weights, caches and arguments, of tables that are looked up in the rows that are.
    """

    kind: str
    nodes: tuple[NodeRow, ...]
    kernels: tuple[KernelRow, ...]
    arena_bytes: int
    unplanned_bytes: int
    fallbacks: tuple[FallbackRow, ...]
    captured: bool
    capture_reason: str
    refused: tuple[RefusedMerge, ...]
    input_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "nodes": [n.to_dict() for n in self.nodes],
            "kernels": [k.to_dict() for k in self.kernels],
            "memory": {"arena_bytes": self.arena_bytes, "unplanned_bytes": self.unplanned_bytes},
            "fallbacks": [{"nodes": list(f.nodes), "reason": f.reason} for f in self.fallbacks],
            "cuda_graph": {"captured": self.captured, "reason": self.capture_reason},
        }


@dataclass(frozen=True)
class Totals:
    """Sums over rows: bytes both ways, FLOPs, microseconds."""

    bytes: int
    flops: int
    time_us: float


def totals(rows: Iterable[NodeRow | KernelRow]) -> Totals:
    """The sums of some rows."""
    listed = list(rows)
    return Totals(sum(r.bytes_read + r.bytes_written for r in listed), sum(r.flops for r in listed),
                  sum(r.time_us for r in listed))


@dataclass(frozen=True)
class Report:
    """What `rooffuse.explain` found. ``print`` it, or take ``to_dict()``, ``nodes``, ``kernels`` and ``source(name)``.

    ``graphs`` has one entry for each call of a graph: one that is called three times is there three times, so that sums
    over graphs are those of a whole call of the function.
    """

    device: Device
    graphs: tuple[GraphReport, ...]
    graph_breaks: tuple[GraphBreak, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, valid JSON: numbers are finite and keys are always there."""
        return {"device": self.device.name, "graphs": [g.to_dict() for g in self.graphs],
                "graph_breaks": [{"reason": b.reason, "location": b.location} for b in self.graph_breaks]}

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """One dictionary a node: the graph's number, the keys of ``to_dict()``, and where it comes from: ``kind``,
        ``shape``, ``module``, ``source`` and whether its price is ``known``."""
        return [{"graph": k, **n.to_dict(), "kind": n.kind, "shape": n.shape, "module": n.module, "source": n.source,
                 "known": n.known} for k, g in enumerate(self.graphs) for n in g.nodes]

    @property
    def kernels(self) -> list[dict[str, Any]]:
        """One dictionary a kernel: the keys of ``to_dict()`` and the graph's number."""
        return [{"graph": k, **n.to_dict()} for k, g in enumerate(self.graphs) for n in g.kernels]

    def to_pandas(self, level: str = "node") -> Any:
        """``nodes`` (or with level "kernel" ``kernels``) as a pandas DataFrame. Raises ImportError without pandas."""
        import pandas

        return pandas.DataFrame(self.kernels if level == "kernel" else self.nodes)

    @property
    def alone(self) -> Totals:
        """Every node a kernel of its own. Compound operators are decomposed by then, so this is more than eager moves
        where a library has one kernel for them, as for layer_norm."""
        return totals(n for g in self.graphs for n in g.nodes)

    @property
    def fused(self) -> Totals:
        """The kernels of the plan."""
        return totals(k for g in self.graphs for k in g.kernels)

    def source(self, kernel: str) -> str:
        """The code of a kernel: "fused_0", or "1:fused_0" for that of graph 1 where several graphs have one.

        A library call's is its line in the graph. Raises KeyError that lists the names.
        """
        number, _, name = kernel.rpartition(":")
        found: dict[int, str] = {}
        for k, graph in enumerate(self.graphs):
            for row in graph.kernels:
                if row.name == name and number in ("", str(k)):
                    found.setdefault(id(graph), f"{k}:{name}")
                    source = row.source
        if not found:
            fused = [f"{k}:{row.name}" if len(self.graphs) > 1 else row.name
                     for k, g in enumerate(self.graphs) for row in g.kernels if row.kind in ("triton", "cpp")]
            raise KeyError(f"no kernel is called {kernel!r}; there are {', '.join(fused) or 'none'}")
        if len(found) > 1:
            raise KeyError(f"several graphs have a kernel {kernel!r}; choose one of {', '.join(found.values())}")
        return source()

    def text(self, level: str | None = None, sort: str | None = None, top: int | None = None) -> str:
        """The report as text: ``level`` "node", "kernel" or "module" for one of the tables (by default nodes and
        kernels), ``sort`` by "time", "bytes", "flops" or "name" (by default the order of running), ``top`` rows of each
        table. Rows that differ only in names, as those of equal layers, are shown once, with their number under ×."""
        from .report_text import report_text

        return report_text(self, level, sort, top)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        from .report_text import report_html

        return report_html(self)
