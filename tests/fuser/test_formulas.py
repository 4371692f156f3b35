"""Formulas in named sizes: that they are the known ones, and give at any sizes what a trace at those sizes costs."""
from __future__ import annotations

import csv
import io
import json
from unittest.mock import patch

import pytest
import rooffuse
import sympy
import torch
from rooffuse.cli import main
from rooffuse.cost_model import Cost, get_device, price
from rooffuse.fake_copies import FakeCopier
from rooffuse.formula_target import model_formulas, parse_sizes, parse_symbols
from rooffuse.formula_text import formula_text
from rooffuse.formula_trace import FormulaError
from rooffuse.presets import Scenario, prepared_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .test_presets import small

B, S, d, f = sympy.symbols("B S d f", integer=True, positive=True)


class Meter(TorchDispatchMode):
    """Adds up the prices of what runs, at numbers."""

    total = Cost.zero()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        priced = price(func, args, kwargs or {}, result)
        if priced.kind != "view":
            self.total += priced.cost
        return result


def cost_at(target: str, scenario: Scenario) -> Cost:
    """The cost of a model at the sizes of ``scenario``, traced without any symbol."""
    loaded = prepared_model(target, scenario)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = FakeCopier(mode)(loaded.model)
    with mode, patch.object(torch.compiler, "_is_compiling_flag", True):
        run = loaded.run(model, loaded.batch, loaded.context, torch.device("cpu"))
        with Meter() as meter:
            result = run.function(*run.args)
            if loaded.phase == "train":
                result.backward(torch.ones_like(result))
    return meter.total


@pytest.mark.parametrize(("name", "phase"), [
    ("llama-3.1-8b", "decode"), ("qwen3-8b", "prefill"), ("gpt2", "train"), ("bert-base", "prefill"),
    ("vit-b-16", "train")])
def test_a_formula_gives_what_a_trace_at_those_sizes_costs(name, phase, tmp_path):
    target = small(name, tmp_path)
    image = name == "vit-b-16"
    found = model_formulas(prepared_model(target, Scenario(phase=phase, context=None if image else 40)),
                           get_device("h100"))
    assert set(found.sizes) == ({"B"} if image else {"B", "S"}) and found.sizes["B"] == 1
    # A gradient is summed over a batch that was broadcast, and over a batch of 1 it isn't.
    for batch, context in ((2 if phase == "train" else 1, 40), (6, 64)):
        sizes = {"B": batch} if image else {"B": batch, "S": context}
        expected = cost_at(target, Scenario(batch, None if image else context, phase))
        at = found.evaluate(**sizes)
        assert at.holds and (at.flops, at.bytes_read, at.bytes_written) == (
            expected.flops, expected.bytes_read, expected.bytes_written)
    assert found.evaluate().to_dict() == found.evaluate(**found.sizes).to_dict()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(3))
        self.up = nn.Linear(64, 256)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return torch.nn.functional.gelu(self.up(x))


@pytest.fixture(scope="module")
def block() -> rooffuse.Formulas:
    model = Block().half().requires_grad_(False)
    return rooffuse.formulas(model, torch.empty(8, 100, 64, dtype=torch.float16), device="h100",
                             symbols={"B": 8, "S": 100, "d": 64, "f": 256})


def test_formulas_are_the_textbook_ones(block):
    layer, up, gelu = block.rows
    assert (layer.module, layer.count, layer.cost.flops) == ("layers.*", 3, 2 * B * S * d**2)
    assert up.cost == Cost(2 * B * S * d * f, 2 * B * S * d + 2 * d * f + 2 * f, 2 * B * S * f)
    assert gelu.cost.bytes == 4 * B * S * f and gelu.cost.flops % (B * S * f) == 0
    assert block.total.flops == sympy.expand(sum(r.count * r.cost.flops for r in block.rows))
    assert up.evaluate(B=2, S=3, d=4, f=5) == Cost(240, 48 + 40 + 10, 60)
    assert up.source.startswith("tests/fuser/test_formulas.py:") and "self.up" in up.code


def test_evaluation(block):
    at = block.evaluate(d=128, B=1)
    assert dict(at.sizes) == {"B": 1, "S": 100, "d": 128, "f": 256}
    matmuls = 3 * 2 * 100 * 128 * 128 + 2 * 100 * 128 * 256
    assert 0 < at.flops - matmuls < 0.01 * matmuls and at.intensity == at.flops / at.bytes
    assert at.time_us > block.evaluate(B=1).time_us > 0
    for wrong in ({"x": 1}, {"B": 0}, {"B": 1.5}, {"B": True}):
        with pytest.raises(FormulaError, match="the sizes are B, S, d, f|whole number"):
            block.evaluate(**wrong)


def test_json_spells_formulas_that_sympy_reads(block):
    data = json.loads(json.dumps(block.to_dict([{"S": 7}, {"S": 8}]), allow_nan=False))
    names = {str(s): s for s in (B, S, d, f)}
    for row, back in zip(block.rows, data["nodes"], strict=True):
        assert sympy.sympify(back["flops"], names) == row.cost.flops
        assert sympy.sympify(back["bytes_read"], names) == row.cost.bytes_read
    assert [e["sizes"]["S"] for e in data["evaluations"]] == [7, 8]
    assert data["sizes"] == {"B": 8, "S": 100, "d": 64, "f": 256} and data["conditions"] == []
    rows = list(csv.DictReader(io.StringIO(block.csv())))
    assert int(rows[1]["flops_here"]) == 2 * 8 * 100 * 64 * 256 and len(rows) == 3


def test_backward_rows_lead_to_the_module_of_their_forward():
    found = rooffuse.formulas(Block(), torch.empty(8, 64), device="h100")
    assert dict(found.sizes) == {"B": 8}
    weights = [r for r in found.rows if r.backward and r.kind == "matmul"]
    assert {r.module for r in weights} == {"layers.*", "up"}
    assert sum(r.count * r.cost.flops for r in found.rows if r.backward and r.kind == "matmul") == (
        2 * (3 * 2 * 64 * 64 + 2 * 64 * 256) - 2 * 64 * 64) * B  # no gradient of the input


def test_spelling():
    assert formula_text(2 * B * S**2 * d) == "2·B·S²·d"
    assert formula_text(sympy.Min(4, B)) == "min(4, B)" and formula_text(7) == "7"
    assert parse_sizes(["B=1,2", "S=3 d=4"]) == [{"B": 1, "S": 3, "d": 4}, {"B": 2, "S": 3, "d": 4}]
    assert parse_symbols("B=8, d=64") == {"B": 8, "d": 64}


def branches(x: Tensor) -> Tensor:
    return x.sin() if x.shape[0] > 512 else x.sum(0)


def test_conditions_of_the_traced_path_are_told():
    found = rooffuse.formulas(branches, torch.empty(1024, 4), device="h100")
    assert found.evaluate(B=513).holds and not found.evaluate(B=512).holds
    text = found.text(several=[{"B": 100}])
    assert "holds where  B > 512" in text and "µs !" in text


def by_transposed(x: Tensor) -> Tensor:
    return x.t() @ x


def test_strides_follow_their_sizes():
    row, = rooffuse.formulas(by_transposed, torch.empty(30, 8).t(), symbols={"n": 8}, device="h100").rows
    n = sympy.Symbol("n", integer=True, positive=True)
    assert row.cost == Cost(2 * 30 * 30 * n, 2 * 30 * 4 * n, 30 * 30 * 4)


@pytest.mark.parametrize(("function", "symbols", "said"), [
    (lambda x: x.view(32), None, "fixes B to 8 at aten.view.default (tests/fuser/test_formulas.py"),
    (lambda x: x + 1 if x.sum() > 0 else x, None, "a tensor's value is needed"),
    (lambda x: x[x > 0].sum(), None, "depends on a tensor's values"),
    (torch.relu, {"d": 17}, "no argument or weight has a size of 17"),
    (torch.relu, {"d": 1}, "special to torch"),
    (torch.relu, {"d": 4, "e": 4}, "d and e are both 4"),
    (torch.relu, {"2": 4}, "'2' is no name"),
])
def test_refusals(function, symbols, said):
    with pytest.raises(FormulaError) as error:
        rooffuse.formulas(function, torch.empty(8, 4), symbols=symbols, device="h100")
    assert said in str(error.value)


def test_an_operator_that_takes_sizes_for_numbers_is_told_of():
    def function(x):
        raise RuntimeError("Cannot call numel() on tensor with symbolic sizes/strides\nand more")

    with pytest.raises(FormulaError, match=f"operator of torch {torch.__version__.split('+')[0]}.* newer versions"):
        rooffuse.formulas(function, torch.empty(4, 8, device="meta"), device="h100", symbols={"B": 4})


def test_command(capsys, tmp_path):
    path = tmp_path / "given.py"
    path.write_text("import torch\n"
                    "def good():\n    return torch.softmax, (torch.empty(8, 4096, device='meta'), -1)\n"
                    "def mismatch():\n    return (lambda x: x @ x), (torch.empty(30, 7),)\n")
    good = f"{path}:good"
    assert main(["report", good, "--device", "h100", "--symbols", "B=8,d=4096", "--sizes", "B=1,64", "d=1024",
                 "--json", str(tmp_path / "out.json"), "--csv", str(tmp_path / "out.csv")]) == 0
    out = capsys.readouterr().out
    assert "B·d" in out and "64  1024" in out and len(out.splitlines()) < 25
    assert [e["sizes"] for e in json.loads((tmp_path / "out.json").read_text())["evaluations"]] == [
        {"B": 1, "d": 1024}, {"B": 64, "d": 1024}]
    assert "B*d" in (tmp_path / "out.csv").read_text()
    for arguments, said in [
            ([good, "--formulas", "--html", "x"], "--html is of plans"), ([good, "--sizes", "B"], "are no sizes"),
            ([good, "--sizes", "S=1"], "no size 'S'"), ([good, "--symbols", "B"], "names no size"),
            ([f"{path}:mismatch", "--formulas"], "tracing"), ([good, "--formulas", "--sort", "name", "--top", "1"], ""),
            (["gpt2", "--symbols", "B=3"], "is for functions"),
            ([good, "--formulas", "--device", "h10"], "unknown device")]:
        assert main(["report", *arguments]) == (2 if said else 0)
        out, err = capsys.readouterr()
        assert said in err and (err.count("\n") == 1 and out == "") == bool(said)
