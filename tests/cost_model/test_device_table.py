"""The device table, look-up by name and file, and detection."""

import pickle

import pytest
import torch
from rooffuse.cost_model import (
    Device,
    UnknownDevice,
    all_devices,
    device_from_dict,
    device_names,
    get_device,
    local_device,
)
from rooffuse.cost_model.detect import describe_cpu


@pytest.mark.parametrize(
    "spelling, name",
    [
        ("h100", "H100 SXM"),
        ("H100", "H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("h100-pcie", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("h200", "H200"),
        ("b200", "B200"),
        ("NVIDIA B200", "B200"),
        ("a100", "A100-80"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L4", "L4"),
        ("l40s", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx_5090", "RTX 5090"),
        ("Tesla V100-SXM2-16GB", "V100 SXM"),
        ("Tesla P100-SXM2-16GB", "P100 SXM"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_names_and_aliases(spelling, name):
    assert get_device(spelling).name == name


def test_every_listed_name_is_found():
    for name in device_names():
        assert get_device(name).bandwidth > 0


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UnknownDevice) as caught:
        get_device("h10")
    message = str(caught.value)
    assert "did you mean" in message and "H100 SXM" in message
    assert all(name in message for name in device_names())
    assert isinstance(caught.value, ValueError)


def test_the_table_is_plausible():
    assert len({device.name for device in all_devices()}) == len(all_devices()) == 15
    for device in all_devices():
        assert 2e11 < device.bandwidth < 1e13, device.name
        assert device.l2_bandwidth > device.bandwidth, device.name
        assert 50 <= device.sms <= 400, device.name
        assert device.peaks["fp64"] <= device.peaks["fp32"] <= device.peaks["fp16"], device.name
        for slower, faster in [("tf32", "bf16"), ("bf16", "fp8"), ("fp16", "fp8")]:
            if slower in device.peaks and faster in device.peaks:
                assert device.peaks[slower] <= device.peaks[faster], device.name
        for field in ("peaks", "bandwidth", "l2_bytes", "l2_bandwidth", "sms", "smem_bytes", "memory_bytes"):
            assert device.sources[field], (device.name, field)
        assert device.launch_s == 1.3e-6 < device.dispatch_s
        assert not device.calibrated


def test_peaks_by_dtype_and_unit():
    h100 = get_device("h100")
    assert h100.peak(torch.bfloat16) == 989.4e12
    assert h100.peak(torch.float32) == 66.9e12
    assert h100.peak(torch.float32, tf32=True) == 494.7e12
    assert h100.peak(torch.float64) == 66.9e12
    assert h100.peak(torch.float64, "vector") == 33.5e12
    assert h100.peak(torch.bfloat16, "vector") == h100.peak(torch.int64, "vector") == 66.9e12
    assert h100.peak(torch.float8_e5m2) == h100.peak(torch.int8) == 1978.9e12


def test_absent_rates_fall_back_to_wider_types():
    a100, v100, p100 = get_device("a100"), get_device("v100"), get_device("p100")
    assert a100.peak(torch.float8_e4m3fn) == a100.peaks["fp16"]
    assert v100.peak(torch.bfloat16) == v100.peak(torch.float32, tf32=True) == v100.peaks["fp32"]
    assert p100.peak(torch.int8) == p100.peaks["fp32"]


TOML = """
name = "Imaginary"
vendor = "Nobody"
bandwidth = 1e12
sms = 10
capability = [9, 0]
l2_bytes = 1048576

[peaks]
fp32 = 1e13
bf16 = 1e14

[sources]
bandwidth = "dreamt"
"""


def test_a_toml_file_describes_a_device(tmp_path):
    path = tmp_path / "imaginary.toml"
    path.write_text(TOML)
    device = get_device(str(path))
    assert (device.name, device.kind, device.sms, device.capability) == ("Imaginary", "gpu", 10, (9, 0))
    assert device.ridge_point(torch.bfloat16) == 100
    assert device.sources["bandwidth"] == "dreamt"


@pytest.mark.parametrize(
    "old, new, complaint",
    [
        ("bandwidth = 1e12", "bandwith = 1e12", "unknown fields: bandwith; missing fields: bandwidth"),
        ("bandwidth = 1e12", "bandwidth = 0.0", "must be positive"),
        ("bf16 = 1e14", "bfloat = 1e14", "unknown peaks"),
        ("fp32 = 1e13", "", "at least 'fp32'"),
        ("sms = 10", "sms = ", "not valid TOML"),
        ('vendor = "Nobody"', 'kind = "tpu"', "must be 'cpu' or 'gpu'"),
    ],
)
def test_mistakes_in_a_toml_file_are_named(tmp_path, old, new, complaint):
    path = tmp_path / "wrong.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(ValueError, match=complaint):
        get_device(str(path))


def test_a_missing_toml_file_is_an_unknown_device(tmp_path):
    with pytest.raises(UnknownDevice, match="does not exist"):
        get_device(str(tmp_path / "nothing.toml"))


def test_the_local_cpu(tmp_path):
    device = local_device("cpu", tmp_path)
    assert device.kind == "cpu" and device.sms == torch.get_num_threads()
    assert not device.calibrated
    assert "not measured" in device.sources["bandwidth"] and "estimate" in device.sources["peaks"]
    assert get_device("cpu", tmp_path) == device


def test_cpu_peaks_follow_the_flags():
    def peaks(flags):
        return describe_cpu({"flags": flags, "cpu MHz": "2000", "model name": "X"}, 4, None, 2**30).peaks

    plain, avx2, avx512 = peaks("sse2"), peaks("avx2 fma"), peaks("avx2 avx512f")
    assert avx512["fp32"] == 64 * 2e9 * 4 == 2 * avx2["fp32"]
    assert plain["fp32"] < avx2["fp32"] and avx2["fp64"] == avx2["fp32"] / 2
    assert avx512["bf16"] == avx512["fp32"]
    assert peaks("avx512f avx512_bf16")["bf16"] == 2 * avx512["fp32"]
    assert peaks("avx512f amx_bf16")["bf16"] == 1024 * 2 * 2e9 * 4 / 2
    assert avx512["fp16"] == avx512["fp32"] / 60  # one element after the other
    assert peaks("avx2 avx512f avx512_fp16")["fp16"] == avx512["fp32"]


def test_a_cpu_without_proc_is_still_described():
    device = describe_cpu({}, 8, None, 0)
    assert device.name and device.sms == 8 and device.peaks["fp32"] > 0


def test_cuda_without_a_gpu_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnknownDevice, match="no CUDA device"):
        local_device("cuda", tmp_path)
    with pytest.raises(UnknownDevice, match="use 'cpu' or 'cuda'"):
        local_device("meta", tmp_path)


class Properties:
    name = "NVIDIA H100 80GB HBM3"
    multi_processor_count = 132
    total_memory = 85 * 10**9
    L2_cache_size = 52428800
    shared_memory_per_multiprocessor = 233472
    major, minor = 9, 0
    clock_rate, memory_clock_rate, memory_bus_width = 1_980_000, 2_619_000, 5120


def test_a_listed_gpu_takes_sizes_from_the_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    device = local_device("cuda", tmp_path)
    assert device.name == "H100 SXM" and device.peaks == get_device("h100").peaks
    assert (device.memory_bytes, device.arch, device.capability) == (85 * 10**9, "sm_90", (9, 0))
    assert device.sources["memory_bytes"] == "driver"


def test_an_unlisted_gpu_is_estimated_from_its_clocks(tmp_path, monkeypatch):
    class Other(Properties):
        name = "NVIDIA Q999"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Other)
    device = local_device("cuda", tmp_path)
    assert device.name == "NVIDIA Q999" and device.sms == 132
    assert device.peaks["fp32"] == pytest.approx(66.9e12, rel=0.01)
    assert device.bandwidth == pytest.approx(3.35e12, rel=0.01)
    assert "calibrate" in device.sources["peaks"]


def test_devices_are_values():
    h100 = get_device("h100")
    assert pickle.loads(pickle.dumps(h100)) == h100 == device_from_dict(h100.to_dict())
    assert hash(h100) == hash(device_from_dict(h100.to_dict()))
    with pytest.raises(TypeError):
        h100.peaks["bf16"] = 1.0
    assert isinstance(h100, Device)
