"""The suite ``models``: nine families of transformers from small configurations, random weights, inference."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .blocks import inputs, part, tokens
from .cases import case

VOCABULARY = 1024


def _sizes(device: str) -> tuple[int, int, int]:
    """Hidden size, layers, tokens."""
    return (1024, 4, 512) if device == "cuda" else (256, 2, 64)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def _text(model: Any, config: Any, device: str, dtype: torch.dtype, call: Any = _logits):
    return part(lambda: model(config), call, device, dtype), (tokens(device, VOCABULARY, 2, _sizes(device)[2]),)


def _decoder(config: Any, device: str, **more: Any) -> Any:
    hidden, layers, _ = _sizes(device)
    return config(vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 11 // 4,
                  num_hidden_layers=layers, num_attention_heads=hidden // 64,
                  num_key_value_heads=hidden // 128, **more)


@case("models", "llama")
def llama(device: str, dtype: torch.dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    return _text(LlamaForCausalLM, _decoder(LlamaConfig, device), device, dtype)


@case("models", "mistral")
def mistral(device: str, dtype: torch.dtype):
    from transformers import MistralConfig, MistralForCausalLM

    return _text(MistralForCausalLM, _decoder(MistralConfig, device, sliding_window=32), device, dtype)


@case("models", "gpt2")
def gpt2(device: str, dtype: torch.dtype):
    from transformers import GPT2Config, GPT2LMHeadModel

    hidden, layers, _ = _sizes(device)
    config = GPT2Config(vocab_size=VOCABULARY, n_layer=layers, n_embd=hidden, n_head=hidden // 64)
    return _text(GPT2LMHeadModel, config, device, dtype)


@case("models", "bert")
def bert(device: str, dtype: torch.dtype):
    from transformers import BertConfig, BertForMaskedLM

    hidden, layers, _ = _sizes(device)
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers,
                        num_attention_heads=hidden // 64, intermediate_size=4 * hidden)
    return _text(BertForMaskedLM, config, device, dtype, lambda model, ids: model(input_ids=ids).logits)


@case("models", "t5")
def t5(device: str, dtype: torch.dtype):
    from transformers import T5Config, T5ForConditionalGeneration

    hidden, layers, _ = _sizes(device)
    config = T5Config(vocab_size=VOCABULARY, d_model=hidden, d_kv=64, d_ff=4 * hidden, num_layers=layers,
                      num_heads=hidden // 64)
    return _text(T5ForConditionalGeneration, config, device, dtype,
                 lambda model, ids: model(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits)


@case("models", "vit")
def vit(device: str, dtype: torch.dtype):
    from transformers import ViTConfig, ViTForImageClassification

    hidden, layers, _ = _sizes(device)
    config = ViTConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
                       intermediate_size=4 * hidden, image_size=96, num_labels=100)
    return _image(ViTForImageClassification, config, device, dtype)


@case("models", "resnet")
def resnet(device: str, dtype: torch.dtype):
    from transformers import ResNetConfig, ResNetForImageClassification

    return _image(ResNetForImageClassification, ResNetConfig(depths=[1, 1, 1, 1], num_labels=100), device, dtype)


@case("models", "convnext")
def convnext(device: str, dtype: torch.dtype):
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return _image(ConvNextForImageClassification, ConvNextConfig(depths=[1, 1, 1, 1], num_labels=100), device, dtype)


def _image(model: Any, config: Any, device: str, dtype: torch.dtype):
    return (part(lambda: model(config), lambda net, images: net(pixel_values=images).logits, device, dtype),
            inputs(device, dtype, 32 if device == "cuda" else 2, 3, 96, 96))


@case("models", "mixtral", tolerance=6e-2)
def mixtral(device: str, dtype: torch.dtype):
    from transformers import MixtralConfig, MixtralForCausalLM

    return _text(MixtralForCausalLM, _decoder(MixtralConfig, device, num_local_experts=4), device, dtype)
