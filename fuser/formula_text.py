"""Formulas for reading."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
from rooffuse.cost_model import Cost
from tabulate import tabulate

from .formula_rows import FormulaRow, Formulas, times, total_cost
from .report_text import clipped, device_line, format_bytes, format_count, format_time

SORTS = ("time", "bytes", "flops", "name")
_MODULE_WIDTH, _OP_WIDTH, _FORMULA_WIDTH = 34, 30, 48
_POWER = re.compile(r"\*\*(\d+)")
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_RELATIONS = {"==": "=", "!=": "≠", "<=": "≤", ">=": "≥"}


def formula_text(value: Any) -> str:
    """``2*B*S**2`` as ``2·B·S²``."""
    text = _POWER.sub(lambda m: m[1].translate(_RAISED), str(value))
    return text.replace("*", "·").replace("Min(", "min(").replace("Max(", "max(")


def condition_text(condition: sympy.Basic) -> str:
    """``Ne(B, 4)`` as ``B ≠ 4``."""
    if isinstance(condition, sympy.core.relational.Relational):
        sign = condition.rel_op
        return f"{formula_text(condition.lhs)} {_RELATIONS.get(sign, sign)} {formula_text(condition.rhs)}"
    return formula_text(condition)


def _sizes_text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in sizes.items())


def _cells(cost: Cost, here: Cost) -> list[str]:
    return [clipped(formula_text(cost.flops), _FORMULA_WIDTH), format_count(float(here.flops)),
            clipped(formula_text(sympy.expand(cost.bytes)), _FORMULA_WIDTH), format_bytes(float(here.bytes))]


def _ordered(found: Formulas, sort: str | None) -> list[tuple[FormulaRow, Cost]]:
    from rooffuse.cost_model import estimate

    rows = [(row, row.evaluate(**found.sizes)) for row in found.rows]
    keys: dict[str, Callable[[tuple[FormulaRow, Cost]], Any]] = {
        "time": lambda r: -r[0].count * estimate(r[1], found.device, r[0].dtype, r[0].unit).seconds,
        "bytes": lambda r: -r[0].count * r[1].bytes, "flops": lambda r: -r[0].count * r[1].flops,
        "name": lambda r: (r[0].module, r[0].op)}
    if sort is None:
        return rows
    if sort not in keys:
        raise ValueError(f"formulas are sorted by {', '.join(SORTS)}, not by {sort!r}")
    return sorted(rows, key=keys[sort])


def _operators(found: Formulas, sort: str | None, top: int | None) -> str:
    rows = _ordered(found, sort)
    cells = [[clipped(row.module, _MODULE_WIDTH),
              clipped(row.op.removeprefix("aten.").removesuffix(".default"), _OP_WIDTH), str(row.count),
              *_cells(row.cost, here)] for row, here in rows[:top]]
    table = tabulate(cells, ["module", "operator", "×", "FLOPs", "here", "bytes", "here"], tablefmt="simple",
                     colalign=["left", "left", "right", "left", "right", "left", "right"], disable_numparse=True)
    return table + (f"\n… {len(rows) - len(cells)} more rows" if len(cells) < len(rows) else "")


def _totals(found: Formulas) -> str:
    groups: dict[str, list[FormulaRow]] = {}
    for row in found.rows:
        groups.setdefault(row.kind, []).append(row)
    cells = []
    for kind, rows in groups.items():
        here = sum((times(row.evaluate(**found.sizes), row.count) for row in rows), Cost.zero())
        cells.append([kind, str(sum(row.count for row in rows)), *_cells(total_cost(rows), here)])
    table = tabulate(cells, ["kind", "calls", "FLOPs", "here", "bytes", "here"], tablefmt="simple",
                     colalign=["left", "right", "left", "right", "left", "right"], disable_numparse=True)
    whole, at = total_cost(found.rows), found.evaluate()
    lines = [f"FLOPs    {formula_text(whole.flops)} = {format_count(at.flops)} here",
             f"read     {formula_text(whole.bytes_read)} = {format_bytes(at.bytes_read)}",
             f"written  {formula_text(whole.bytes_written)} = {format_bytes(at.bytes_written)}"]
    return f"{table}\n\n{chr(10).join(lines)}"


def _evaluations(found: Formulas, several: Sequence[Mapping[str, int]]) -> str:
    cells = []
    for sizes in several:
        at = found.evaluate(**sizes)
        mark = "" if at.holds else " !"
        cells.append([*(f"{value}" for value in at.sizes.values()), format_count(at.flops), format_bytes(at.bytes),
                      f"{at.intensity:.3g}", f"{format_time(at.time_us)}{mark}"])
    return tabulate(cells, [*found.sizes, "FLOPs", "bytes", "FLOP/B", "each alone"], tablefmt="simple",
                    colalign=["right"] * (len(found.sizes) + 4), disable_numparse=True)


def formulas_text(found: Formulas, sort: str | None, top: int | None, several: Sequence[Mapping[str, int]]) -> str:
    """See `Formulas.text`. Raises ValueError for an order that there isn't, FormulaError for sizes that can't be."""
    if not found.rows:
        return f"{device_line(found.device)}\nno formulas: no tensor operation was traced"
    calls = sum(row.count for row in found.rows)
    blocks = [f"{device_line(found.device)}\n{calls} calls of operators, before decomposition and fusion; formulas are "
              f"of one call, \"here\" is {_sizes_text(found.sizes)}",
              _operators(found, sort, top), _totals(found)]
    if several:
        blocks.append(_evaluations(found, several))
        if not all(found.evaluate(**sizes).holds for sizes in several):
            blocks.append("!  the code takes another path at these sizes than the one that was traced")
    if found.conditions:
        blocks.append(f"holds where  {', '.join(condition_text(c) for c in found.conditions)}")
    unknown = sorted({row.op for row in found.rows if not row.known})
    if unknown:
        blocks.append(f"no formula   priced by their tensors alone: {', '.join(unknown)}")
    return "\n\n".join(blocks)
