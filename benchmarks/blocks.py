"""The suite ``blocks``: transformer blocks and other model parts, built from transformers' own layers."""
from __future__ import annotations

import torch

from .cases import case


def _llama(hidden: int, layers: int, device: str, dtype: torch.dtype, batch: int = 4, length: int = 128):
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    heads = max(hidden // 64, 4)
    config = LlamaConfig(vocab_size=128, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 64 * 64,
                         num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads)
    model = LlamaModel(config).eval().to(device=device, dtype=dtype)
    x = torch.randn(batch, length, hidden, device=device, dtype=dtype)

    def fn(x):
        return model(inputs_embeds=x, use_cache=False).last_hidden_state

    return fn, (x,)


@case("blocks", "llama_256")
def llama_256(device: str, dtype: torch.dtype):
    return _llama(256, 4, device, dtype)


@case("blocks", "llama_1024")
def llama_1024(device: str, dtype: torch.dtype):
    return _llama(1024, 4, device, dtype)
