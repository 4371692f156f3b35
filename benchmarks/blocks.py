"""The suite ``blocks``: parts of models, built from transformers' own layers with random weights.

Mixture of experts, Mamba and the rest come from small configurations; a UNet's residual block, which transformers
doesn't have, is written here. Shapes on a GPU are those of real models, on a CPU a fraction.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import case


class Part(nn.Module):
    """``call(model, *args)`` with the model's parameters, for inference or training."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *args: Any) -> Any:
        return self.call(self.model, *args)


def part(build: Callable[[], nn.Module], call: Callable[..., Any], device: str, dtype: torch.dtype,
         training: bool = False) -> Part:
    """A model with repeatable random weights, made on ``device`` in ``dtype``."""
    torch.manual_seed(0)
    with torch.device(device):
        model = build()
    model = model.to(device=device, dtype=dtype)
    return Part(model.train(training).requires_grad_(training), call)


def inputs(device: str, dtype: torch.dtype, *shape: int) -> tuple[Tensor]:
    """One tensor of normal values."""
    return (torch.randn(*shape, device=device, dtype=dtype),)


def tokens(device: str, vocabulary: int, *shape: int) -> Tensor:
    return torch.randint(0, vocabulary, shape, device=device)


def hidden_states(model: nn.Module, x: Tensor) -> Tensor:
    """Last hidden states of a text model from embeddings."""
    return model(inputs_embeds=x).last_hidden_state


def without_cache(model: nn.Module, x: Tensor) -> Tensor:
    return model(inputs_embeds=x, use_cache=False).last_hidden_state


def _llama(hidden: int, layers: int, device: str, dtype: torch.dtype, batch: int = 4, length: int = 128):
    from transformers import LlamaConfig, LlamaModel

    heads = max(hidden // 64, 4)
    config = LlamaConfig(vocab_size=128, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 64 * 64,
                         num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads)
    return (part(lambda: LlamaModel(config), without_cache, device, dtype),
            inputs(device, dtype, batch, length, hidden))


@case("blocks", "llama_256", devices=("cpu",))
def llama_256(device: str, dtype: torch.dtype):
    return _llama(256, 4, device, dtype)


@case("blocks", "llama_1024", quick=False)
def llama_1024(device: str, dtype: torch.dtype):
    return _llama(1024, 4, device, dtype)


@case("blocks", "llama_4096", devices=("cuda",), dtypes=("bf16",))
def llama_4096(device: str, dtype: torch.dtype):
    return _llama(4096, 2, device, dtype, batch=2, length=2048)


@case("blocks", "gpt2")
def gpt2(device: str, dtype: torch.dtype):
    from transformers import GPT2Config, GPT2Model

    batch, length = (8, 1024) if device == "cuda" else (2, 128)
    config = GPT2Config(vocab_size=128, n_layer=2, n_embd=768, n_head=12, n_positions=1024)
    return part(lambda: GPT2Model(config), without_cache, device, dtype), inputs(device, dtype, batch, length, 768)


@case("blocks", "bert")
def bert(device: str, dtype: torch.dtype):
    from transformers import BertConfig, BertModel

    batch, length = (32, 512) if device == "cuda" else (2, 128)
    config = BertConfig(vocab_size=128, num_hidden_layers=2)
    return part(lambda: BertModel(config), hidden_states, device, dtype), inputs(device, dtype, batch, length, 768)


@case("blocks", "vit")
def vit(device: str, dtype: torch.dtype):
    from transformers import ViTConfig, ViTModel

    batch = 64 if device == "cuda" else 2
    config = ViTConfig(num_hidden_layers=2, hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    return (part(lambda: ViTModel(config), lambda model, x: model(pixel_values=x).last_hidden_state, device, dtype),
            inputs(device, dtype, batch, 3, 224, 224))


@case("blocks", "resnet_stage")
def resnet_stage(device: str, dtype: torch.dtype):
    from transformers import ResNetConfig
    from transformers.models.resnet.modeling_resnet import ResNetStage

    batch = 64 if device == "cuda" else 2
    return (part(lambda: ResNetStage(ResNetConfig(), 256, 512, stride=2, depth=3), lambda model, x: model(x), device,
                 dtype), inputs(device, dtype, batch, 256, 56, 56))


@case("blocks", "convnext_stage")
def convnext_stage(device: str, dtype: torch.dtype):
    from transformers import ConvNextConfig
    from transformers.models.convnext.modeling_convnext import ConvNextStage

    batch = 64 if device == "cuda" else 2
    return (part(lambda: ConvNextStage(ConvNextConfig(), 96, 192, stride=2, depth=3, drop_path_rates=[0.0] * 3),
                 lambda model, x: model(x), device, dtype), inputs(device, dtype, batch, 96, 56, 56))


class UNetBlock(nn.Module):
    """The residual block of a diffusion model's UNet: two 3×3 convolutions after group norm and SiLU, a time embedding
    added between them, and the input on top (Ho et al., NeurIPS 2020)."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(32, channels), nn.GroupNorm(32, channels)
        self.into = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(embedding, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.into(F.silu(self.first(x))) + self.time(F.silu(time))[:, :, None, None]
        return x + self.out(F.silu(self.second(h)))


@case("blocks", "unet_block")
def unet_block(device: str, dtype: torch.dtype):
    batch, channels, size = (16, 320, 64) if device == "cuda" else (1, 128, 32)
    return (part(lambda: UNetBlock(channels, 4 * channels), lambda model, *args: model(*args), device, dtype),
            inputs(device, dtype, batch, channels, size, size) + inputs(device, dtype, batch, 4 * channels))


@case("blocks", "mixture_of_experts", tolerance=6e-2)
def mixture_of_experts(device: str, dtype: torch.dtype):
    from transformers import MixtralConfig, MixtralModel

    hidden, batch, length = (1024, 4, 512) if device == "cuda" else (256, 2, 64)
    config = MixtralConfig(vocab_size=128, hidden_size=hidden, intermediate_size=hidden * 7 // 2, num_hidden_layers=1,
                           num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, num_local_experts=8)
    return (part(lambda: MixtralModel(config), without_cache, device, dtype),
            inputs(device, dtype, batch, length, hidden))


@case("blocks", "mamba")
def mamba(device: str, dtype: torch.dtype):
    from transformers import MambaConfig, MambaModel

    hidden, length = (768, 128) if device == "cuda" else (256, 16)
    config = MambaConfig(vocab_size=128, hidden_size=hidden, num_hidden_layers=1, state_size=16)
    return part(lambda: MambaModel(config), without_cache, device, dtype), inputs(device, dtype, 2, length, hidden)
