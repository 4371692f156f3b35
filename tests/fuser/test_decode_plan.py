"""Floors of decoding: figures that are quoted, limits, and the command."""
from __future__ import annotations

import json

import pytest
from rooffuse.cli import main
from rooffuse.cost_model import decoding, get_device
from rooffuse.cost_model.decoding import DecoderShape, Setting
from rooffuse.decode_plan import Request, decoder_shape, parse_batches, plan, plan_text

H100 = get_device("h100")
#: The round 70 billion parameters that the quoted figures take.
SEVENTY = DecoderShape("70b", 70 * 10**9, 70 * 10**9, 80, 8192, 64, 8, 128)
EIGHT_CARDS = Setting(context=4096, tp=8)
QUANTISED = Setting("int4", "int8", 4096, 8, group=None)


def test_seventy_billion_in_bf16_on_eight_cards():
    """5.2 ms and 191 tokens a second are the weights alone; cache and all-reduces are on top."""
    step = decoding.decode_step(SEVENTY, H100, EIGHT_CARDS, 1)
    assert decoding.weight_bytes(SEVENTY, EIGHT_CARDS) == 17.5e9
    weights_s = step.weight_bytes / H100.bandwidth
    assert round(weights_s * 1e3, 1) == 5.2 and round(1 / weights_s) == 191
    assert step.seconds > step.memory_s > weights_s
    assert decoding.largest_batch(SEVENTY, H100, EIGHT_CARDS) == 372


def test_seventy_billion_in_int4_with_an_int8_cache():
    """The quoted 901 leave the scales of int4 out; one for each 64 weights takes four of them away."""
    assert round(decoding.weight_bytes(SEVENTY, QUANTISED) / 1e9, 1) == 4.4
    assert decoding.largest_batch(SEVENTY, H100, QUANTISED) == 901
    assert decoding.largest_batch(SEVENTY, H100, Setting("int4", "int8", 4096, 8)) == 898


def test_all_reduce_of_one_token_is_all_launch():
    moved = decoding.all_reduce_bytes(8192)
    assert moved == 32768
    assert round(moved / 900e9 * 1e9) == 36
    assert decoding.links_seconds(SEVENTY, H100, 1, 8) == pytest.approx(160 * (1.3e-6 + 36.4e-9), rel=1e-3)
    assert decoding.links_seconds(SEVENTY, H100, 1, 1) == 0


def test_speculation():
    assert round(decoding.speculated_tokens(5, 0.78), 1) == 3.5
    assert decoding.speculated_tokens(4, 1.0) == 5 and decoding.speculated_tokens(4, 0.0) == 1
    step = decoding.decode_step(SEVENTY, H100, EIGHT_CARDS, 1)
    assert step.seconds <= decoding.speculated_step(SEVENTY, H100, EIGHT_CARDS, 1, 5) < 1.01 * step.seconds
    with pytest.raises(ValueError, match="probability"):
        decoding.speculated_tokens(5, 1.5)


def test_int4_bits():
    assert decoding.weight_bits("int4", 64) == 4.25 and decoding.weight_bits("int4", None) == 4
    with pytest.raises(ValueError, match="unknown format 'int3'; the formats are bf16"):
        decoding.weight_bits("int3")


@pytest.mark.parametrize(("name", "gigabytes"), [
    ("llama-3.2-1b", 2.4716), ("llama-3.1-8b", 15.01), ("llama-2-7b", 13.21), ("qwen3-8b", 15.14)])
def test_presets_read_as_many_bytes_a_token_as_the_models(name, gigabytes):
    assert 2 * decoder_shape(name).read / 1e9 == pytest.approx(gigabytes, abs=6e-3)


def test_cache_of_llama_2_7b_is_half_a_mebibyte_a_token():
    shape = DecoderShape("llama-2-7b", 7 * 10**9, 7 * 10**9, 32, 4096, 32, 32, 128)
    assert decoding.cache_bytes(shape, Setting(context=1)) == 2**19
    step = decoding.decode_step(shape, H100, Setting(context=1), 1)
    assert round(step.weight_bytes / H100.bandwidth * 1e3, 1) == 4.2


def test_limits_are_where_they_say():
    shape = DecoderShape("short", 10**9, 10**9, 16, 2048, 16, 2, 128)
    for context in (64, 512, 65536):
        setting = Setting(context=context)
        batch = decoding.cache_bound_batch(shape, setting)
        weights = decoding.decode_step(shape, H100, setting, 1).weight_bytes
        assert batch * decoding.cache_bytes(shape, setting) > weights >= (batch - 1) * decoding.cache_bytes(
            shape, setting)
        turning = decoding.compute_bound_batch(shape, H100, setting)
        if turning is not None:
            assert decoding.decode_step(shape, H100, setting, turning).bound == "compute"
            assert decoding.decode_step(shape, H100, setting, turning - 1).bound == "memory"
    assert decoding.compute_bound_batch(shape, H100, Setting(context=64)) is not None
    assert decoding.compute_bound_batch(shape, H100, Setting(context=65536)) is None
    assert decoding.linears_compute_bound_batch(shape, H100, Setting()) == 296


def test_more_devices_than_key_heads_hold_copies():
    assert decoding.cache_bytes(SEVENTY, Setting(tp=16)) == decoding.cache_bytes(SEVENTY, Setting(tp=8))


def test_plan_data_and_text():
    request = Request((H100, get_device("l4")), (1, 512), speculate=(5, 0.78), price=3.6)
    shape = DecoderShape("8b", 8 * 10**9, 8 * 10**9, 32, 4096, 32, 8, 128)
    data = json.loads(json.dumps(plan(shape, request), allow_nan=False))
    first = data["plans"][0]["steps"][0]
    assert [(p["device"], p["weights"]) for p in data["plans"]] == [
        (d, w) for d in ("H100 SXM", "L4") for w in ("bf16", "int8", "int4")]
    assert first["mbu"] == pytest.approx(1.0) and first["fits"] and not data["plans"][0]["steps"][1]["fits"]
    assert first["cost"] == pytest.approx(1e6 * first["effective_time_per_token_s"] * 3.6 / 3600)
    assert first["joules"] == pytest.approx(31.2e-12 * (16e9 + 32 * 2 * 8 * 128 * 4096 * 2), rel=0.5)
    text = plan_text(data)
    assert "(512)" in text and "$/M tokens" in text and max(map(len, text.splitlines())) < 160


def test_batches():
    assert parse_batches("1..8") == (1, 2, 4, 8) and parse_batches("3..9") == (3, 4, 8, 9)
    assert parse_batches("1,7") == (1, 7)


@pytest.mark.parametrize(("arguments", "said"), [
    (["gpt2", "--batch", "0"], "'0' is no batch"),
    (["gpt2", "--batch", "9..2"], "'9..2' is no batch"),
    (["gpt2", "--speculate", "5"], "write drafted tokens and acceptance as 5,0.78"),
    (["gpt2", "--formats", "int3"], "unknown format 'int3'"),
    (["gpt2", "--device", "h10"], "unknown device 'h10'"),
    (["gpt2", "--tp", "2", "--device", "l4"], "L4 has no link_bandwidth"),
    (["gpt9"], "there is no preset or file 'gpt9'; the presets are llama-3.1-8b"),
    (["vit-b-16"], "doesn't decode"),
])
def test_mistakes_get_one_line(capsys, arguments, said):
    assert main(["plan-decode", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


def test_command(capsys):
    assert main(["plan-decode", "gpt2", "--batch", "1,4", "--context", "512", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["parameters"] == 124439808 and [s["batch"] for s in data["plans"][0]["steps"]] == [1, 4]


def written(tmp_path, **fields) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    return str(path)


#: Fields of the published config.json of Mixtral-8x7B and of Qwen1.5-MoE-A2.7B.
MIXTRAL = {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
           "num_experts_per_tok": 2, "sliding_window": None, "max_position_embeddings": 32768}
QWEN_MOE = {"model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
            "num_key_value_heads": 16, "vocab_size": 151936, "num_experts": 60, "num_experts_per_tok": 4}


def test_expected_experts():
    assert decoding.experts_touched(8, 2, 1) == pytest.approx(2) and decoding.experts_touched(8, 2, 2) == 3.5
    assert decoding.experts_touched(8, 2, 4) == 5.46875 and decoding.experts_touched(4, 4, 1) == 4
    assert decoding.experts_touched(60, 4, 10**4) == pytest.approx(60)


def test_mixtral(tmp_path):
    """46.7 billion parameters and 12.9 a token, as published, here without the table of embeddings."""
    shape = decoder_shape(written(tmp_path, **MIXTRAL))
    expert, layers = 3 * 4096 * 14336, 32
    attention, rest = 2 * 4096 * 4096 + 2 * 4096 * 1024, 8 * 4096 + 2 * 4096
    table = 32000 * 4096
    assert shape.parameters == layers * (8 * expert + attention + rest) + 4096 + 2 * table == 46_702_792_704
    assert shape.routed == layers * 8 * expert and (shape.experts, shape.chosen) == (8, 2)
    assert shape.active == layers * (2 * expert + attention + rest) + 4096 + table == 12_748_853_248
    assert shape.read_by(1) == pytest.approx(shape.active)
    assert shape.read_by(4) == shape.active + layers * (5.46875 - 2) * expert
    one, four = (decoding.decode_step(shape, H100, Setting(), b) for b in (1, 4))
    assert one.weight_bytes == pytest.approx(2 * shape.active) and four.weight_bytes == 2 * shape.read_by(4)
    assert four.flops == pytest.approx(4 * (2 * shape.active + 4 * 32 * 32 * 128 * 4096))
    assert decoding.weight_bytes(shape, Setting()) == 2 * shape.parameters
    # A token meets a quarter of the experts, so that it takes nearly four times the batch of a dense model.
    assert 1000 < decoding.linears_compute_bound_batch(shape, H100, Setting()) < 4 * 296
    assert decoding.speculated_step(shape, H100, Setting(), 1, 3) > 1.5 * one.seconds


def test_a_mixture_with_an_expert_that_all_share(tmp_path):
    shape = decoder_shape(written(tmp_path, **QWEN_MOE))
    assert shape.parameters == 14_315_784_192  # as published
    assert shape.routed == 24 * 60 * 3 * 2048 * 1408 and (shape.experts, shape.chosen) == (60, 4)
    assert shape.active == pytest.approx(shape.read - shape.routed * 56 / 60)
    data = plan(shape, Request((H100,), (1, 64)))
    assert data["experts"] == 60 and data["active_parameters"] == round(shape.active)
    assert "(2.38 G a token, which takes 4 of 60 experts)" in plan_text(data)


def test_windows_hold_the_cache(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2,
             "vocab_size": 1000, "num_hidden_layers": 6, "head_dim": 32}
    mistral = decoder_shape(written(tmp_path, model_type="mistral", sliding_window=512, **sizes))
    assert (mistral.windowed, mistral.window) == (6, 512)
    every = decoding.cache_bytes(mistral, Setting(context=512))
    assert every == 2 * 6 * 2 * 32 * 512 * 2 == decoding.cache_bytes(mistral, Setting(context=4096))
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    gemma = decoder_shape(written(tmp_path, model_type="gemma3_text", sliding_window=512, layer_types=kinds, **sizes))
    assert (gemma.windowed, gemma.kept(4096), gemma.kept(100)) == (5, 4096 + 5 * 512, 600)
    assert gemma.scores(4096) == 4096**2 / 2 + 5 * (512 * 4096 - 512**2 / 2)
    assert gemma.read == gemma.parameters  # the table is also the last layer
    plain = decoder_shape(written(tmp_path, model_type="mistral", sliding_window=None, **sizes))
    assert plain.windowed == 0 and plain.kept(4096) == 6 * 4096
    assert plain.read == plain.parameters - 1000 * 256


@pytest.mark.parametrize(("fields", "said"), [
    ({"model_type": "deepseek_v3", "num_hidden_layers": 2}, "latent vectors"),
    ({"model_type": "mamba", "num_hidden_layers": 2}, "layers of linear_attention"),
    ({"model_type": "qwen3_next", "num_hidden_layers": 4}, "layers of linear_attention"),
    ({"model_type": "gemma3n_text"}, "share a cache"),
    ({"model_type": "gemma3"}, "text_config"),
    ({**MIXTRAL, "num_hidden_layers": 2, "num_experts_per_tok": 9}, "how many a token takes"),
    ({"model_type": "bert"}, "doesn't decode")])
def test_what_has_another_cache_is_refused(fields, said, tmp_path, capsys):
    assert main(["plan-decode", written(tmp_path, **fields)]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and out == ""


def test_one_key_head_for_all(tmp_path):
    fields = {"model_type": "falcon", "hidden_size": 256, "num_attention_heads": 8, "num_hidden_layers": 2,
              "vocab_size": 1000}
    assert decoder_shape(written(tmp_path, multi_query=True, **fields)).kv_heads == 1
    assert decoder_shape(written(tmp_path, multi_query=False, **fields)).kv_heads == 8


def test_a_context_is_what_the_model_takes(capsys):
    assert main(["plan-decode", "gpt2", "--batch", "1"]) == 0
    assert "1024 tokens of context" in capsys.readouterr().out
    assert main(["plan-decode", "gpt2", "--context", "1025"]) == 2
    assert "gpt2 takes contexts of up to 1024 tokens, not 1025" in capsys.readouterr().err
