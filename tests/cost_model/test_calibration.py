"""Calibration: measured, stored, read back."""

import logging
import time

import pytest
import torch
from rooffuse.cost_model import calibrate, calibration, get_device, local_device

MEASURED = {"bandwidth": 5e10, "peaks": {"fp32": 2e11, "bf16": 9e11}, "launch_s": 2e-6, "dispatch_s": 4e-6}
CACHED = {**MEASURED, "l2_bandwidth": 9e10}


@pytest.fixture
def measured(monkeypatch):
    steps = []

    def measure(torch_device, progress, cache_bytes):
        assert cache_bytes > 0
        progress("pretending")
        steps.append(torch_device)
        return CACHED

    monkeypatch.setattr(calibration, "measure", measure)
    return steps


def test_a_calibration_is_stored_and_read_back(tmp_path, measured):
    before = local_device("cpu", tmp_path)
    heard = []
    device = calibrate("cpu", heard.append, tmp_path)
    assert measured == ["cpu"] and heard == ["pretending"]
    assert device.calibrated and not before.calibrated
    assert device.bandwidth == 5e10 and device.peaks["fp32"] == 2e11
    assert (device.launch_s, device.dispatch_s, device.l2_bandwidth) == (2e-6, 4e-6, 9e10)
    assert local_device("cpu", tmp_path) == device == get_device("cpu", tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_unmeasured_figures_keep_their_value_and_source(tmp_path, measured):
    before = local_device("cpu", tmp_path)
    device = calibrate("cpu", folder=tmp_path)
    assert device.peaks["int8"] == before.peaks["int8"]
    assert device.sources["l2_bytes"] == before.sources["l2_bytes"]
    assert "measured with torch" in device.sources["bandwidth"] == device.sources["l2_bandwidth"]
    assert "bf16, fp32: measured" in device.sources["peaks"]


def test_thread_counts_are_calibrated_apart(tmp_path, measured):
    threads = torch.get_num_threads()
    calibrate("cpu", folder=tmp_path)
    try:
        torch.set_num_threads(threads + 1)
        assert not local_device("cpu", tmp_path).calibrated
    finally:
        torch.set_num_threads(threads)
    assert local_device("cpu", tmp_path).calibrated


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 0}', '{"format": 1, "device": {"name": "x"}}'])
def test_unreadable_files_are_ignored_with_a_warning(tmp_path, measured, caplog, content):
    calibrate("cpu", folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert not local_device("cpu", tmp_path).calibrated
    assert "calibrate again" in caplog.text


def test_the_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibration.default_folder() == tmp_path / "rooffuse" / "calibration"


@pytest.mark.parametrize("unusable", [None, "", "relative/path"])
def test_without_a_usable_cache_variable_it_is_below_home(monkeypatch, tmp_path, unusable):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if unusable is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
    assert calibration.default_folder() == tmp_path / ".cache" / "rooffuse" / "calibration"


def test_a_real_measurement_is_plausible(monkeypatch):
    monkeypatch.setattr(calibration, "_DTYPES", {"fp32": torch.float32})
    for size in (1 << 20, 256 << 20):
        assert 1e8 < calibration._bandwidth("cpu", 0.02, size) < 1e13
    assert 1e8 < calibration._matmul_peaks("cpu", 0.02, lambda step: None)["fp32"] < 1e15
    launch = calibration._launch("cpu")
    assert 0 < launch["launch_s"] < 1e-2 and 1e-8 < launch["dispatch_s"] < 1e-2


def test_a_type_that_is_multiplied_one_by_one_takes_a_small_product(monkeypatch):
    multiplied = []

    def slow(x, y, out):
        multiplied.append(len(x))
        time.sleep(0.005)

    monkeypatch.setattr(calibration, "_DTYPES", {"fp16": torch.float16})
    monkeypatch.setattr(torch, "mm", slow)
    peaks = calibration._matmul_peaks("cpu", 1.0, lambda step: None)
    assert set(multiplied) == {256} and 0 < peaks["fp16"] < 2 * 256**3 / 0.005
    multiplied.clear()
    calibration._matmul_peaks("cpu", 60.0, lambda step: None)
    assert set(multiplied) == {256, 2048}


def test_only_of_a_cpu_the_caches_are_measured(monkeypatch):
    monkeypatch.setattr(calibration, "_bandwidth", lambda device, budget_s, size: 4e10 if size > 1 << 27 else 3e10)
    monkeypatch.setattr(calibration, "_matmul_peaks", lambda *args: {})
    monkeypatch.setattr(calibration, "_launch", lambda *args: {"launch_s": 1e-6, "dispatch_s": 1e-6})
    heard = []
    assert calibration.measure("cpu", heard.append, 1 << 24)["l2_bandwidth"] == 4e10  # no less than memory's
    assert heard == ["streaming bandwidth", "cache bandwidth", "launch cost"]
    assert "l2_bandwidth" not in calibration.measure("cuda", heard.append, 1 << 24)


def test_an_fp64_matmul_measures_the_matrix_units(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "measure", lambda *args: {**MEASURED, "peaks": {"fp64": 6e13}})
    monkeypatch.setattr(calibration, "detect", lambda torch_device: get_device("h100"))
    device = calibrate("cuda", folder=tmp_path)
    assert device.peaks["fp64_tc"] == 6e13 and device.peaks["fp64"] == 33.5e12


def test_dtypes_that_do_not_multiply_are_left_out(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("not implemented for this dtype")

    monkeypatch.setattr(torch, "mm", refuse)
    assert calibration._matmul_peaks("cpu", 0.01, lambda step: None) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_measures_below_its_datasheet(tmp_path):
    device = calibrate("cuda", folder=tmp_path)
    assert device.calibrated and 5e-7 < device.launch_s < device.dispatch_s
    assert 0.5 < device.bandwidth / get_device(device.name).bandwidth < 1.1
