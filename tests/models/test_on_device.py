"""Programs on a GPU against eager execution there: transformers models, captured graphs, streams, memory of the host.

They need one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from .against_eager import STRICT, check_forward, check_training_step
from .zoo import MODELS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="rooffuse", options={**STRICT, **options})


def test_numbers_of_the_host_and_results_for_it() -> None:
    def function(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shifted = x * scale + torch.tensor(0.5) - torch.tensor([1.0, 2.0, 3.0, 4.0], device=x.device)
        return shifted, shifted.sum(-1).to("cpu"), torch.where(torch.arange(4).to(x.device) < 2, x, scale)

    x = torch.randn(65, 4, device=DEVICE)
    run = torch.compile(function, backend="rooffuse")
    for number in (2.0, -3.0, 0.25):
        scale = torch.tensor(number)
        for ours, eager in zip(run(x, scale), function(x, scale), strict=True):
            assert ours.device == eager.device
            torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("start", [0, 1, 2, 8])
def test_inputs_anywhere_in_memory(start: int) -> None:
    flat = torch.randn(129 * 512 + 8, device=DEVICE, dtype=torch.bfloat16)
    x = flat[start:start + 129 * 512].view(129, 512)
    run = compiled(lambda x: F.softmax(x.float(), -1).to(x.dtype))
    torch.testing.assert_close(run(x), F.softmax(x.float(), -1).to(x.dtype))


def test_replays_of_one_recording_from_several_streams() -> None:
    def function(x: Tensor) -> Tensor:
        for _ in range(6):
            x = F.layer_norm(x + x.roll(1, 0), (512,))
        return x

    inputs = [torch.randn(4096, 512, device=DEVICE) for _ in range(4)]
    expected = [function(x) for x in inputs]
    run = compiled(function, cuda_graphs=True)
    for _ in range(3):
        run(inputs[0])
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(5):
        results = []
        for stream, x in zip(streams, inputs):
            with torch.cuda.stream(stream):
                results.append(run(x))
        torch.cuda.synchronize()
        for ours, eager in zip(results, expected):
            torch.testing.assert_close(ours, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("capture", [False, True])
def test_dropout_draws_anew_in_every_run(capture: bool) -> None:
    run = compiled(lambda x: F.dropout(x, 0.25), cuda_graphs=capture)
    x = torch.ones(512, 512, device=DEVICE)
    kept = [run(x) != 0 for _ in range(4)]
    for mask in kept:
        assert abs(mask.float().mean().item() - 0.75) < 0.01
    for a, b in zip(kept, kept[1:]):
        assert 0.5 < (a == b).float().mean().item() < 0.75  # independent draws agree for 0.75² + 0.25² of them


def test_an_optimiser_with_capture_and_a_changing_rate() -> None:
    def trained(backend: str | None) -> list[Tensor]:
        torch.manual_seed(1)
        parameters = [torch.randn(n, 33, device=DEVICE, requires_grad=True) for n in (1, 64, 500)]
        optimiser = torch.optim.AdamW(parameters, lr=torch.tensor(1e-2, device=DEVICE), capturable=True)
        step = optimiser.step if backend is None else torch.compile(optimiser.step, backend=backend)
        for k in range(5):
            for p in parameters:
                p.grad = torch.full_like(p, 0.1 * (k + 1))
            optimiser.param_groups[0]["lr"].mul_(0.9)
            step()
        return [p.detach() for p in parameters]

    for ours, eager in zip(trained("rooffuse"), trained(None), strict=True):
        torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_forward(name: str, dtype: torch.dtype) -> None:
    check_forward(name, dtype, DEVICE, runs=4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
def test_forward_without_capture(name: str) -> None:
    check_forward(name, torch.bfloat16, DEVICE, cuda_graphs=False)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "resnet"])
def test_training_step(name: str) -> None:
    check_training_step(name, DEVICE)
