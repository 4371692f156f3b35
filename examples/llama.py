"""A Llama-shaped model from transformers with random weights, on the meta device: it takes no memory.

    rooffuse report examples/llama.py:prefill --device h100
    rooffuse report examples/llama.py:decode_step --device h100 --level kernel --sort time
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import StaticCache

Target = tuple[Callable[..., Any], tuple[Any, ...]]


def config(layers: int = 4, hidden: int = 1024, vocabulary: int = 32000) -> LlamaConfig:
    """Grouped-query attention with heads of 64, a gated MLP of about 8/3 of ``hidden``."""
    return LlamaConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
                       num_key_value_heads=max(1, hidden // 256), intermediate_size=hidden * 11 // 4,
                       vocab_size=vocabulary, max_position_embeddings=2048)


def build(layers: int = 4, hidden: int = 1024, dtype: torch.dtype = torch.bfloat16,
          device: str = "meta") -> LlamaForCausalLM:
    """The model for inference. On the meta device its weights have no values."""
    with torch.device(device):
        model = LlamaForCausalLM(config(layers, hidden)).to(dtype)
    return model.eval().requires_grad_(False)


def prefill(batch: int = 1, tokens: int = 512) -> Target:
    """All tokens of a prompt at once, without a cache."""
    model = build()

    def run(ids: Tensor) -> Tensor:
        return model(ids, use_cache=False).logits

    return run, (torch.empty(batch, tokens, dtype=torch.int64, device="meta"),)


def decode_step(batch: int = 1, context: int = 1024) -> Target:
    """One token more, with a cache of keys and values of fixed length that is updated in place."""
    model = build()
    cache = StaticCache(model.config, max_cache_len=context)
    heads, width = model.config.num_key_value_heads, model.config.head_dim
    cache.early_initialization(batch, heads, width, torch.bfloat16, torch.device("meta"))

    def run(ids: Tensor, positions: Tensor) -> Tensor:
        return model(ids, past_key_values=cache, position_ids=positions).logits

    return run, (torch.empty(batch, 1, dtype=torch.int64, device="meta"),
                 torch.empty(batch, 1, dtype=torch.int64, device="meta"))
