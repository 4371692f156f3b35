"""The suite ``training``: loss and all gradients of one step; no dropout, so that contenders can be compared."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import inputs, part, tokens
from .cases import case

#: Gradients are sums over all of a batch and its positions, in an order of each contender's own.
_TRAINING = {"training": True, "tolerance": 5e-2, "dtypes": ("fp32",)}


def _language_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def _image_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(pixel_values=images, labels=labels).loss


@case("training", "gpt2_small", **_TRAINING)
def gpt2_small(device: str, dtype: torch.dtype):
    """GPT-2 small; two layers of it and a tenth of the vocabulary on a CPU."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, vocabulary, batch, length = (12, 50257, 8, 512) if device == "cuda" else (2, 5025, 2, 64)
    config = GPT2Config(vocab_size=vocabulary, n_layer=layers, n_embd=768, n_head=12, resid_pdrop=0.0, embd_pdrop=0.0,
                        attn_pdrop=0.0)
    step = part(lambda: GPT2LMHeadModel(config), _language_loss, device, dtype, training=True)
    return step, (tokens(device, vocabulary, batch, length),)


@case("training", "vit_s", **_TRAINING)
def vit_s(device: str, dtype: torch.dtype):
    """ViT-S/16; two layers on a CPU."""
    from transformers import ViTConfig, ViTForImageClassification

    layers, batch = (12, 64) if device == "cuda" else (2, 2)
    config = ViTConfig(num_hidden_layers=layers, hidden_size=384, num_attention_heads=6, intermediate_size=1536,
                       num_labels=1000)
    step = part(lambda: ViTForImageClassification(config), _image_loss, device, dtype, training=True)
    return step, (*inputs(device, dtype, batch, 3, 224, 224), tokens(device, 1000, batch))


@case("training", "resnet_50", **_TRAINING, quick=False)
def resnet_50(device: str, dtype: torch.dtype):
    """ResNet-50; images of 96×96 on a CPU."""
    from transformers import ResNetConfig, ResNetForImageClassification

    batch, size = (64, 224) if device == "cuda" else (4, 96)
    step = part(lambda: ResNetForImageClassification(ResNetConfig(num_labels=1000)), _image_loss, device, dtype,
                training=True)
    return step, (*inputs(device, dtype, batch, 3, size, size), tokens(device, 1000, batch))
