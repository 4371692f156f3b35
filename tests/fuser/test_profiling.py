"""Measured beside predicted, and calibration as a user sees it."""
from __future__ import annotations

import io
import json

import pytest
import torch
from rooffuse.calibrate_command import progress_bar
from rooffuse.cli import main
from rooffuse.cost_model import calibration, local_device
from rooffuse.profiling import ProfileError, profile_call
from rooffuse.targets import local_target
from torch import Tensor


def mixed(x: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.softmax((x @ weight) * 0.5, -1)
    return torch.sort(y, 0).values, y[ids].sum(-1)


@pytest.fixture(scope="module")
def profile():
    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return profile_call(mixed, (meta(256, 64), meta(64, 512), meta(16, dtype=torch.int64)), {}, budget_s=0.2)


def test_every_kernel_is_timed(profile):
    kinds = [k.kind for k in profile.kernels]
    assert kinds.count("extern") == 2 and kinds.count("cpp") >= 1
    for kernel in profile.kernels:
        assert 0 < kernel.measured_us < 1e6 and kernel.predicted_us > kernel.roof_us > 0
        assert kernel.bytes_per_s * 1e-6 * kernel.measured_us == pytest.approx(kernel.bytes)
        assert kernel.lost_us == pytest.approx(kernel.measured_us * (1 - kernel.roof_share))
        assert kernel.ratio == pytest.approx(kernel.measured_us / kernel.predicted_us)


def test_a_larger_product_takes_longer(profile):
    small = next(k for k in profile.kernels if "mm" in k.name)
    x = torch.empty(2048, 1024, device="meta")
    large = profile_call(lambda a, b: a @ b, (x, x.t()), {}, budget_s=0.1).kernels[0]
    assert large.flops > 10 * small.flops and large.measured_us > 3 * small.measured_us


def test_text_and_json(profile):
    text = profile.text(sort="lost", top=1)
    assert "more rows" in text and f"median error of the predictions: {profile.median_error:.0%}" in text
    assert max(map(len, profile.text().splitlines())) <= 175
    data = json.loads(json.dumps(profile.to_dict(), allow_nan=False))
    assert len(data["kernels"]) == len(profile.kernels) and data["rounds"] >= 5
    with pytest.raises(ValueError, match="time, lost, ratio"):
        profile.text(sort="size")


def test_a_model_that_does_not_fit_is_refused():
    huge = torch.empty(1 << 20, 1 << 20, device="meta")
    with pytest.raises(ProfileError, match="this machine has"):
        profile_call(torch.relu, (huge,), {})


def test_updates_in_place_run_again():
    def step(cache: Tensor, value: Tensor) -> Tensor:
        cache[:, 3] = value
        return cache.sum(-1)

    found = profile_call(step, (torch.empty(8, 16), torch.empty(8)), {}, budget_s=0.05)
    assert found.kernels and found.rounds >= 5


def test_command(capsys, tmp_path):
    path = tmp_path / "small.py"
    path.write_text("import torch\ndef f():\n    return (lambda x: x.sin() * 2), (torch.empty(1000, device='meta'),)\n")
    assert main(["profile", f"{path}:f", "--budget", "0.1", "--json", str(tmp_path / "out.json")]) == 0
    assert "of roof" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["kernels"][0]["kind"] == "cpp"
    assert main(["profile", f"{path}:g"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["profile", f"{path}:f", "--budget", "-1"])


MEASURED = {"bandwidth": 5e10, "l2_bandwidth": 9e10, "peaks": {"fp32": 2e11, "bf16": 9e11}, "launch_s": 2e-6,
            "dispatch_s": 3e-6}


def test_calibrate_is_used_by_everything_after_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "measure", lambda kind, progress, cache_bytes: MEASURED)
    before = local_target(()).device
    assert not before.calibrated
    assert main(["calibrate"]) == 0
    out = capsys.readouterr().out
    assert "(measured here): 50 GB/s" in out and "moves at 90 GB/s" in out and str(tmp_path) in out
    assert local_device("cpu").bandwidth == local_target(()).device.bandwidth == 5e10
    path = tmp_path / "small.py"
    path.write_text("import torch\ndef f():\n    return torch.sin, (torch.empty(1000, device='meta'),)\n")
    assert main(["report", f"{path}:f"]) == 0
    assert "(measured here): 50 GB/s" in capsys.readouterr().out.splitlines()[0]
    assert main(["devices"]) == 0
    assert "measured" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has a GPU to measure")
def test_calibrating_a_gpu_that_is_not_there(capsys):
    assert main(["calibrate", "--device", "cuda"]) == 2
    assert "no CUDA device on this machine" in capsys.readouterr().err


def test_progress_bar():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    drawn, plain = Terminal(), io.StringIO()
    for stream in (drawn, plain):
        show = progress_bar(stream, 2)
        show("bandwidth")
        show("matmul bf16")
    assert drawn.getvalue().endswith("[████████████············] 1/2  matmul bf16")
    assert plain.getvalue() == "[1/2] bandwidth\n[2/2] matmul bf16\n"
