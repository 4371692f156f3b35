"""The suite ``decode``: one more token of a Llama-shaped model, with keys and values of the context in a cache of fixed
length. Time is the reading of weights, or the launches where weights are few."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import StaticCache, StaticLayer

from .blocks import part
from .cases import case
from .measure import tensors_in


class _SteadyLayer(StaticLayer):
    """A layer of the cache whose length doesn't grow, so that every call does the same step."""

    keys: Any
    values: Any

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        position = torch.arange(key_states.shape[-2], device=key_states.device) + self.cumulative_length
        self.keys.index_copy_(2, position, key_states)
        self.values.index_copy_(2, position, value_states)
        return self.keys, self.values


def _cache(config: LlamaConfig, batch: int, context: int, filled: int, device: str, dtype: torch.dtype) -> StaticCache:
    cache: Any = StaticCache(config, max_cache_len=context)
    cache.layers = [_SteadyLayer(context) for _ in cache.layers]
    cache.early_initialization(batch, config.num_key_value_heads, config.head_dim, dtype, torch.device(device))
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
        layer.cumulative_length.fill_(filled)
    return cache


def _step(config: LlamaConfig, device: str, dtype: torch.dtype, context: int = 256, batch: int = 1):
    filled = context * 3 // 4
    torch.manual_seed(0)
    cache = _cache(config, batch, context, filled, device, dtype)

    def call(model: nn.Module, ids: Tensor, positions: Tensor) -> Tensor:
        return model(ids, past_key_values=cache, position_ids=positions, use_cache=True).logits

    step = part(lambda: LlamaForCausalLM(config), call, device, dtype)
    step.cache = cache  # for the floor
    return step, (torch.randint(0, config.vocab_size, (batch, 1), device=device),
                  torch.full((batch, 1), filled, device=device))


def weights_and_cache(step: Any, args: tuple[Any, ...]) -> int:
    """Bytes of all weights but the embedding table, of which one row a token is read, and of the whole cache: attention
    over a cache of fixed length reads all of it, masked or not."""
    model = step.model
    table = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is table
    weights = sum(p.nbytes for p in model.parameters()) - (0 if tied else table.nbytes)
    rows = args[0].numel() * table.shape[1] * table.element_size()
    logits = args[0].numel() * model.config.vocab_size * table.element_size()
    cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in step.cache.layers)
    return weights + rows + logits + cached + sum(t.nbytes for t in tensors_in(args))


def _shape(hidden: int, layers: int, heads: int, groups: int, inner: int, vocabulary: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                       num_key_value_heads=groups, intermediate_size=inner, vocab_size=vocabulary,
                       max_position_embeddings=8192, **more)


@case("decode", "llama_256_4_layers", floor=weights_and_cache, host_bound=True)
def small(device: str, dtype: torch.dtype):
    return _step(_shape(256, 4, 4, 2, 704, 4096), device, dtype)


@case("decode", "llama_1024_4_layers", floor=weights_and_cache, host_bound=True)
def middle(device: str, dtype: torch.dtype):
    return _step(_shape(1024, 4, 16, 4, 2816, 32000), device, dtype)


@case("decode", "llama_3.2_1b", floor=weights_and_cache, host_bound=True, devices=("cuda",), dtypes=("bf16",))
def llama_1b(device: str, dtype: torch.dtype):
    return _step(_shape(2048, 16, 32, 8, 8192, 128256, tie_word_embeddings=True), device, dtype, 1024)


@case("decode", "llama_3.1_8b", floor=weights_and_cache, host_bound=True, devices=("cuda",), dtypes=("bf16",))
def llama_8b(device: str, dtype: torch.dtype):
    return _step(_shape(4096, 32, 32, 8, 14336, 128256), device, dtype, 1024)
