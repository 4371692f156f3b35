"""Networks with convolutions through ``torch.compile``: values and strides of results and gradients are eager's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .eager import STRICT, real_strides, same_as_eager

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


pytestmark = pytest.mark.usefixtures("two_threads")


def convolution(into: int, out: int, kernel: int = 3, **settings: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(into, out, kernel, padding=kernel // 2, **settings), nn.BatchNorm2d(out), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class UNet(nn.Module):
    """Pooling, both kinds of upsampling, concatenation, group norm, attention between positions, a transposed
    convolution; sizes that are no multiple of anything."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = convolution(3, 32), convolution(32, 64, stride=2)
        self.norm, self.mix = nn.GroupNorm(8, 64), nn.MultiheadAttention(64, 2, batch_first=True)
        self.up, self.last = nn.ConvTranspose2d(64, 32, 2, 2), nn.Conv2d(96, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.first(x)
        low = self.down(high)
        tokens = self.norm(low).flatten(2).transpose(1, 2)
        low = low + self.mix(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(low.shape)
        near = F.interpolate(F.max_pool2d(high, 3, 2, 1), high.shape[2:])
        smooth = F.interpolate(self.up(low), high.shape[2:], mode="bilinear")
        return self.last(torch.cat([high, near, smooth], 1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: nn.Sequential(
        convolution(3, 32, 7, stride=2), nn.MaxPool2d(3, 2, 1), Residual(convolution(32, 32), convolution(32, 32)),
        convolution(32, 64, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    "inverted": lambda: nn.Sequential(
        convolution(3, 16), *(Residual(convolution(16, 64, 1), convolution(64, 64, groups=64), convolution(64, 16, 1))
                              for _ in range(2))),
    "groups and dilation": lambda: nn.Sequential(
        convolution(3, 32), convolution(32, 32, groups=4), convolution(32, 32, dilation=2), convolution(32, 8, 5)),
    "unet": UNet,
}  # fmt: skip


@pytest.mark.parametrize("layout", ["plain", "channels_last", "part"])
@pytest.mark.parametrize("name", NETWORKS)
def test_inference(name: str, layout: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()

    def make() -> list[Any]:
        x = torch.randn(2, 3, 69, 83)
        return [{"plain": x, "channels_last": x.to(memory_format=torch.channels_last), "part": x[..., 1:82:2]}[layout]]

    with torch.no_grad():
        same_as_eager(network, make)


@pytest.mark.parametrize("name", NETWORKS)
def test_inference_in_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    network, x = NETWORKS[name]().bfloat16().eval(), torch.randn(2, 3, 69, 83).bfloat16()
    with torch.no_grad():
        ours = torch.compile(network, backend="rooffuse", options=STRICT)(x)
        eager, exact = network(x), copy.deepcopy(network).double()(x.double())
    assert real_strides(ours) == real_strides(eager)
    assert (ours - exact).abs().max() <= 1.5 * (eager - exact).abs().max() + 1e-3


@TYPES
@pytest.mark.parametrize("name", NETWORKS)
def test_training_step(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().to(dtype).train()
    exact = copy.deepcopy(network).double()
    eager = copy.deepcopy(network)
    x = torch.randn(2, 3, 69, 83).to(dtype)
    results = []
    for model, call in ((exact, exact), (eager, eager),
                        (network, torch.compile(network, backend="rooffuse", options=STRICT))):  # fmt: skip
        image = x.to(next(model.parameters()).dtype, copy=True).requires_grad_()  # each its own gradient
        y = call(image)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)).sum().backward()
        results.append([y, image.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for true, theirs, ours in zip(*results, strict=True):
        assert real_strides(ours) == real_strides(theirs)
        error, allowed = (ours - true).abs().max(), (theirs - true).abs().max()
        assert error <= 3 * allowed + (1e-3 if dtype == torch.float32 else 2e-2) * true.abs().max() + 1e-4
