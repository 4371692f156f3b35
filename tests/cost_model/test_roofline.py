"""Seconds from costs."""

import pytest
import sympy
import torch
from rooffuse.cost_model import Cost, Device, estimate, get_device
from rooffuse.cost_model.roofline import occupancy

DEVICE = Device(
    name="Round",
    vendor="none",
    kind="gpu",
    peaks={"fp32": 1e12, "bf16": 1e13},
    bandwidth=1e11,
    l2_bytes=1000,
    l2_bandwidth=1e12,
    sms=100,
    smem_bytes=1024,
    memory_bytes=10**9,
    launch_s=1e-6,
    dispatch_s=5e-6,
)


def test_memory_bound():
    found = estimate(Cost(10**6, 10**9, 10**9), DEVICE, torch.float32)
    assert found.bound == "memory"
    assert found.memory_s == 0.02 and found.compute_s == 1e-6
    assert found.seconds == pytest.approx(0.02 + 1e-6)


def test_compute_bound_depends_on_the_unit():
    cost = Cost(10**12, 10**9, 0)
    assert estimate(cost, DEVICE, torch.bfloat16, "vector").compute_s == 1.0
    assert estimate(cost, DEVICE, torch.bfloat16, "tensor").compute_s == 0.1
    assert estimate(cost, DEVICE, torch.bfloat16, "tensor").bound == "compute"


def test_launch_bound():
    tiny = Cost(100, 400, 400)
    captured, plain = estimate(tiny, DEVICE, torch.float32), estimate(tiny, DEVICE, torch.float32, captured=False)
    assert captured.bound == plain.bound == "launch"
    assert (captured.launch_s, plain.launch_s) == (1e-6, 5e-6)
    assert captured.seconds == pytest.approx(1e-6 + 8e-9)


def test_launch_counts_as_the_bound_only_when_it_exceeds_the_rest():
    assert estimate(Cost(0, 10**5, 0), DEVICE, torch.float32).bound == "memory"
    assert estimate(Cost(0, 99_999, 0), DEVICE, torch.float32).bound == "launch"


def test_too_few_programs_leave_the_device_idle():
    cost = Cost(0, 10**9, 0)
    full = estimate(cost, DEVICE, torch.float32).memory_s
    assert estimate(cost, DEVICE, torch.float32, programs=25).memory_s == 4 * full
    assert estimate(cost, DEVICE, torch.float32, programs=100).memory_s == full
    assert estimate(cost, DEVICE, torch.float32, programs=1000).memory_s == full
    assert occupancy(DEVICE, 1) == 0.01
    with pytest.raises(ValueError, match="programs is 0"):
        estimate(cost, DEVICE, torch.float32, programs=0)


def test_a_working_set_that_fits_runs_at_cache_speed():
    cost = Cost(0, 10**9, 0)
    assert estimate(cost, DEVICE, torch.float32, working_set=1000).memory_s == 1e-3
    assert estimate(cost, DEVICE, torch.float32, working_set=1001).memory_s == 1e-2


def test_nothing_takes_no_time():
    assert estimate(Cost.zero(), DEVICE, torch.float32).seconds == 0.0


def test_symbolic_costs_need_numbers():
    n = sympy.Symbol("n", positive=True, integer=True)
    with pytest.raises(ValueError, match="symbolic"):
        estimate(Cost(n, n, n), DEVICE, torch.float32)
    assert estimate(Cost(n, 4 * n, 4 * n).subs({n: 10**9}), DEVICE, torch.float32).memory_s == 0.08


def test_tf32_speeds_up_fp32_matmuls_only_when_asked():
    cost, h100 = Cost(10**15, 10**6, 0), get_device("h100")
    plain = estimate(cost, h100, torch.float32, "tensor")
    fast = estimate(cost, h100, torch.float32, "tensor", tf32=True)
    assert plain.compute_s / fast.compute_s == pytest.approx(494.7 / 66.9)
