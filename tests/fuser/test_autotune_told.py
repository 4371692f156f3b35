"""What reports, logs and dumps say of a measured choice."""
from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import rooffuse
from rooffuse.autotune import Search
from rooffuse.compile import chosen_candidates, compile_graph, kernel_steps, step_source
from rooffuse.options import Options
from rooffuse.report_rows import graph_report
from rooffuse.report_text import report_text

from .graphs import trace
from .searches import CPU, INPUTS, FakeTimer, compiled, entries, row_sums


def test_a_report_says_what_an_earlier_search_chose(tmp_path: Path) -> None:
    options = Options(autotune=True, cache_dir=str(tmp_path))
    found = compiled(row_sums, INPUTS, tmp_path, FakeTimer(1.0, 0.5))
    graph = graph_report(found.plan, "inference", options)
    (row,) = graph.kernels
    assert row.tuned == f"{found.tuned[0].names[1]}, 2.00× faster than the default (measured earlier, of 3 others)"
    text = report_text(rooffuse.Report(CPU.device, (graph,), ()))
    assert f"autotune    {row.name}: {row.tuned}" in text
    (step,) = kernel_steps(found.plan.program)
    assert row.source() == step_source(step, CPU, chosen_candidates(found.tuned)) != step_source(step, CPU)
    plain = graph_report(found.plan, "inference", replace(options, autotune=False))
    assert plain.kernels[0].tuned == "" and plain.kernels[0].source() == step_source(step, CPU)


def test_explain_measures_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ROOFFUSE_AUTOTUNE", "1")
    monkeypatch.setenv("ROOFFUSE_CACHE_DIR", str(tmp_path))
    report = rooffuse.explain(row_sums, *INPUTS, device="h100")
    assert "no search on this device has met it" in str(report) and not entries(tmp_path)


def test_the_log_says_how_long_the_search_took(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="rooffuse.autotune"):
        compiled(row_sums, INPUTS, tmp_path, FakeTimer(1.0, 0.5))
    assert re.search(r"autotune: \d+\.\d s; kernels measured 1", caplog.text)
    assert "2.00× faster than the default" in caplog.text


def test_a_dump_has_the_choice_and_the_chosen_kernel(tmp_path: Path) -> None:
    options = Options(autotune=True, cache_dir=str(tmp_path / "cache"), dump=str(tmp_path / "dump"))
    found = compile_graph(trace(row_sums, *INPUTS), CPU, options, search=Search(timer=FakeTimer(1.0, 0.5)))
    (folder,) = (tmp_path / "dump").iterdir()
    assert str(found.tuned[0]) in (folder / "autotune.txt").read_text()
    (step,) = kernel_steps(found.plan.program)
    body = step_source(step, CPU, chosen_candidates(found.tuned)).split("{", 1)[1]
    assert body in (folder / "kernels.cpp").read_text()
