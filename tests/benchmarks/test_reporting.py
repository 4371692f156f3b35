"""Comparing, tables, charts and schedules."""
from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import README, main
from benchmarks.compare import compare, report
from benchmarks.gpu_shapes import gpu_case
from benchmarks.plot import plot
from benchmarks.rows import RESULTS, Row, write_rows
from benchmarks.schedule import (
    Schedule,
    our_schedule,
    read_schedule,
    schedule_rows,
    schedule_table,
    write_schedule,
)
from benchmarks.summary import geometric_mean, speedups, summary_lines
from benchmarks.table import regenerate, table

OURS = Row("kernels", "softmax", "bf16", "rooffuse", 100.0, 98.0, 102.0, floor_bytes=10**6, flops=10**6,
           achieved_gbs=10.0, roof_us=50.0, share_of_roof=0.5, launches=1, cold_s=1.0, device_type="cpu",
           device="Some CPU", roof_gbs=20.0, threads=2, torch="2.13", triton="3.9", commit="abc", date="2026-01-02")
INDUCTOR = replace(OURS, contender="inductor", median_us=150.0, low_us=145.0, high_us=155.0, launches=2, cold_s=8.0)
EAGER = replace(OURS, contender="eager", median_us=300.0, low_us=290.0, high_us=310.0, launches=None, cold_s=None)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_rows(tmp_path / "results" / "some-cpu" / "kernels.csv", [EAGER, INDUCTOR, OURS])
    return tmp_path / "results"


def _verdicts(new: Row, old: Row = OURS) -> list[tuple[str, bool, bool]]:
    return [(c.column, c.worse, c.regression) for c in compare([old], [new])]


def test_within_the_quartiles_nothing_moved():
    assert _verdicts(replace(OURS, median_us=101.5, low_us=99.5, high_us=103.0)) == []


def test_apart_but_by_little_is_noise():
    assert _verdicts(replace(OURS, median_us=102.5, low_us=102.1, high_us=103.0)) == []


def test_slower_beyond_the_quartiles_is_a_regression():
    assert _verdicts(replace(OURS, median_us=120.0, low_us=110.0, high_us=125.0)) == [("median_us", True, True)]


def test_faster_is_better():
    assert _verdicts(replace(OURS, median_us=80.0, low_us=78.0, high_us=82.0)) == [("median_us", False, False)]


def test_others_do_not_regress_ours():
    slower = replace(INDUCTOR, median_us=300.0, low_us=290.0, high_us=310.0)
    assert _verdicts(slower, INDUCTOR) == [("median_us", True, False)]


def test_a_row_that_fails_now_is_a_regression():
    failed = replace(OURS, median_us=None, low_us=None, high_us=None, note="wrong: differs")
    changes = compare([OURS], [failed])
    assert changes[0].regression and "wrong: differs" in report(changes)
    assert not compare([failed], [OURS])[0].regression


def test_more_launches_and_slower_compilation_are_regressions():
    assert _verdicts(replace(OURS, launches=2, cold_s=2.0)) == [("cold_s", True, True), ("launches", True, True)]
    assert _verdicts(replace(OURS, cold_s=1.2)) == []


def test_rows_of_different_machines_are_not_compared():
    with pytest.raises(ValueError, match="one machine"):
        compare([OURS], [replace(OURS, device="Another")])
    with pytest.raises(ValueError, match="no case in common"):
        compare([OURS], [INDUCTOR])


def test_the_command_exits_with_the_verdict(tmp_path, capsys):
    write_rows(tmp_path / "old.csv", [OURS])
    write_rows(tmp_path / "new.csv", [replace(OURS, median_us=200.0, low_us=190.0, high_us=210.0)])
    old, new = str(tmp_path / "old.csv"), str(tmp_path / "new.csv")
    assert main(["compare", old, new]) == 1
    assert "kernels/softmax/bf16/rooffuse median_us 100 -> 200 (2.00x)" in capsys.readouterr().out
    assert main(["compare", new, old]) == 0
    assert main(["compare", old, str(tmp_path / "none.csv")]) == 2


def test_means_and_speedups():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert speedups([OURS, INDUCTOR, EAGER], "inductor") == [1.5]
    assert any("speed against eager: 3.00x" in line for line in summary_lines([OURS, INDUCTOR, EAGER]))


def test_a_table_shows_every_contender(results):
    text = table("kernels/cpu", results)
    cells = [c.strip() for c in next(line for line in text.splitlines() if "softmax" in line).split("|")]
    assert cells[1:-1] == ["softmax", "bf16", "300 us", "150 us", "100 us", "3.00", "1.50", "50%", "2", "1"]
    assert "Some CPU, 2 threads, torch 2.13" in text and "commit abc" in text


def test_what_lost_or_failed_is_in_the_table(tmp_path):
    write_rows(tmp_path / "some-cpu" / "kernels.csv",
               [EAGER, replace(OURS, median_us=None, note="wrong: differs from eager by 0.3")])
    assert "wrong" in table("kernels/cpu", tmp_path)
    assert table("kernels", tmp_path) == table("kernels/cpu", tmp_path)


def test_without_rows_a_table_says_so(tmp_path):
    assert table("kernels/cuda", tmp_path) == "Not measured."
    assert table("summary", tmp_path).count("not measured") == 2


def test_an_unknown_table_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing/cpu"):
        table("nothing/cpu", tmp_path)


def test_tables_stand_between_their_markers(results, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- benchmarks:summary -->\nstale\n<!-- /benchmarks -->\nb\n")
    words = ["table", "--readme", str(readme), "--results", str(results)]
    assert main([*words, "--check"]) == 1
    assert main(words) == 0
    text = readme.read_text()
    assert text.startswith("a\n") and text.endswith("\nb\n") and "stale" not in text and "3.00" in text
    assert main([*words, "--check"]) == 0
    assert regenerate(text, results) == text


def test_readme_and_rows_agree():
    text = README.read_text(encoding="utf-8")
    if "<!-- benchmarks:" not in text or not RESULTS.is_dir():
        pytest.skip("README has no tables of benchmarks, or there are no rows for them")
    assert regenerate(text, RESULTS) == text, "run python -m benchmarks table"


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is installed")
def test_plotting_without_matplotlib_says_what_to_install(results, tmp_path, capsys):
    assert main(["plot", "--results", str(results), "--out", str(tmp_path)]) == 2
    assert "rooffuse[plots]" in capsys.readouterr().err


def test_charts_are_drawn(results, tmp_path):
    pytest.importorskip("matplotlib")
    files = plot(results, tmp_path)
    assert {f.name for f in files} == {f"{n}-cpu.{k}" for n in ("roofline", "speedup") for k in ("png", "svg")}
    assert all(f.stat().st_size > 1000 for f in files)


def test_workloads_take_no_memory_at_gpu_shapes():
    case = gpu_case("silu_mul", "bf16")
    assert [tuple(a.shape) for a in case.args] == [(8192, 14336)] * 2
    assert {str(a.device) for a in case.args} == {"cpu"}


def test_our_schedule_moves_the_floor():
    found, floor = our_schedule("silu_mul")
    assert (found.bytes_over_floor, found.launches, found.sweeps) == (1.0, 1, 1)
    assert floor == 3 * 8192 * 14336 * 2


def test_written_arguments_count_twice():
    _, floor = our_schedule("adamw", "fp32")
    assert floor == 7 * (64 << 20) * 4


def test_a_gathered_table_counts_what_is_read():
    _, floor = our_schedule("embedding_norm")
    assert floor == 16384 * 8 + (2 * 16384 * 1024 + 1024) * 2


def test_the_schedule_table():
    text = schedule_table(schedule_rows("bias_gelu_residual", ours_only=True))
    assert "| bias_gelu_residual | 1.00" in text and "ours: 1.000 bytes over floor" in text


@pytest.mark.slow
def test_inductors_schedule_beside_ours():
    text = schedule_table(schedule_rows("residual_rmsnorm"))
    assert "Inductor: 1.000 bytes over floor" in text


def test_schedules_are_read_as_they_were_written(tmp_path):
    rows = [("softmax", Schedule(1.0, 1, 1), Schedule(1.25, 2)), ("norm", Schedule(1.5, 3, 2), None),
            ("failed", "no plan", None)]
    write_schedule(tmp_path / "schedule-bf16.csv", rows, "bf16")
    assert read_schedule(tmp_path / "schedule-bf16.csv") == rows[:2]
    assert "| softmax" in table("schedule-bf16", tmp_path)
    assert table("schedule-fp32", tmp_path) == "Not measured."


def test_predictions_stand_beside_what_was_measured(capsys):
    assert main(["predictions", "--only", "small_mlp_tail"]) == 0
    text = capsys.readouterr().out
    assert text.count("| small_mlp_tail") == 2
    assert "median error of 2 predictions" in text
