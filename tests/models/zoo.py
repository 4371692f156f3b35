"""Small transformers models with random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as t
from torch import Tensor

VOCABULARY = 97
DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@dataclass(frozen=True)
class Model:
    """``make()`` gives the model; its inputs are whole numbers (``tokens``) or images."""

    make: Callable[[], torch.nn.Module]
    tokens: bool = True
    decoder_tokens: bool = False
    cache: bool = True

    def build(self, dtype: torch.dtype, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = self.make().to(dtype)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model

    def inputs(self, dtype: torch.dtype, seed: int = 1) -> dict[str, Any]:
        torch.manual_seed(seed)
        if not self.tokens:
            return {"pixel_values": torch.randn(2, 3, 32, 32).to(dtype)}
        found: dict[str, Any] = {"input_ids": torch.randint(0, VOCABULARY, (2, 33))}
        if self.decoder_tokens:
            found["decoder_input_ids"] = torch.randint(0, VOCABULARY, (2, 9))
        if self.cache:
            found["use_cache"] = False
        return found


MODELS: dict[str, Model] = {
    "llama": Model(lambda: t.LlamaForCausalLM(t.LlamaConfig(**DECODER, num_key_value_heads=2))),
    "mistral": Model(
        lambda: t.MistralForCausalLM(t.MistralConfig(**DECODER, num_key_value_heads=2, sliding_window=16))
    ),
    "mixtral": Model(
        lambda: t.MixtralForCausalLM(t.MixtralConfig(**DECODER, num_key_value_heads=2, num_local_experts=4))
    ),
    "gpt2": Model(
        lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64))
    ),
    "bert": Model(lambda: t.BertForMaskedLM(t.BertConfig(**DECODER, max_position_embeddings=64)), cache=False),
    "t5": Model(
        lambda: t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0
            )
        ),
        decoder_tokens=True,
    ),
    "vit": Model(
        lambda: t.ViTForImageClassification(
            t.ViTConfig(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=128,
                image_size=32,
                patch_size=8,
            )
        ),
        tokens=False,
    ),
    "resnet": Model(
        lambda: t.ResNetForImageClassification(
            t.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic")
        ),
        tokens=False,
    ),
    "convnext": Model(
        lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, patch_size=2)
        ),
        tokens=False,
    ),
}


def logits(model: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    return model(**inputs).logits
