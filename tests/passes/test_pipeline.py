"""The pipeline as a whole: real models, symbolic sizes, invariants between passes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
from conftest import Capture, assert_same_results, targets, trace
from rooffuse.passes import (
    LIBRARY,
    PIPELINE,
    GraphError,
    Pass,
    aot_decompositions,
    hazard_edges,
    run_passes,
    verify,
)
from torch.fx import GraphModule

aten = torch.ops.aten


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=1
    )
    return GPT2LMHeadModel(config)


def bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
        )
    )


TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 0.05, "atol": 0.02}}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("build", (llama, gpt2, bert))
def test_a_model_gives_what_eager_gives(build, dtype):
    torch.manual_seed(0)
    model = build().to(dtype).eval()
    ids = torch.randint(0, 64, (2, 12))
    capture = Capture()
    with torch.no_grad():
        expected = model(ids, use_cache=False)[0]
        result = torch.compile(model, backend=capture)(ids, use_cache=False)[0]
    torch.testing.assert_close(result, expected, **TOLERANCE[dtype])
    names = {name.rsplit(".", 1)[0] for graph in capture.after for name in targets(graph)}
    assert not names & {"aten.native_layer_norm", "aten._softmax", "aten.detach", "aten.native_dropout"}


@pytest.mark.parametrize(
    ("build", "dtype"),
    ((llama, torch.bfloat16), (gpt2, torch.float32), (gpt2, torch.bfloat16), (bert, torch.float32)),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_training_step_gives_what_eager_gives(build, dtype):
    torch.manual_seed(0)
    model = build().to(dtype).train()
    ids = torch.randint(0, 64, (2, 12))

    def step(call):
        model.zero_grad()
        torch.manual_seed(1)  # dropout must draw the same numbers
        out = call(ids, use_cache=False)[0]
        out.float().pow(2).mean().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return out.detach(), grads

    expected, expected_grads = step(model)
    result, grads = step(torch.compile(model, backend=Capture()))
    torch.testing.assert_close(result, expected, **TOLERANCE[dtype])
    # Parameters that do not take part have a zero gradient in place of none.
    assert not any(grads.pop(name).any() for name in set(grads) - set(expected_grads))
    torch.testing.assert_close(grads, expected_grads, **TOLERANCE[dtype])


def test_a_decoding_step_does_not_copy_its_cache():
    from transformers import StaticCache

    model = llama().eval()
    ids = torch.randint(0, 64, (1, 6))
    capture = Capture()
    compiled = torch.compile(model, backend=capture)
    outs, caches = [], []
    for call in (model, compiled):
        cache = StaticCache(config=model.config, max_cache_len=16)
        with torch.no_grad():
            model(ids, past_key_values=cache, use_cache=True)
            for token in (3, 5):
                out = call(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits
        outs.append(out)
        caches.append([layer.keys.clone() for layer in cache.layers])
    torch.testing.assert_close(outs[1], outs[0], **TOLERANCE[torch.float32])
    torch.testing.assert_close(caches[1], caches[0], **TOLERANCE[torch.float32])
    names = targets(capture.after[0])
    assert names.count("aten.index_copy_.default") == 4
    assert "aten.index_copy.default" not in names


def test_symbolic_sizes_pass_through():
    norm = torch.nn.LayerNorm(8)

    def function(x, cache):
        y = torch.softmax(norm(x), 0) @ x.t()
        cache.copy_(cache + 0)
        return torch.nn.functional.cross_entropy(y, torch.arange(x.shape[0])), y.var(), y.flatten().view(-1)

    capture = Capture()
    compiled = torch.compile(function, backend=capture, dynamic=True)
    with torch.no_grad():
        for size in (5, 7):
            x, cache = torch.randn(size, 8), torch.randn(size)
            torch.testing.assert_close(compiled(x, cache), function(x, cache))
    assert len(capture.after) == 1
    assert "aten.native_layer_norm.default" not in targets(capture.after[0])
    assert "aten._softmax.default" not in targets(capture.after[0])


def test_symbolic_training_passes_through():
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.LayerNorm(8))
    compiled = torch.compile(layer, backend=Capture(), dynamic=True)
    for size in (5, 7):
        x = torch.randn(size, 8)
        layer.zero_grad()
        layer(x).pow(2).mean().backward()
        expected = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        compiled(x).pow(2).mean().backward()
        torch.testing.assert_close([p.grad for p in layer.parameters()], expected)


@pytest.mark.parametrize("step", PIPELINE, ids=lambda step: step.name)
def test_a_pass_alone_keeps_results(step):
    def function(x, cache, pos):
        y = torch.softmax(x.float() * 1, -1).to(x.dtype)
        new = aten.index_copy(cache, 0, pos, y[:1])
        out = torch.nn.functional.layer_norm(new, (6,)) + y.view(24).view(4, 6).sum(0) + y.sum(0)
        aten.copy_.default(cache, new)
        return out, y.clone()

    for dtype in (torch.float32, torch.bfloat16):
        inputs = (torch.randn(4, 6, dtype=dtype), torch.randn(4, 6, dtype=dtype), torch.tensor([2]))
        before = trace(function, *inputs)
        assert_same_results(before, run_passes(before, (step,)), inputs, exact=step.name != "decompose")


def test_the_argument_is_not_edited():
    gm = trace(lambda x: torch.softmax(x, -1) * 1, torch.randn(4, 6))
    text, metas = str(gm.graph), [dict(node.meta) for node in gm.graph.nodes]
    run_passes(gm)
    assert str(gm.graph) == text
    assert [dict(node.meta) for node in gm.graph.nodes] == metas


def test_observe_sees_every_pass_and_each_says_what_it_does():
    gm = trace(lambda x: torch.softmax(x, -1), torch.randn(4, 6))
    seen = []
    run_passes(gm, observe=lambda name, graph: seen.append((name, isinstance(graph, GraphModule))))
    assert seen == [(step.name, True) for step in PIPELINE]
    assert all("Requires:" in step.doc and "Ensures:" in step.doc for step in PIPELINE)


def test_every_stage_runs():
    gm = trace(lambda x: torch.softmax(x.float() * 1, -1) * 2, x := torch.randn(4, 6))
    results = []
    run_passes(gm, observe=lambda _, graph: results.append(graph(x)))
    for result in results:
        torch.testing.assert_close(result, gm(x))


def test_a_second_run_changes_nothing():
    gm = trace(lambda x: torch.softmax(x.float() * 1, -1).view(24).view(2, 12), torch.randn(4, 6))
    once = run_passes(gm)
    assert str(run_passes(once).graph) == str(once.graph)


def test_a_pass_that_breaks_the_graph_is_named():
    def lose_meta(gm):
        list(gm.graph.nodes)[1].meta.pop("val")
        return gm

    gm = trace(lambda x: x + 1, torch.randn(3))
    with pytest.raises(GraphError, match=r"after pass 'lose'.*meta\[\"val\"\]"):
        run_passes(gm, (Pass("lose", lose_meta, ""),))


def test_a_stale_view_is_refused():
    def function(x):
        view = x.view(6, 4)
        aten.copy_.default(x, x + 1)
        return view * 2

    with pytest.raises(GraphError, match="a view taken before"):
        verify(trace(function, torch.randn(4, 6)))


def test_hazards_order_readers_and_writers():
    def function(x, row):
        old = x + 1
        aten.copy_.default(x, row)
        return old * 2, x * 3

    gm = trace(function, torch.randn(4), torch.randn(4))
    pairs = [(a.name, b.name) for a, b in hazard_edges(gm)]
    assert pairs[:2] == [("add", "copy_"), ("copy_", "mul_1")]
    assert not list(hazard_edges(trace(lambda x: x + 1, torch.randn(4))))


def test_library_calls_are_not_in_the_table():
    names = {op._schema.name.replace("::", ".") for op in aot_decompositions()}
    assert not names & LIBRARY
    assert "aten.gelu" not in names


def test_passes_are_quick():
    def function(x, w):
        for _ in range(150):
            y = torch.nn.functional.layer_norm(x, (16,), w)
            x = x + torch.softmax(y.view(8, 2, 16).transpose(0, 1), -1).transpose(0, 1).reshape(16, 16)
        return x

    gm = trace(function, torch.randn(16, 16), torch.randn(16))
    start = time.process_time()
    nodes = len(run_passes(gm).graph.nodes)
    # About 80 ms per 1000 nodes on one core; the bound leaves room for a loaded machine.
    assert (time.process_time() - start) / nodes < 1e-3


def test_output_does_not_depend_on_the_hash_seed_and_the_framework_compiler_is_not_imported():
    code = (
        "import sys, rooffuse.passes; assert not any(n.startswith('torch._inductor') for n in sys.modules);"
        "import torch; from torch.fx.experimental.proxy_tensor import make_fx; from rooffuse.passes import run_passes;"
        "from torch._subclasses.fake_tensor import FakeTensorMode; m = FakeTensorMode();"
        "f = lambda x: (torch.softmax(x, -1), torch.nn.functional.layer_norm(x * 1, (6,)) + x.exp() * x.exp());"
        "print(run_passes(make_fx(f)(m.from_tensor(torch.randn(4, 6)))).graph)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, stdout=subprocess.PIPE
        )
        for seed in ("1", "2")
    ]
    texts = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert texts[0] == texts[1] != b""
