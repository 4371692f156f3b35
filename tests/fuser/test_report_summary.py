"""Where the bytes go: sums that agree with the rows, copies and their lines, utilisation, files."""
from __future__ import annotations

import csv
import io
import json
import sys

import pytest
import rooffuse
import torch
from rooffuse.cli import main
from rooffuse.report_files import csv_text
from rooffuse.report_summary import copies, module_pattern, savings, shares, utilisation
from torch import Tensor, nn


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.nn.functional.gelu(self.up(self.norm(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(scope="module")
def report() -> rooffuse.Report:
    with torch.device("meta"):
        model = Model().requires_grad_(False)
    return rooffuse.explain(model, torch.empty(512, 64, device="meta"), device="h100")


@pytest.mark.parametrize("key", [module_pattern, lambda n: n.kind, lambda n: n.bound])
def test_shares_add_up(report, key):
    found = shares(report.graphs, key)
    assert sum(s.alone.bytes for s in found) == report.alone.bytes
    assert sum(s.alone.time_us for s in found) == pytest.approx(report.alone.time_us)
    assert sum(s.fused_us for s in found) == pytest.approx(report.fused.time_us)


def test_equal_layers_are_one_module(report):
    counts = {s.key: s.count for s in shares(report.graphs, module_pattern)}
    assert set(counts) == {"layers.*.norm", "layers.*.up", "layers.*"}
    assert counts["layers.*.up"] % 3 == 0


def test_rows_lead_back(report):
    product = next(n for n in report.nodes if n["kind"] == "matmul")
    assert product["module"] == "layers.0.up" and product["shape"] == "fp32[512, 64]" and product["known"]
    assert "test_report_summary.py:" in product["source"]


def test_savings_add_up_to_what_fusing_saves(report):
    [graph] = report.graphs
    saved = savings(graph)
    assert saved[0].saved_bytes > 0
    assert sum(s.saved_bytes for s in saved) == report.alone.bytes - report.fused.bytes


def expand(x: Tensor, y: Tensor) -> Tensor:
    wide = x[:, None].expand(-1, 4, -1)
    folded = wide.reshape(-1, 256)
    asked = y.t().contiguous()
    return folded @ asked.half().float()


def test_copies_that_nobody_asked_for():
    found = rooffuse.explain(expand, torch.empty(32, 256), torch.empty(256, 256), device="h100")
    by_code = {c.code: c for c in copies(found.graphs)}
    assert by_code["folded = wide.reshape(-1, 256)"].sort == "expansion"
    assert not by_code["folded = wide.reshape(-1, 256)"].asked
    assert by_code["asked = y.t().contiguous()"].asked
    cast = by_code["return folded @ asked.half().float()"]
    assert cast.sort == "cast" and cast.asked and cast.count == 2
    assert "unasked     expansion, " in found.text() and "wide.reshape" in found.text()


def test_a_norm_casts_for_itself():
    def norm(x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, (64,))

    found = rooffuse.explain(norm, torch.empty(8, 64, dtype=torch.bfloat16), device="h100")
    assert any(n["op"].startswith("aten._to_copy") for n in found.nodes) and copies(found.graphs) == []


def test_utilisation():
    """A large square product in bf16: all time is arithmetic, so MFU is 1 but for a launch."""
    x = torch.empty(8192, 8192, dtype=torch.bfloat16, device="meta")
    found = rooffuse.explain(torch.mm, x, x.clone(), device="h100")
    used = utilisation(found, found.fused.time_us)
    assert used.peak == "bf16" and 0.99 < used.mfu < 1 and used.mbu < 0.1
    half = utilisation(found, 2 * found.fused.time_us)
    assert half.mfu == pytest.approx(used.mfu / 2) and half.mbu == pytest.approx(used.mbu / 2)
    assert found.graphs[0].input_bytes == 2 * 8192**2 * 2


def test_rows_of_a_table_count_as_they_are_looked_up():
    table, ids = torch.empty(100_000, 64), torch.empty(10, dtype=torch.int64)
    found = rooffuse.explain(torch.nn.functional.embedding, ids, table, device="h100")
    assert found.graphs[0].input_bytes == 10 * 64 * 4 + 10 * 8


def test_module_level_text(report):
    text = report.text(level="module", sort="time")
    assert "layers.*.up" in text and "matmul" in text and "where the bytes go" in text
    assert "kernel    kind" not in text and max(map(len, text.splitlines())) <= 140
    assert "more rows" in report.text(level="module", top=1)


@pytest.mark.parametrize("level", [None, "node", "kernel", "module"])
def test_csv(report, level):
    rows = list(csv.DictReader(io.StringIO(csv_text(report, level))))
    expected = {"kernel": report.kernels, "module": shares(report.graphs, module_pattern)}.get(level, report.nodes)
    assert len(rows) == len(expected)
    if level in (None, "node"):
        assert rows[0]["module"] and rows[0]["source"] and sum(int(r["flops"]) for r in rows) == report.alone.flops


def test_pandas(report):
    pytest.importorskip("pandas")
    assert list(report.to_pandas().columns)[:3] == ["graph", "name", "op"]
    assert len(report.to_pandas("kernel")) == len(report.kernels)


@pytest.fixture
def target(tmp_path) -> str:
    path = tmp_path / "small.py"
    path.write_text("import torch\ndef f():\n    return torch.mm, 2 * (torch.empty(64, 64, device='meta'),)\n")
    return f"{path}:f"


def test_files_of_the_command(target, tmp_path, capsys):
    rows, page, plan = (tmp_path / name for name in ("rows.csv", "page.html", "plan.json"))
    assert main(["report", target, "--csv", str(rows), "--html", str(page), "--json", str(plan)]) == 0
    assert "where the bytes go" in capsys.readouterr().out
    assert "aten.mm.default" in rows.read_text() and "<!doctype html>" in page.read_text()
    assert json.loads(plan.read_text())["graphs"]
    assert main(["report", target, "--csv", str(tmp_path / "no" / "rows.csv")]) == 2
    assert "can't write" in capsys.readouterr().err


def test_plot(target, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["report", target, "--png", str(tmp_path / "roof.png")]) == 0
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", target, "--png", str(tmp_path / "no" / "roof.png")]) == 2
    assert capsys.readouterr().err.startswith("rooffuse: error: can't write")


def test_a_plot_without_matplotlib_says_how_to_get_it(target, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", target, "--png", str(tmp_path / "roof.png")]) == 2
    assert "rooffuse[plots]" in capsys.readouterr().err
