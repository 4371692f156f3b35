"""The command line: what it prints, and that every mistake gets one clear line."""
from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rooffuse.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
NORMS = str(REPOSITORY / "examples" / "norms.py")


@pytest.fixture
def targets(tmp_path) -> str:
    """A file of targets, good and bad."""
    path = tmp_path / "given.py"
    path.write_text(
        "import torch\n"
        "VALUE = 3\n"
        "def good():\n    return (lambda x, scale: torch.sin(x) * scale), (torch.ones(8),), {'scale': 2.0}\n"
        "def device():\n    return (lambda x, device: x + 1), (torch.ones(8),), {'device': 'anything'}\n"
        "def nothing():\n    return None\n"
        "def one():\n    return (torch.sin,)\n"
        "def uncallable():\n    return 3, (torch.ones(8),)\n"
        "def loose():\n    return torch.sin, torch.ones(8)\n"
        "def listed():\n    return torch.sin, (torch.ones(8),), [1]\n"
        "def raising():\n    raise KeyError('weights')\n"
        "def needs(x):\n    return x\n"
        "def mismatch():\n    return (lambda x, y: x @ y), (torch.ones(3, 4), torch.ones(3))\n", encoding="utf-8")
    return str(path)


def failure(capsys, *arguments: str) -> str:
    """The one line of an error, after checking that it is one, and the exit code."""
    assert main(["report", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("rooffuse: error: ")
    return err


def test_report(capsys):
    assert main(["report", f"{NORMS}:add_rms_norm", "--device", "h100"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("H100 SXM (datasheet)") and "fused_0" in out


def test_json_on_standard_output_is_nothing_but_json(capsys, targets):
    assert main(["report", f"{targets}:good", "--device", "a100", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert data["device"] == "A100-80" and data["graphs"][0]["kernels"][0]["kind"] == "triton"


def test_json_file(capsys, targets, tmp_path):
    path = tmp_path / "plan.json"
    assert main(["report", f"{targets}:good", "--json", str(path)]) == 0
    assert "fused_0" in capsys.readouterr().out
    assert json.loads(path.read_text())["graphs"][0]["kernels"][0]["kind"] == "cpp"
    assert "can't write" in failure(capsys, f"{targets}:good", "--json", str(tmp_path / "no" / "plan.json"))


def test_source(capsys):
    assert main(["report", f"{NORMS}:softmax", "--device", "h100", "--source"]) == 0
    every = capsys.readouterr().out
    assert main(["report", f"{NORMS}:softmax", "--device", "h100", "--source", "fused_0"]) == 0
    one = capsys.readouterr().out
    assert "@triton.jit" in one and one.strip() in every
    assert "fused_7" in failure(capsys, f"{NORMS}:softmax", "--source", "fused_7")


def test_top_sort_and_level(capsys):
    assert main(["report", f"{NORMS}:softmax", "--top", "1", "--sort", "bytes", "--level", "node"]) == 0
    out = capsys.readouterr().out
    assert "more rows" in out and "kernel    kind" not in out


@pytest.mark.parametrize("arguments", [["--top", "0"], ["--top", "many"], ["--sort", "size"], ["--level", "x"],
                                       ["--dtype", "fp8"], ["--nothing"]])
def test_bad_flags_say_what_is_allowed(capsys, arguments):
    with pytest.raises(SystemExit) as raised:
        main(["report", f"{NORMS}:softmax", *arguments])
    assert raised.value.code == 2
    err = capsys.readouterr().err
    assert arguments[0] in err and err.count("\n") == 1 and "--help)" in err


def test_unknown_device(capsys):
    assert "unknown device 'h10'; did you mean" in failure(capsys, f"{NORMS}:softmax", "--device", "h10")


@pytest.mark.parametrize(("target", "said"), [
    ("softmax", "names no function"),
    ("nowhere.py:x", "there is no file 'nowhere.py' (looked for /"),
    ("not_a_module_at_all:x", "there is no module 'not_a_module_at_all'"),
    ("json.nothing:x", "there is no module 'json.nothing'"),
    (f"{NORMS}:sofmax", "has no function 'sofmax'; it has add_rms_norm, layer_norm_gelu, softmax"),
    ("{given}:VALUE", "is int, not a function"),
    ("{given}:nothing", "returned NoneType; it must return (callable, args) or (callable, args, kwargs)"),
    ("{given}:one", "returned a tuple of 1"),
    ("{given}:uncallable", "returned int first, which can't be called"),
    ("{given}:loose", "returned Tensor for args; they must be a tuple"),
    ("{given}:listed", "returned list for kwargs; they must be a dictionary"),
    ("{given}:raising", "raised KeyError: 'weights' ({given}:18)"),
    ("{given}:needs", "raised TypeError: needs() missing 1 required positional argument"),
    ("{given}:mismatch", "tracing {given}:mismatch raised TorchRuntimeError"),
])
def test_bad_targets(capsys, targets, target, said):
    assert said.replace("{given}", targets) in failure(capsys, target.replace("{given}", targets))


def test_a_file_that_fails_to_import_is_named_with_the_line(capsys, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import torch\nimport no_such_package\n", encoding="utf-8")
    said = failure(capsys, f"{path}:x")
    assert "ModuleNotFoundError: No module named 'no_such_package'" in said and f"{path}:2" in said


def test_keyword_arguments_may_be_called_device(capsys, targets):
    assert main(["report", f"{targets}:device", "--device", "l4"]) == 0
    assert capsys.readouterr().out.startswith("L4")


def test_devices_lists_the_table_and_marks_this_machine(capsys):
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    h100 = next(line for line in lines if "H100 SXM" in line).split()
    assert "3350" in h100 and "295" in h100 and "591" in h100
    assert sum(line.startswith("*  ") for line in lines) >= 1
    assert max(map(len, lines)) <= 180


def test_the_installed_command():
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "rooffuse.cli", *arguments], capture_output=True, text=True,
                              check=False)

    start = time.perf_counter()
    assert "examples:" in run("--help").stdout
    assert time.perf_counter() - start < 2
    assert "file.py:function" in run("report", "--help").stdout
    assert run("--version").stdout.startswith("rooffuse 0.")
    assert run().returncode == 2
    result = run("report", "nowhere.py:x")
    assert result.returncode == 2 and "Traceback" not in result.stderr and "nowhere.py" in result.stderr


def test_importing_the_package_imports_no_torch():
    code = "import rooffuse, sys; assert 'torch' not in sys.modules; rooffuse.explain; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names():
    import rooffuse

    assert {"explain", "Report", "Options", "make_options", "OptionError"} <= set(dir(rooffuse))
    assert all(getattr(rooffuse, name) is not None for name in rooffuse.__all__)
    assert callable(rooffuse.explain)
    with pytest.raises(AttributeError, match="nothing"):
        rooffuse.nothing  # noqa: B018
