"""Reports: their data is as documented, adds up, and is pleasant to read."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import rooffuse
import torch
from rooffuse.cost_model import get_device
from rooffuse.report import FallbackRow, GraphReport, Report
from rooffuse.report_text import format_bytes, format_count, format_time
from torch import Tensor

ROW = {"bytes_read": int, "bytes_written": int, "flops": int, "intensity": float, "bound": str, "time_us": float}
NODE = {"name": str, "op": str, "group": str, **ROW}
KERNEL = {"name": str, "kind": str, "nodes": list, **ROW}


def mixed(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.softmax((x @ weight).t() * 0.5, -1)
    return torch.topk(y, 2, 0).values, y.view(-1).sum()


def llama_report(device: str) -> rooffuse.Report:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                                             num_key_value_heads=2, intermediate_size=128, vocab_size=256))
    model.eval().requires_grad_(False)
    return rooffuse.explain(lambda ids: model(ids, use_cache=False).logits,
                            torch.empty(2, 16, dtype=torch.int64, device="meta"), device=device)


@pytest.fixture(scope="module", params=["mixed cpu", "mixed h100", "llama cpu", "llama h100"])
def report(request) -> rooffuse.Report:
    name, device = request.param.split()
    if name == "llama":
        return llama_report(device)
    return rooffuse.explain(mixed, torch.ones(32, 16), torch.ones(16, 48), device=device)


def has_types(row: dict, types: dict) -> None:
    assert list(row) == list(types)
    assert all(type(row[key]) is kind for key, kind in types.items()), row


def test_schema(report):
    data = report.to_dict()
    assert list(data) == ["device", "graphs", "graph_breaks"]
    assert type(data["device"]) is str and data["graphs"] and data["graph_breaks"] == []
    for graph in data["graphs"]:
        assert list(graph) == ["nodes", "kernels", "memory", "fallbacks", "cuda_graph"]
        for node in graph["nodes"]:
            has_types(node, NODE)
            assert node["bound"] in ("memory", "compute", "launch", "none")
        for kernel in graph["kernels"]:
            has_types(kernel, KERNEL)
            assert kernel["kind"] in ("triton", "cpp", "extern", "fallback")
        has_types(graph["memory"], {"arena_bytes": int, "unplanned_bytes": int})
        has_types(graph["cuda_graph"], {"captured": bool, "reason": str})
        for fallback in graph["fallbacks"]:
            has_types(fallback, {"nodes": list, "reason": str})


def test_json_is_strict(report):
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()


def test_rows_agree_with_each_other(report):
    for graph in report.to_dict()["graphs"]:
        nodes = {n["name"]: n for n in graph["nodes"]}
        kernels = {k["name"]: k for k in graph["kernels"]}
        assert len(nodes) == len(graph["nodes"]) and len(kernels) == len(graph["kernels"])
        for kernel in graph["kernels"]:
            own = [n["name"] for n in graph["nodes"] if n["group"] == kernel["name"]]
            listed = sorted(kernel["nodes"], key=list(nodes).index)
            assert [n for n in listed if n in own] == own
            for name in set(listed) - set(own):  # a producer computed again is counted with an earlier kernel
                assert list(kernels).index(nodes[name]["group"]) < list(kernels).index(kernel["name"])
            assert kernel["flops"] == sum(nodes[n]["flops"] for n in kernel["nodes"])
            moved = kernel["bytes_read"] + kernel["bytes_written"]
            assert kernel["intensity"] == pytest.approx(kernel["flops"] / moved if moved else 0, abs=1e-4)
        for node in graph["nodes"]:
            assert node["group"] in ("", *kernels)
            if node["bound"] == "none":
                assert node["bytes_read"] == node["bytes_written"] == node["time_us"] == 0
    assert report.fused.time_us == pytest.approx(sum(k["time_us"] for k in report.kernels))
    assert report.alone.bytes == sum(n["bytes_read"] + n["bytes_written"] for n in report.nodes)
    assert report.fused.time_us < report.alone.time_us


def test_library_calls_and_views(report):
    kinds = {k["nodes"][0]: k["kind"] for k in report.kernels}
    assert all(kinds[n["name"]] == "extern" for n in report.nodes if n["op"] in ("aten.mm.default",
                                                                                "aten.topk.default"))
    views = [n for n in report.nodes if n["op"] in ("aten.view.default", "aten.t.default")]
    assert views and all(n["group"] == "" and n["flops"] == 0 for n in views)


def test_an_operator_without_lowering_is_a_fallback():
    def function(x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x) + 1

    [graph] = rooffuse.explain(function, torch.ones(8)).to_dict()["graphs"]
    [fallback] = graph["fallbacks"]
    assert fallback["nodes"] == ["special_bessel_j0"] and "bessel_j0" in fallback["reason"]
    assert [k["kind"] for k in graph["kernels"]] == ["fallback", "cpp"]


def test_source(report):
    generated = next(k for k in report.kernels if k["kind"] in ("cpp", "triton"))
    source = report.source(generated["name"])
    assert ("@triton.jit" if generated["kind"] == "triton" else f"void {generated['name']}(") in source
    assert "aten.mm.default" in report.source("mm")
    with pytest.raises(KeyError, match=r"no kernel is called 'fused_999'; there are fused_0"):
        report.source("fused_999")


def test_source_asks_for_the_graph_where_several_have_the_kernel():
    def function(x: Tensor) -> Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    report = rooffuse.explain(function, torch.ones(8))
    with pytest.raises(KeyError, match="choose one of 0:fused_0, 1:fused_0"):
        report.source("fused_0")
    assert "sin" in report.source("0:fused_0") and "cos" in report.source("1:fused_0")


def test_text_is_narrow_and_complete(report):
    text = str(report)
    assert max(len(line) for line in text.splitlines()) <= 140
    assert report.device.name in text and "CUDA graph" in text and "memory" in text and "fallbacks   none" in text
    assert "graph breaks  none" in text


def test_equal_layers_are_folded():
    text = llama_report("h100").text(level="kernel")
    counts = [line.split() for line in text.splitlines() if line.startswith("mm")]
    assert sum(int(row[3]) for row in counts) == 3 * 7 + 1
    assert len(counts) <= 6


def test_sort_and_top(report):
    def first_rows(sort: str) -> list[str]:
        lines = report.text(level="node", sort=sort, top=3).splitlines()
        start = next(k for k, line in enumerate(lines) if line.startswith("----"))
        return [line.split()[0] for line in lines[start + 1:start + 4]]

    names = first_rows("name")
    assert names == sorted(names)
    assert first_rows("time") != names or first_rows("bytes") != names
    assert "more rows" in report.text(top=1)
    with pytest.raises(ValueError, match="time, bytes, flops, name"):
        report.text(sort="size")
    with pytest.raises(ValueError, match="node, kernel, module"):
        report.text(level="layer")


def test_html(report):
    page = report._repr_html_()
    assert "<table>" in page and report.kernels[0]["name"] in page
    assert page.count("<table>") == page.count("</table>") == 2 * len(report.graphs)


def test_units():
    assert [format_bytes(n) for n in (0, 3, 1536, 1 << 20, 5.25 * 2**30)] == ["0 B", "3 B", "1.50 KiB", "1 MiB",
                                                                             "5.25 GiB"]
    assert [format_count(n) for n in (7, 1500, 137.4e9)] == ["7", "1.50 K", "137 G"]
    assert [format_time(n) for n in (1.3, 1500, 2.5e6)] == ["1.30 µs", "1.50 ms", "2.50 s"]


def test_numbers_are_finite(report):
    for row in (*report.nodes, *report.kernels):
        assert all(math.isfinite(v) and v >= 0 for v in row.values() if isinstance(v, int | float))


PROGRAM = """
import torch, rooffuse
layers = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.LayerNorm(32), torch.nn.GELU(), torch.nn.Softmax(-1))
report = rooffuse.explain(layers, torch.ones(16, 32), device="h100")
print(report, report.source("0:fused_0"), report.to_dict())
"""


def test_two_processes_with_other_hash_seeds_agree():
    started = [subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True,
                                env={**os.environ, "PYTHONHASHSEED": seed}) for seed in ("1", "2")]
    first, second = (process.communicate()[0] for process in started)
    assert "fused_0" in first and first == second


def test_equal_fallbacks_of_all_layers_are_one_line():
    rows = tuple(FallbackRow((f"cat_{k}",), f"_folded_{k} is empty") for k in range(6))
    rows += (FallbackRow(("sort",), "sorts have no kernel"),)
    graph = GraphReport("inference", (), (), 0, 0, rows, False, "", ())
    lines = [line for line in str(Report(get_device("h100"), (graph,), ())).splitlines() if line.startswith("fallback")]
    assert lines == ["fallback    cat_0, cat_1, cat_2, cat_3 and 2 more: _folded_0 is empty",
                     "fallback    sort: sorts have no kernel"]
