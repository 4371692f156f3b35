"""Transformers models with random weights against eager execution, forward and in a training step.

Both are measured against the same model in float64. Where a kernel sums in another order or keeps float32 between
operators it may be a little better or worse than eager, so that its error is allowed twice eager's own plus
a fraction of the result's largest value: SLACK, a few rounding steps of the type.

All memory that the programs work in is filled with NaN before every run: what is read before it was written shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import rooffuse.backend
import torch
from rooffuse.compile import Plan, kernel_steps, plan_graph, triton_source
from rooffuse.cost_model import get_device
from rooffuse.options import Options
from rooffuse.targets import Target, target_for
from torch import Tensor
from torch.fx import GraphModule

from .poison import poisoned_memory
from .zoo import MODELS, Model, logits

SLACK = {torch.float32: 4e-6, torch.bfloat16: 1.6e-2}
FACTOR = 2.0
STRICT = {"strict": True, "verify": True}


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    torch._dynamo.reset()
    with poisoned_memory():
        yield
    torch._dynamo.reset()


def assert_as_exact(
    ours: Tensor, eager: Tensor, exact: Tensor, what: str, dtype: torch.dtype, scale: float | None = None
) -> None:
    """The error of ``ours`` is within FACTOR times eager's plus SLACK times ``scale``, the largest exact value."""
    scale = exact.abs().max().item() if scale is None else scale
    mine, theirs = ((x.double() - exact).abs().max().item() for x in (ours, eager))
    assert mine <= FACTOR * theirs + SLACK[dtype] * scale, (
        f"{what}: error {mine:.3g}, eager's {theirs:.3g}, of {scale:.3g}"
    )


def exact_twin(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The same weights and inputs in float64."""
    twin = copy.deepcopy(model).double()
    if hasattr(twin, "set_experts_implementation"):
        twin.set_experts_implementation("eager")  # the grouped matrix product has no float64
    return twin, {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_forward(name: str, dtype: torch.dtype) -> None:
    model, inputs = MODELS[name].build(dtype).eval(), MODELS[name].inputs(dtype)
    compiled = torch.compile(model, backend="rooffuse", options=STRICT)
    with torch.no_grad():
        exact = logits(*exact_twin(model, inputs))
        eager = logits(model, inputs)
        for run in ("first", "second"):
            assert_as_exact(logits(compiled, inputs), eager, exact, f"{name}, {run} run", dtype)


def _training_step(model: torch.nn.Module, call: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    out = logits(call, inputs)
    loss = -torch.log_softmax(out if out.dtype == torch.float64 else out.float(), -1)[..., 1].mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "resnet"])
def test_training_step(name: str) -> None:
    """Loss and the gradient of every parameter. A gradient's error is measured against the largest gradient in the
    model: some, such as that of a key's bias, are zero but for rounding."""
    model, inputs = MODELS[name].build(torch.float32).train(), MODELS[name].inputs(torch.float32)
    eager = copy.deepcopy(model)
    twin, exact_inputs = exact_twin(model, inputs)
    exact_loss = _training_step(twin, twin, exact_inputs)
    eager_loss = _training_step(eager, eager, inputs)
    our_loss = _training_step(model, torch.compile(model, backend="rooffuse", options=STRICT), inputs)
    assert_as_exact(our_loss, eager_loss, exact_loss, "loss", torch.float32)
    largest = max(p.grad.abs().max().item() for p in twin.parameters() if p.grad is not None)
    for (parameter, mine), theirs, best in zip(
        model.named_parameters(), eager.parameters(), twin.parameters(), strict=True
    ):
        assert (mine.grad is None) == (theirs.grad is None), parameter
        if mine.grad is not None and theirs.grad is not None and best.grad is not None:
            assert_as_exact(mine.grad, theirs.grad, best.grad, parameter, torch.float32, scale=largest)
    for (buffer, mine), theirs in zip(model.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda m, b=buffer: f"{b}: {m}")


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
