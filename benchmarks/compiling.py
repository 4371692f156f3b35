"""The suite ``compile``: compile times in fresh processes, and how planning time grows with a model's layers."""
from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from rooffuse.compile import plan_graph
from rooffuse.options import Options
from rooffuse.passes import aot_decompositions
from rooffuse.targets import local_target

from .blocks import inputs, part, without_cache
from .cases import DTYPES, Case, case
from .rows import Row, context

if TYPE_CHECKING:
    from .run import Settings

#: Layers up to which models are compiled cold, in a quick round and otherwise: Inductor takes minutes for more.
MOST_LAYERS_COLD = {True: 2, False: 8}


def _decoder(layers: int, device: str, dtype: torch.dtype):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(vocab_size=128, hidden_size=256, intermediate_size=704, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2)
    return part(lambda: LlamaModel(config), without_cache, device, dtype), inputs(device, dtype, 1, 64, 256)


def _register(layers: int) -> None:
    def make(device: str, dtype: torch.dtype):
        return _decoder(layers, device, dtype)

    case("compile", f"decoder_{layers:02d}_layers", dtypes=("bf16",))(make)


for _layers in (2, 8, 32):
    _register(_layers)


@case("compile", "gpt2_training_step", dtypes=("fp32",), training=True, quick=False)
def gpt2_training_step(device: str, dtype: torch.dtype):
    from .training import gpt2_small

    return gpt2_small(device, dtype)


def planning_seconds(fn: Any, args: tuple[Any, ...]) -> float:
    """Seconds from the ATen graphs of one call to their plans, tracing and kernels' compilation left out."""
    from torch._dynamo.backends.common import aot_autograd

    took: list[float] = []

    def compiler(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        start = time.perf_counter()
        plan_graph(gm, local_target(example_inputs), Options())
        took.append(time.perf_counter() - start)
        return gm.forward

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler, decompositions=aot_decompositions(),
                           keep_inference_input_mutations=True)
    torch._dynamo.reset()
    torch.compile(fn, backend=backend, dynamic=False)(*args)
    return sum(took)


def compile_rows(found: Case, dtype: str, names: Sequence[str], settings: Settings) -> list[Row]:
    """One row a compiler with its compile times, and planning time in rooffuse's."""
    from .run import compile_times

    where = context(settings.device)
    fn, args = found.make(settings.device, DTYPES[dtype])
    layers = int(found.name.split("_")[1]) if found.name.startswith("decoder_") else 0
    cold = layers <= MOST_LAYERS_COLD[settings.quick]
    rows = []
    for name in names:
        if name == "eager" or not (cold or name == "rooffuse"):
            continue
        times = compile_times(found, dtype, name, settings) if cold else None
        plan_s = None
        if name == "rooffuse":
            with torch.set_grad_enabled(found.training):
                plan_s = planning_seconds(fn, args)
        rows.append(Row(
            found.suite, found.name, dtype, name, cold_s=times.cold_s if times else None,
            primed_s=times.primed_s if times else None, warm_s=times.warm_s if times else None, plan_s=plan_s,
            note="" if times or not cold else "failed: no compile times, see the log", **where))  # type: ignore[arg-type]
    return rows
