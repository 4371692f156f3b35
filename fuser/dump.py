"""Writes each stage of a compilation into a folder, for people to read."""
from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch.fx import GraphModule

if TYPE_CHECKING:
    from .autotune import Outcome
    from .candidates import Candidate
    from .compile import Plan

_numbers = itertools.count()


class Dump:
    """One folder for one graph: ``00_input.txt``, a file after each pass, the groups, the kernels and the plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stages = itertools.count()

    @classmethod
    def open(cls, root: str, name: str) -> Dump:
        """A new folder under ``root``, made if need be. Raises OSError if it can't be written."""
        folder = Path(root) / f"{next(_numbers):03d}_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text + "\n")

    def graph(self, stage: str, gm: GraphModule) -> None:
        self._write(f"{next(self._stages):02d}_{stage}.txt", str(gm.graph))

    def plan(self, plan: Plan) -> None:
        from .compile import kernel_of, kernel_steps

        self._write("groups.txt", "\n".join(
            [f"{'fused' if g.fused else 'call '}  {', '.join(n.name for n in g.nodes)}"
             + (f"  ({g.reason})" if g.reason else "") for g in plan.grouping.groups]
            + ["", "refused merges:"]
            + [f"{r.first} + {r.second}: {r.reason} (would save {r.seconds * 1e6:.2f} us)"
               for r in plan.grouping.refusals]))
        self._write("fused_graph.txt", str(plan.fused.module.graph))
        steps = kernel_steps(plan.program)
        self._write("kernels.txt", "\n\n".join(f"{s.name}\n{kernel_of(s)}" for s in steps))
        self._kernels(plan)
        program = plan.program
        self._write("memory.txt", "\n".join(
            [f"arena {program.plan.arena_bytes} bytes"]
            + [f"{offset:>12}  {node.name}" for node, offset in sorted(program.planned.items(), key=lambda p: p[1])]
            + [f"{'in place of':>12}  {a} <- {b}" for a, b in sorted(program.plan.reused.items())]))

    def _kernels(self, plan: Plan, chosen: Mapping[str, Candidate] | None = None) -> None:
        from .compile import cpp_source, kernel_steps, step_source

        steps = kernel_steps(plan.program)
        if plan.target.language == "cpp":
            self._write("kernels.cpp", cpp_source(steps, chosen))
        else:
            for step in steps:
                self._write(f"{step.name}.py", step_source(step, plan.target, chosen))

    def tuned(self, plan: Plan, outcomes: Sequence[Outcome]) -> None:
        """What a search chose, and the kernels as they are then."""
        from .autotune import chosen_candidates

        self._write("autotune.txt", "\n".join(f"{', '.join(o.steps)}: {o}" for o in outcomes))
        self._kernels(plan, chosen_candidates(outcomes))

    def run_function(self, source: str) -> None:
        self._write("run.py", source)
