"""Every operator that small models run, forward, backward and optimiser, is known and priced in whole numbers."""

import pytest
import torch
from rooffuse.cost_model import KINDS, Cost, get_device, price
from rooffuse.cost_model.roofline import estimate
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class Pricing(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.prices = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.prices.append((func, price(func, args, kwargs or {}, result)))
        return result

    def total(self, kinds=KINDS):
        return sum((priced.cost for _, priced in self.prices if priced.kind in kinds), Cost.zero())


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, activation="gelu")
        self.norm = nn.RMSNorm(32)
        self.head = nn.Linear(32, 50)

    def forward(self, tokens):
        logits = self.head(self.norm(self.layer(self.embed(tokens))))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.GroupNorm(2, 8),
            nn.ReflectionPad2d(1),
            nn.Conv2d(8, 8, 3, groups=4),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 5),
            nn.LogSoftmax(-1),
        )

    def forward(self, images):
        return nn.functional.nll_loss(self.body(images), torch.tensor([1, 2]))


MODELS = {"language": (Language, torch.zeros(2, 8, dtype=torch.int64)), "vision": (Vision, torch.zeros(2, 3, 8, 8))}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
def test_a_training_step_is_priced(name, optimizer):
    model, data = MODELS[name][0](), MODELS[name][1]
    adam = torch.optim.AdamW(model.parameters(), **optimizer)
    with Pricing() as pricing:
        model(data).backward()
        adam.step()
    assert [str(func) for func, priced in pricing.prices if not priced.known] == []
    device = get_device("h100")
    for func, priced in pricing.prices:
        cost = priced.cost
        for figure in (cost.flops, cost.bytes_read, cost.bytes_written):
            assert type(figure) is int and figure >= 0, func
        if priced.kind in ("matmul", "attention", "convolution", "reduction", "pointwise"):
            assert cost.bytes_written > 0 and estimate(cost, device, priced.dtype, priced.unit).seconds > 0, func


def test_matmul_flops_of_a_model_agree_with_torch():
    model, tokens = Language().eval(), MODELS["language"][1]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, Pricing() as pricing:
        model(tokens)
    # torch's counter has no entry for the attention kernel of the CPU.
    assert pricing.total(("matmul", "convolution")).flops == counter.get_total_flops() > 0
