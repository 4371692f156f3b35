"""A trace of Dynamo's that leaves the process as it was."""
from __future__ import annotations

import copy
import re
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo
import torch._functorch.config
from torch._dynamo import pgo
from torch._dynamo.convert_frame import register_bytecode_hook
from torch._dynamo.utils import counters, graph_break_reasons

_RESUMED = re.compile(r"torch_dynamo_resume_in_(.+)_at_\d+$")
_SKIPPED = re.compile(r"frame skipped: (\S+) \((.+) line (\d+)\)")

#: Shapes that one piece of code is traced with before Dynamo gives up on it.
_SHAPES = 256


@dataclass(frozen=True)
class GraphBreak:
    """Where a graph ended before the function did. ``location`` is ``file:line in function``, or empty."""

    reason: str
    location: str


@dataclass
class DynamoTrace:
    """What Dynamo did inside of ``dynamo_scope``."""

    breaks: list[GraphBreak] = field(default_factory=list)


def location_of(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost frame, as ``file:line in function``."""
    if not frames:
        return ""
    frame = frames[-1]
    resumed = _RESUMED.match(frame.name)
    return f"{frame.filename}:{frame.lineno} in {resumed[1] if resumed else frame.name}"


def _short(reason: str) -> str:
    """The first line of a reason and its explanation, without hints and links."""
    lines = [line.strip() for line in reason.strip().splitlines()]
    first = lines[0].rstrip(".") if lines else "unknown"
    if first.startswith("generic_jump"):
        first = "Data-dependent branching"
    explanation = next((line.removeprefix("Explanation:").strip() for line in lines if line.startswith("Explanation:")),
                       "")
    return f"{first}: {explanation}" if explanation else first


def _breaks(before: int, counted: dict[str, int]) -> list[GraphBreak]:
    """Breaks that ended a graph, then those for which a whole frame was skipped; each once."""
    found: dict[GraphBreak, None] = {}
    told = set()
    for reason in graph_break_reasons[before:]:
        told.add(reason.reason)
        found[GraphBreak(_short(reason.reason), location_of(reason.user_stack))] = None
    heads = {b.reason for b in found}
    texts = [t for t, count in counters["unimplemented"].items() if count > counted.get(t, 0)]
    for text in texts:
        shown_longer = any(other != text and other.startswith(text) for other in texts)
        if text not in told and not shown_longer and _short(text).split(":")[0] not in heads:
            skipped = _SKIPPED.search(text)
            place = f"{skipped[2]}:{skipped[3]} in {skipped[1]}" if skipped else ""
            rest = "; the whole function is left uncompiled, since this is in a loop" if "in loop" in text else ""
            found[GraphBreak(f"{_short(text)}{rest}", place)] = None
    return list(found)


def _forget(compiled: dict[CodeType, list[CodeType]]) -> None:
    """Drop the entries that were made in Dynamo's cache, and no others."""
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code
    from torch._dynamo.guards import DeletedGuardManagerWrapper

    for code, ours in compiled.items():
        entries = _debug_get_cache_entry_list(code)
        mine = [e for e in entries if any(e.code is c for c in ours)]
        if len(mine) == len(entries):
            reset_code(code)
            continue
        for entry in mine:
            manager = entry.guard_manager
            manager.extra_state.invalidate(entry, DeletedGuardManagerWrapper("it belonged to a trace that has ended"))


@contextmanager
def dynamo_scope() -> Iterator[DynamoTrace]:
    """Static shapes and eagerly compiled backward graphs inside; afterwards Dynamo's configuration, counters and cache
    are what they were, and the trace lists the graph breaks."""
    trace = DynamoTrace()
    compiled: dict[CodeType, list[CodeType]] = {}

    def note(code: CodeType, out: CodeType) -> None:
        compiled.setdefault(code, []).append(out)

    kept: Any = copy.deepcopy(counters)
    before = len(graph_break_reasons)
    functorch: dict[str, Any] = {"enable_autograd_cache": False, "force_non_lazy_backward_lowering": True}
    with ExitStack() as stack:
        # Sizes that were seen decide which ones the next compilation takes for dynamic.
        stack.enter_context(patch.object(pgo, "_CODE_STATE", defaultdict(pgo.CodeState)))
        stack.enter_context(torch._dynamo.config.patch(
            recompile_limit=_SHAPES, accumulated_recompile_limit=4 * _SHAPES, automatic_dynamic_shapes=False,
            assume_static_by_default=True, suppress_errors=False))
        stack.enter_context(torch._functorch.config.patch(functorch))
        hook = register_bytecode_hook(note)
        stack.callback(hook.remove)
        try:
            yield trace
        finally:
            trace.breaks += _breaks(before, kept.get("unimplemented", {}))
            del graph_break_reasons[before:]
            counters.clear()
            counters.update(kept)
            _forget(compiled)
