"""rooffuse.explain: it plans what would run, runs nothing, and leaves everything as it was."""
from __future__ import annotations

import resource

import pytest
import rooffuse
import torch
import torch.nn.functional as F
from rooffuse.cost_model import UnknownDevice, get_device
from torch import Tensor, nn
from torch._dynamo.utils import counters, graph_break_reasons
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

ROWS, HIDDEN = 64, 256


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    hidden = x + residual
    return hidden, F.rms_norm(hidden, (HIDDEN,), weight, 1e-6)


def norm_inputs(device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    return (torch.ones(ROWS, HIDDEN, device=device), torch.ones(ROWS, HIDDEN, device=device),
            torch.ones(HIDDEN, device=device))


@pytest.mark.parametrize("device", ["cpu", "h100"])
def test_the_bytes_of_a_fused_norm_are_exact(device):
    report = rooffuse.explain(add_rms_norm, *norm_inputs(), device=device)
    [kernel] = report.kernels
    matrix, row = 4 * ROWS * HIDDEN, 4 * HIDDEN
    assert (kernel["bytes_read"], kernel["bytes_written"]) == (2 * matrix + row, 2 * matrix)
    assert kernel["nodes"] == [n["name"] for n in report.nodes if n["group"] == "fused_0"]
    assert kernel["kind"] == ("cpp" if device == "cpu" else "triton")
    addition = report.nodes[0]
    assert (addition["op"], addition["bytes_read"], addition["bytes_written"], addition["flops"]) == (
        "aten.add.Tensor", 2 * matrix, matrix, ROWS * HIDDEN)
    assert report.fused.bytes < report.alone.bytes


def test_real_meta_and_fake_tensors_give_one_report():
    real = rooffuse.explain(add_rms_norm, *norm_inputs(), device="h100").to_dict()
    assert rooffuse.explain(add_rms_norm, *norm_inputs("meta"), device="h100").to_dict() == real
    with FakeTensorMode():
        fakes = norm_inputs()
        elsewhere = norm_inputs("cuda")
        assert rooffuse.explain(add_rms_norm, *fakes, device="h100").to_dict() == real
    assert rooffuse.explain(add_rms_norm, *fakes, device="h100").to_dict() == real
    assert rooffuse.explain(add_rms_norm, *elsewhere, device="h100").to_dict() == real


def test_a_report_with_different_strides_is_another():
    def twice(x: Tensor) -> Tensor:
        return x * 2

    plain = rooffuse.explain(twice, torch.ones(8, 8)[:, :4])
    assert plain.kernels[0]["bytes_read"] == 8 * 4 * 4


class _Spy(TorchDispatchMode):
    """Notes operators that get real tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_weights_of_50_gb_are_explained_in_little_memory():
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(32768, 32768) for _ in range(12)]).requires_grad_(False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = rooffuse.explain(model, torch.empty(4, 32768, device="meta"), device="h100")
    assert report.fused.bytes > 50e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024


def test_nothing_is_run(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a kernel was built")

    monkeypatch.setattr("rooffuse.compile.build", refuse)
    values = norm_inputs()
    versions = [v._version for v in values]

    def writes(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        x.add_(residual)
        weight.zero_()
        return x * weight

    report = rooffuse.explain(writes, *values)
    assert report.kernels
    assert [v._version for v in values] == versions
    assert all(bool((v == 1).all()) for v in values)


def test_training_reports_forward_and_backward_and_changes_no_buffer():
    model = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.GELU())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = rooffuse.explain(model, torch.ones(16, 32))
    assert [g.kind for g in report.graphs] == ["forward", "backward"]
    assert any(n["op"].startswith("aten.mm") for n in report.graphs[1].to_dict()["nodes"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert [g.kind for g in rooffuse.explain(model, torch.ones(16, 32)).graphs] == ["inference"]


def test_a_step_that_closes_over_a_model_leaves_the_model_alone():
    model, x = nn.Linear(8, 8), torch.ones(4, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    weight = model.weight.detach().clone()

    def step() -> Tensor:
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return loss

    report = rooffuse.explain(step)
    assert [g.kind for g in report.graphs][:2] == ["forward", "backward"]
    assert [g.kind for g in report.graphs].count("backward") == 1
    assert model.weight.grad is None and torch.equal(model.weight, weight)
    assert any("backward" in b.reason for b in report.graph_breaks)


def test_a_module_that_keeps_what_it_computed_keeps_nothing():
    class Remembering(nn.Module):
        last = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = x * 2
            return self.last + 1

    model = Remembering()
    rooffuse.explain(model, torch.ones(4))
    assert model.last is None


def test_graph_breaks_are_named_with_their_place_and_what_follows_is_traced():
    def broken(x: Tensor) -> Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    report = rooffuse.explain(broken, torch.ones(8))
    line = broken.__code__.co_firstlineno + 2
    [found] = report.to_dict()["graph_breaks"]
    assert found["location"] == f"{__file__}:{line} in broken"
    assert "graph_break()" in found["reason"]
    assert [n["op"] for n in report.nodes] == ["aten.sin.default", "aten.cos.default"]
    assert f"test_explain.py:{line} in broken" in str(report)


def test_a_break_in_a_loop_names_the_function():
    def looping(x: Tensor) -> Tensor:
        for _ in range(3):
            torch._dynamo.graph_break()
            x = x + 1
        return x

    [found] = rooffuse.explain(looping, torch.ones(8)).graph_breaks
    assert found.location == f"{__file__}:{looping.__code__.co_firstlineno} in looping"


def test_the_report_ends_where_a_value_is_needed():
    def branching(x: Tensor) -> Tensor:
        y = x * 2
        return y.cos() if y.sum() > 0 else y.sin()

    report = rooffuse.explain(branching, torch.ones(8))
    assert [n["op"] for n in report.nodes] == ["aten.mul.Tensor", "aten.sum.default", "aten.gt.Scalar"]
    assert "not in this report" in report.graph_breaks[-1].reason
    assert report.graph_breaks[-1].location.endswith("in branching")


def test_a_function_without_tensor_work_gives_an_empty_report():
    report = rooffuse.explain(lambda a: a + 1, 3)
    assert report.to_dict()["graphs"] == [] and report.kernels == []
    assert "no tensor operation" in str(report)


def test_an_error_of_the_function_is_raised():
    with pytest.raises(TypeError, match="positional argument"):
        rooffuse.explain(add_rms_norm, torch.ones(3))


def test_unknown_device():
    with pytest.raises(UnknownDevice, match="h100"):
        rooffuse.explain(add_rms_norm, *norm_inputs(), device="h1000")
    assert rooffuse.explain(add_rms_norm, *norm_inputs(), device=get_device("l4")).device.name == "L4"


def test_dynamo_is_left_as_it_was():
    def function(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x.sin() * 2

    seen: list[list[object]] = []

    def backend(gm, inputs):
        seen.append([i for i in inputs if not isinstance(i, Tensor)])
        return gm

    compiled = torch.compile(function, backend=backend)
    compiled(torch.ones(4, 4))
    kept = {key: dict(value) for key, value in counters.items()}
    reasons, limit = len(graph_break_reasons), torch._dynamo.config.recompile_limit
    rooffuse.explain(compiled, torch.ones(4, 4))
    rooffuse.explain(function, torch.ones(5, 4))
    assert {key: dict(value) for key, value in counters.items() if value} == {k: v for k, v in kept.items() if v}
    assert len(graph_break_reasons) == reasons and torch._dynamo.config.recompile_limit == limit
    compiled(torch.ones(4, 4))
    assert len(seen) == 1, "explain dropped what was compiled"

    def fresh(x: Tensor) -> Tensor:
        return x.cos() * 3

    rooffuse.explain(fresh, torch.ones(4, 4))
    rooffuse.explain(fresh, torch.ones(5, 4))
    torch.compile(fresh, backend=backend)(torch.ones(6, 4))
    assert seen[-1] == [], "sizes that explain saw made the compilation dynamic"


def test_a_graph_that_is_called_again_is_counted_again():
    def helper(x: Tensor) -> Tensor:
        return x.sin() + 1

    def function(x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch._dynamo.disable(lambda v: v)(helper(x))
        return x

    report = rooffuse.explain(function, torch.ones(8))
    assert len(report.graphs) == 3 and report.graphs[0] is report.graphs[2]
    assert "called 3 times" in str(report)
    assert report.fused.bytes == 3 * 64
