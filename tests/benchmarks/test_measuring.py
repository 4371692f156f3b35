"""The registry, the checks and the measurements of one tiny case, end to end."""
from __future__ import annotations

import json

import pytest
import torch

from benchmarks import cases, rows, run
from benchmarks.__main__ import main
from benchmarks.cases import Case
from benchmarks.contenders import as_call, contender
from benchmarks.facts import observed
from benchmarks.measure import floor_bytes, resident_growth, tensors_in, time_calls, worst_error
from benchmarks.rows import Row


def _make(device, dtype):
    return (lambda x, y: torch.relu(x + y) * 2), (torch.randn(64, 32, dtype=dtype), torch.randn(64, 32, dtype=dtype))


TINY = Case("tiny", "kernels", _make)


def test_every_suite_has_cases_of_its_own_name():
    for suite in cases.SUITES:
        found = cases.cases_of(suite)
        assert found and {c.suite for c in found} == {suite}


def test_the_named_workloads_and_families_are_there():
    kernels = {c.name for c in cases.cases_of("kernels")}
    assert {"residual_rmsnorm", "cross_entropy", "layernorm_backward", "adamw", "linear_int4_m1"} <= kernels
    assert {c.name for c in cases.cases_of("models")} == {
        "llama", "mistral", "gpt2", "bert", "t5", "vit", "resnet", "convnext", "mixtral"}


def test_cases_of_a_device_only():
    assert "llama_3.1_8b" not in {c.name for c in cases.cases_of("decode", device="cpu")}
    assert "llama_3.1_8b" in {c.name for c in cases.cases_of("decode", device="cuda")}


@pytest.mark.parametrize("call", [lambda: cases.cases_of("nothing"), lambda: cases.case("nothing", "x"),
                                  lambda: cases.case_named("kernels", "nothing")])
def test_what_is_not_there_is_named(call):
    with pytest.raises(ValueError, match="nothing"):
        call()


def test_eight_bit_floats_are_compared():
    x = torch.tensor([1.0, -448.0, 0.5]).to(torch.float8_e4m3fn)
    other = torch.tensor([1.0, -448.0, 0.75]).to(torch.float8_e4m3fn)
    assert worst_error([x], [x.clone()]) == 0
    assert worst_error([other], [x]) == pytest.approx(0.25 / 448)


def test_a_name_is_registered_once():
    cases.cases_of("kernels")
    with pytest.raises(ValueError, match="already"):
        cases.case("kernels", "softmax")(_make)


def test_quick_takes_the_first_type_asked_for():
    quick = run.Settings(dtypes=("bf16", "fp32"), quick=True)
    chosen = {c.name: d for c, d in run.jobs("kernels", quick)}
    assert chosen["softmax"] == "bf16" and chosen["adamw"] == "fp32"
    assert len(run.jobs("kernels", run.Settings(pattern="silu_mul"))) == 3


def test_equal_results_have_no_error():
    x = torch.tensor([1.0, float("inf"), float("nan")])
    assert worst_error(x.clone(), x) == 0


@pytest.mark.parametrize("wrong", [
    torch.zeros(4), torch.tensor([1.0, 2.0, float("nan"), 4.0]), torch.ones(4, 1), torch.arange(1, 5),
    torch.tensor([1.0, 2.0, 3.0, 4.5])])
def test_wrong_results_have_an_error(wrong):
    assert worst_error([wrong], [torch.tensor([1.0, 2.0, 3.0, 4.0])]) > 0.1


def test_wrong_integers_have_an_infinite_error():
    assert worst_error(torch.tensor([1, 2]), torch.tensor([1, 3])) == float("inf")


def test_a_missing_result_is_not_passed_over():
    with pytest.raises(ValueError):
        worst_error([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)])


def test_gradients_that_are_rounding_are_held_to_the_largest():
    ours, reference = [torch.ones(3), torch.full((3,), 2e-9)], [torch.ones(3), torch.full((3,), 1e-9)]
    assert worst_error(ours, reference) == pytest.approx(1.0)
    assert worst_error(ours, reference, least_scale=1e-3) < 1e-5


def test_floor_counts_each_tensor_once_and_written_ones_twice():
    x, y = torch.zeros(10), torch.zeros(10)
    assert floor_bytes(None, (x, x[:5]), y) == 80
    assert floor_bytes(None, (x,), None, written=[x]) == 80
    assert floor_bytes(torch.nn.Linear(4, 2), (torch.zeros(1, 4),), torch.zeros(1, 2)) == 4 * (8 + 2 + 4 + 2)
    assert floor_bytes(None, (torch.zeros(1, 8).expand(100, 8),), None) == 32


def test_tensors_of_nested_results():
    assert len(tensors_in({"a": [torch.zeros(1), (torch.zeros(1), None)], "b": 3})) == 2


def test_resident_growth_sees_what_a_call_allocates():
    grown = resident_growth(lambda: torch.ones(8 << 20).sum())
    if grown is None:
        pytest.skip("the system has no counters of resident memory")
    assert 30 << 20 < grown < 64 << 20


def test_times_are_interleaved_and_ordered():
    order = []
    timings = time_calls({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, "cpu", 0.001)
    assert timings["a"].low_us <= timings["a"].median_us <= timings["a"].high_us
    late = order[-20:]
    assert "a" in late or "b" in late
    assert "".join(order).count("ab") >= 5


def test_ours_tells_launches_bytes_and_predicted_time():
    fn, args = _make("cpu", torch.float32)
    torch._dynamo.reset()
    with observed("rooffuse") as facts:
        contender("rooffuse", fn, TINY)(*args)
    assert facts.launches == 1 and facts.bytes == 3 * 64 * 32 * 4
    assert facts.predicted_s > 0 and facts.flops > 0


def test_an_unknown_contender_is_named():
    with pytest.raises(ValueError, match="nobody"):
        contender("nobody", len, TINY)


def test_training_gives_loss_and_gradients():
    module = torch.nn.Linear(3, 1)

    def loss(x):
        return module(x).sum()

    step = as_call(Case("t", "training", _make, training=True), module, loss)
    assert [tuple(t.shape) for t in step(torch.ones(2, 3))] == [(), (1, 3), (1,)]


def test_a_case_end_to_end():
    found = {r.contender: r for r in run.run_job(TINY, "fp32", run.Settings(against=("eager",), budget_s=0.01))}
    ours = found["rooffuse"]
    assert set(found) == {"eager", "rooffuse"} and not ours.note
    assert ours.low_us <= ours.median_us <= ours.high_us
    assert ours.floor_bytes == 3 * 64 * 32 * 4 and ours.bytes_over_floor == 1.0 and ours.launches == 1
    assert ours.error < 1e-6 and ours.predicted_us > 0 and ours.share_of_roof > 0
    assert ours.device and ours.torch == torch.__version__ and ours.threads == torch.get_num_threads()


def test_a_wrong_contender_is_not_timed(monkeypatch):
    monkeypatch.setattr(run, "contender", lambda name, fn, case: fn if name == "eager" else lambda *a: fn(*a) + 1)
    found = {r.contender: r for r in run.run_job(TINY, "fp32", run.Settings(against=("eager",), budget_s=0.01))}
    assert found["rooffuse"].note.startswith("wrong") and found["rooffuse"].median_us is None
    assert found["eager"].median_us > 0


def test_a_failing_contender_leaves_the_others_rows(monkeypatch):
    def refuse(*args):
        raise RuntimeError("no such luck\nsecond line")

    monkeypatch.setattr(run, "contender", lambda name, fn, case: fn if name == "eager" else refuse)
    found = {r.contender: r for r in run.run_job(TINY, "fp32", run.Settings(against=("eager",), budget_s=0.01))}
    assert found["rooffuse"].note == "failed: RuntimeError: no such luck"
    assert found["eager"].median_us > 0


def test_rows_survive_the_file(tmp_path):
    row = Row("kernels", "softmax", "bf16", "rooffuse", 1.5, 1.25, 2.0, error=1e-3, floor_bytes=1 << 33, launches=2,
              note="a, \"b\"", device="d", threads=2)
    path = tmp_path / "kernels.csv"
    rows.write_rows(path, [row])
    assert rows.read_rows(path) == [row] == rows.read_rows(tmp_path)


def test_writing_again_replaces_a_row_and_keeps_the_others(tmp_path):
    path = tmp_path / "kernels.csv"
    rows.write_rows(path, [Row("kernels", "a", "fp32", "eager", 1.0), Row("kernels", "b", "fp32", "eager", 1.0)])
    rows.write_rows(path, [Row("kernels", "a", "fp32", "eager", 2.0)])
    assert [(r.case, r.median_us) for r in rows.read_rows(path)] == [("a", 2.0), ("b", 1.0)]


def test_files_that_hold_no_rows_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no columns case"):
        rows.read_rows(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="no file or folder"):
        rows.read_rows(tmp_path / "y.csv")


def test_the_command_writes_rows_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(cases._CASES, ("kernels", "tiny"), TINY)
    status = main(["run", "--only", "tiny", "--against", "eager", "--quick", "--out", str(tmp_path / "rows"), "--json",
                   str(tmp_path / "rows.json")])
    assert status == 0 and "tiny fp32: eager" in capsys.readouterr().out
    written = json.loads((tmp_path / "rows.json").read_text())
    assert [r["contender"] for r in written] == ["eager", "rooffuse"]
    assert len(rows.read_rows(tmp_path / "rows" / "kernels.csv")) == 2


def test_an_interrupt_keeps_finished_rows(tmp_path, capsys, monkeypatch):
    def interrupted(case, dtype, settings):
        if dtype == "bf16":
            raise KeyboardInterrupt
        return [Row("kernels", case.name, dtype, "rooffuse", 1.0)]

    monkeypatch.setattr(run, "run_job", interrupted)
    assert main(["run", "--only", "softmax", "--out", str(tmp_path)]) == 130
    assert [r.dtype for r in rows.read_rows(tmp_path)] == ["fp32"]
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--suite", "nothing"], ["--against", "nothing"]])
def test_a_wrong_request_is_answered(words, capsys):
    assert main(["run", "--dry-run", *words]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_result_nearer_to_the_truth_than_eagers_is_right():
    def rounding(x):
        return (x.sum(0) if x.dtype == torch.float32 else x.cumsum(0)[-1])

    x = torch.rand(4096, 4).to(torch.bfloat16) * 0 + 1.0078125
    eager = torch.full((4,), 3000.0, dtype=torch.bfloat16)
    case = Case("c", "kernels", _make)
    nearer, further = x.float().sum(0).to(torch.bfloat16), torch.full((4,), 9000.0, dtype=torch.bfloat16)
    assert run._closer_than_eager(case, "bf16", rounding, (x,), nearer, eager)
    assert not run._closer_than_eager(case, "bf16", rounding, (x,), further, eager)
    assert not run._closer_than_eager(case, "fp32", rounding, (x,), nearer, eager)
