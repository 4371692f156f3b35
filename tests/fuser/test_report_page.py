"""The page of a report: complete in itself, and alive in a browser."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import rooffuse
import torch
from rooffuse.report_page import page
from torch import Tensor

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
                None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")


def block(x: Tensor, weight: Tensor) -> Tensor:
    return torch.softmax((x @ weight).relu() * 0.5, -1) + x.sin()


@pytest.fixture(scope="module")
def text() -> str:
    x = torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta")
    return page(rooffuse.explain(block, x, x.clone(), device="h100"), "a </script> of <b>blocks</b>")


def embedded(text: str) -> dict:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_loads_nothing(text):
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<link|<img|@import|src=|fetch\(|XMLHttpRequest", text)


def test_the_data_is_that_of_the_report(text):
    data = embedded(text)
    assert data["device"] == data["devices"][0]["name"] == "H100 SXM"
    assert {"H200", "A100-80", "MI300X"} <= {d["name"] for d in data["devices"]}
    [graph] = data["graphs"]
    product = next(n for n in graph["nodes"] if n["what"] == "mm")
    assert product["flops"] == 2 * 4096**3 and product["shape"] == "bf16[4096, 4096]"
    assert "test_report_page.py:" in product["source"] and product["code"].startswith("return torch.softmax")
    assert all(n["source"] for n in graph["nodes"])


def test_names_are_escaped(text):
    assert "</script> of" not in text and "<b>blocks</b>" not in text
    assert embedded(text)["title"] == "a </script> of <b>blocks</b>"


def in_browser(text: str, folder: Path, script: str, fragment: str = "") -> dict:
    """Open the page, run ``script`` in it, and return the object that it leaves in ``out``."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    probe = ("<script>addEventListener('load', () => { const out = {}; const errors = [];"
             "try {" + script + "} catch (error) { out.error = String(error); }"
             "const made = document.createElement('script'); made.id = 'found'; made.type = 'application/json';"
             "made.textContent = JSON.stringify(out); document.body.append(made); });</script>")
    file = folder / "page.html"
    file.write_text(text.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    result = subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000",
                             "--dump-dom", f"file://{file}{fragment}"], capture_output=True, text=True, timeout=60,
                            check=False)
    found = re.search(r'<script id="found" type="application/json">(.*?)</script>', result.stdout, re.DOTALL)
    assert found is not None, result.stderr[-500:]
    return json.loads(found[1])


def test_clicking(text, tmp_path):
    out = in_browser(text, tmp_path, """
      const texts = () => [...document.querySelectorAll('#body tr')].map(r => r.cells[0].textContent);
      const bounds = () => Object.fromEntries([...document.querySelectorAll('#body tr')].map(
        r => [r.dataset.id, r.cells[7].textContent]));
      const marks = kind => document.querySelectorAll('#plot ' + kind + '.point').length;
      out.both = [marks('circle'), marks('path')];
      document.getElementById('show-nodes').click(); out.nodes = [marks('circle'), marks('path')];
      document.getElementById('show-kernels').click(); out.kernels = [marks('circle'), marks('path')];
      document.getElementById('show-nodes').click();
      out.h100 = bounds();
      const devices = document.getElementById('device');
      devices.value = 'V100 SXM'; devices.dispatchEvent(new Event('change')); out.v100 = bounds();
      out.note = document.getElementById('note').textContent; out.hash = location.hash;
      const types = document.getElementById('dtype');
      types.value = 'fp16'; types.dispatchEvent(new Event('change')); out.fp16 = bounds();
      document.querySelector('th[data-key=name]').click(); out.down = texts();
      document.querySelector('th[data-key=name]').click(); out.up = texts();
      document.querySelector('#plot circle.point').dispatchEvent(new MouseEvent('click', {bubbles: true}));
      out.chosen = document.querySelectorAll('tr.chosen').length;
      document.querySelector('#plot circle.point').dispatchEvent(new MouseEvent('mousemove', {bubbles: true}));
      out.tip = document.getElementById('tip').innerText;
      const filter = document.getElementById('filter');
      filter.value = 'mm'; filter.dispatchEvent(new Event('input')); out.filtered = texts();
      document.getElementById('theme').click(); out.theme = document.documentElement.dataset.theme;
      out.background = getComputedStyle(document.body).backgroundColor;
    """)
    assert "error" not in out, out
    assert out["both"] == [out["nodes"][0], out["kernels"][1]] and out["nodes"][1] == out["kernels"][0] == 0
    assert min(out["both"]) >= 1
    product = next(k for k in out["h100"] if k.endswith(":mm"))
    assert out["h100"][product] == "compute" and set(out["h100"]) == set(out["v100"])
    assert "Priced for V100 SXM: kernels are those planned for H100 SXM" in out["note"] and "V100" in out["hash"]
    assert out["down"] == sorted(out["up"], reverse=True) and len(out["up"]) == len(set(out["up"])) > 3
    assert out["chosen"] == 1 and "FLOP/byte" in out["tip"] and "test_report_page.py" in out["tip"]
    assert out["filtered"] == ["mm"]
    assert (out["theme"], out["background"]) in {("dark", "rgb(21, 24, 28)"), ("light", "rgb(251, 251, 250)")}


def test_a_report_without_graphs(tmp_path):
    empty = page(rooffuse.explain(lambda x: x, torch.ones(3), device="h100"), "nothing")
    out = in_browser(empty, tmp_path, "out.totals = document.getElementById('totals').innerText;")
    assert embedded(empty)["graphs"] == [] and "0 → 0" in out["totals"]


def test_state_in_the_address(text, tmp_path):
    out = in_browser(text, tmp_path, "out.note = document.getElementById('note').textContent;"
                                     "out.shown = document.getElementById('show-kernels').ariaPressed;",
                     "#device=L4&show=kernels&dtype=fp8")
    assert "Priced for L4" in out["note"] and "scaled from bf16 to fp8" in out["note"] and out["shown"] == "true"
