"""Models by name and by config.json, without weights."""
from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import pytest
import rooffuse
from rooffuse.cli import main
from rooffuse.explanation import explain_call
from rooffuse.preset_table import PRESETS
from rooffuse.presets import Scenario, load_model, read_fields
from rooffuse.report_target import TargetError

SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "n_layer": 2,
         "n_embd": 64, "n_head": 4, "vocab_size": 256, "head_dim": 16}


def small(name: str, tmp_path) -> str:
    """A preset with two narrow layers, as a config.json."""
    fields = {k: SMALL.get(k, v) for k, v in PRESETS[name].items()}
    if "num_key_value_heads" in fields:
        fields["num_key_value_heads"] = 2
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return str(tmp_path / "config.json")


def report(target: str, **scenario) -> rooffuse.Report:
    found = load_model(target, Scenario(**scenario))
    return explain_call(found.function, found.args, found.kwargs, "h100")


@pytest.mark.parametrize(("name", "phase"), [
    *((name, "decode") for name in ("llama-3.1-8b", "qwen3-8b", "gpt2")), ("llama-3.2-1b", "prefill"),
    *((name, "train") for name in ("gpt2", "bert-base", "vit-b-16")), ("bert-base", "prefill"),
    ("vit-b-16", "prefill")])
def test_every_phase_is_one_graph_with_modules_and_lines(name, phase, tmp_path):
    found = report(small(name, tmp_path), phase=phase, context=None if name == "vit-b-16" else 32)
    assert found.graph_breaks == ()
    assert [g.kind for g in found.graphs] == (["forward", "backward"] if phase == "train" else ["inference"])
    nodes = [n for n in found.nodes if n["bound"] != "none"]
    assert sum(bool(n["module"]) for n in nodes) > 0.7 * len(nodes)
    assert sum(bool(n["source"]) for n in nodes) > 0.9 * len(nodes)
    assert any(n["module"].startswith("model.") and ".1." in n["module"] for n in nodes)
    assert all("/torch/" not in n["source"] for n in nodes)


def test_scenario_decides_sizes(tmp_path):
    target = small("llama-3.1-8b", tmp_path)
    one, four = (report(target, batch=b, context=64, dtype=d) for b, d in ((1, "bf16"), (4, "bf16")))
    products = [sum(n["flops"] for n in r.nodes if n["kind"] == "matmul") for r in (one, four)]
    assert products[1] == 4 * products[0]
    wide = report(target, dtype="fp32", context=64)
    assert wide.graphs[0].input_bytes == pytest.approx(2 * one.graphs[0].input_bytes, rel=0.02)


def test_inputs_of_a_decoding_step_are_weights_and_cache(tmp_path):
    target = small("llama-3.1-8b", tmp_path)
    [graph] = report(target, context=64).graphs
    from rooffuse.decode_plan import decoder_shape

    cache = 2 * 2 * 2 * 16 * 64 * 2
    assert graph.input_bytes == pytest.approx(2 * decoder_shape(target).read + cache, rel=0.02)


def test_inputs_of_a_mixture_are_the_experts_that_rows_meet(tmp_path):
    """At batch 1 a layer's two rows meet two of its eight experts; a batch of 8 may meet all of them."""
    target = small("mixtral-8x7b", tmp_path)
    experts = 2 * 8 * 3 * 64 * 128 * 2
    one, eight = (report(target, batch=b, context=64).graphs[0].input_bytes for b in (1, 8))
    cache = 2 * 2 * 2 * 16 * 64 * 2
    assert eight - one == pytest.approx(experts * 3 / 4 + 7 * cache, rel=0.02)


def test_classes_of_others_are_not_fetched(tmp_path):
    fields = {**read_fields(small("gpt2", tmp_path)), "auto_map": {"AutoModelForCausalLM": "someone/model--code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert report(str(tmp_path / "config.json"), phase="prefill", context=8).graphs


def test_a_folder_with_a_configuration(tmp_path):
    small("gpt2", tmp_path)
    assert read_fields(str(tmp_path))["model_type"] == "gpt2"


@pytest.mark.parametrize(("content", "said"), [
    ("{", "can't be read as JSON"), ("[]", "has no model_type"), ('{"model_type": "gpt9"}', "gpt9"),
    ('{"model_type": "t5"}', "is no causal language model"),
    ('{"model_type": "llama", "hidden_size": 10, "num_attention_heads": 3}', "config.json")])
def test_bad_configurations(content, said, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert main(["report", str(path)]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(("arguments", "said"), [
    (["gpt2", "--context", "2000"], "contexts of up to 1024 tokens"),
    (["vit-b-16", "--context", "10"], "takes images"),
    (["bert-base", "--phase", "decode"], "doesn't decode"),
    (["examples/norms.py:softmax", "--batch", "2"], "--batch is for presets and config.json"),
    (["gpt3"], "names no function and no preset"),
    (["no.json"], "there is no preset or file 'no.json'")])
def test_bad_scenarios(arguments, said, capsys):
    assert main(["report", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_bad_type_says_what_is_allowed(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["report", "gpt2", "--dtype", "int3"])
    assert raised.value.code == 2 and "bf16" in capsys.readouterr().err


def test_weights_have_no_values():
    found = load_model("llama-3.1-70b", Scenario(context=128))
    assert all(t.is_meta for t in found.args)
    with pytest.raises(TargetError, match="up to 131072 tokens"):
        load_model("llama-3.1-70b", Scenario(context=1 << 20))


@pytest.mark.slow
def test_the_8b_report_takes_seconds_and_little_memory():
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "rooffuse.cli", "report", "llama-3.1-8b", "--device", "h100"],
                            capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 20
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4e6
    assert "H100 SXM" in result.stdout
