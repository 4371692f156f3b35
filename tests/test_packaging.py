"""The distribution: what a wheel holds, and that it works where the repository isn't."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target",
                    str(folder), str(ROOT)], check=True, capture_output=True)
    return folder


def run(code: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(folder), **environ})


def test_the_wheel_has_every_room_and_its_types(installed):
    for part in ("backend.py", "py.typed", "passes/pipeline.py", "codegen/ir.py", "cost_model/device_table.py"):
        assert (installed / "rooffuse" / part).exists(), part
    assert not (installed / "fuser").exists()


def test_the_entry_point_and_the_command_are_declared(installed):
    (points,) = installed.glob("rooffuse-*.dist-info/entry_points.txt")
    text = points.read_text()
    assert "[torch_dynamo_backends]\nrooffuse = rooffuse.backend:rooffuse_backend" in text
    assert "rooffuse = rooffuse.cli:main" in text


def test_an_installed_copy_compiles(installed, tmp_path):
    code = ("import torch, rooffuse; print(rooffuse.__file__)\n"
            "f = torch.compile(lambda x: x.softmax(-1), backend='rooffuse', options={'strict': True})\n"
            "x = torch.randn(4, 9); torch.testing.assert_close(f(x), x.softmax(-1)); print('same')")
    result = run(code, installed, ROOFFUSE_CACHE_DIR=str(tmp_path))
    assert result.stdout.split() == [str(installed / "rooffuse" / "__init__.py"), "same"], result.stderr


def test_importing_costs_little_on_top_of_torch(installed):
    code = ("import time, torch; start = time.perf_counter(); import rooffuse; "
            "print(time.perf_counter() - start)")
    assert min(float(run(code, installed).stdout) for _ in range(3)) < 0.3


def test_logs_obey_torch_logs(tmp_path):
    code = ("import torch\n"
            "torch.compile(lambda x: x.softmax(-1), backend='rooffuse')(torch.randn(4, 9))")
    result = run(code, tmp_path, TORCH_LOGS="+rooffuse.compile", ROOFFUSE_CACHE_DIR=str(tmp_path), PYTHONPATH="")
    assert "memory plan" in result.stderr
    assert "memory plan" not in run(code, tmp_path, ROOFFUSE_CACHE_DIR=str(tmp_path), PYTHONPATH="").stderr
