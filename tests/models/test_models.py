"""Transformers models with random weights against eager execution, forward and in a training step.

All memory that the programs work in is filled with NaN before every run: what is read before it was written shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import rooffuse.backend
import torch
from rooffuse.compile import Plan, kernel_steps, plan_graph, triton_source
from rooffuse.cost_model import get_device
from rooffuse.options import Options
from rooffuse.targets import Target, target_for
from torch.fx import GraphModule

from .against_eager import STRICT, assert_as_exact, check_forward, check_training_step, exact_twin
from .poison import poisoned_memory
from .zoo import MODELS, Model, logits


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    torch._dynamo.reset()
    with poisoned_memory():
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_forward(name: str, dtype: torch.dtype) -> None:
    check_forward(name, dtype)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "resnet"])
def test_training_step(name: str) -> None:
    check_training_step(name)


def device_plans(model: Model, dtype: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Plans for an H100 of every graph that the model makes; the graphs themselves run as they are."""
    plans: list[Plan] = []

    def record(gm: GraphModule, *_: Any, **__: Any) -> Any:
        plans.append(plan_graph(gm, target_for(get_device("h100")), Options(verify=True)))

        class Recorded:
            plan = SimpleNamespace(graph=gm)

            @staticmethod
            def function(args: list[Any]) -> Any:
                inputs = list(args)
                args.clear()
                return gm(*inputs)

        Recorded.function._boxed_call = True  # type: ignore[attr-defined]
        return Recorded

    monkeypatch.setattr(rooffuse.backend, "compile_graph", record)
    module = model.build(dtype).train(training)
    compiled = torch.compile(module, backend="rooffuse")
    with torch.set_grad_enabled(training):
        out = logits(compiled, model.inputs(dtype))
        if training:
            out.float().sum().backward()
    return plans


def _compile_all(plans: list[Plan], capabilities: tuple[int, ...], folder: Any) -> int:
    from rooffuse.codegen.build_triton import compile_for
    from rooffuse.codegen.cache import DiskCache

    sources = {}
    for plan in plans:
        for step in kernel_steps(plan.program):
            source = triton_source(step, plan.target)
            sources[source.text] = source
    for source in sources.values():
        for capability in capabilities:
            compile_for(source, DiskCache(folder), capability)
    return len(sources)


@pytest.mark.parametrize("name, training", [("llama", True), ("gpt2", False), ("resnet", False)])
def test_device_kernels_compile(name: str, training: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    plans = device_plans(MODELS[name], torch.bfloat16, training, monkeypatch)
    assert len(plans) == (2 if training else 1)
    assert _compile_all(plans, (90,), tmp_path) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_all_device_kernels_compile(
    name: str, dtype: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    assert _compile_all(device_plans(MODELS[name], dtype, training, monkeypatch), (80, 90, 100), tmp_path)


def test_llama_through_the_triton_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouping, memory plan, launches and kernels as for an H100, run on the CPU."""
    target = Target("triton", get_device("h100"), torch.device("cpu"), interpreted=True)
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: target)
    model, inputs = MODELS["llama"].build(torch.float32).eval(), MODELS["llama"].inputs(torch.float32)
    with torch.no_grad():
        exact, eager = logits(*exact_twin(model, inputs)), logits(model, inputs)
        ours = logits(torch.compile(model, backend="rooffuse", options=STRICT), inputs)
    assert_as_exact(ours, eager, exact, "llama", torch.float32)
