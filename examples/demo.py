"""A Llama-shaped model, compiled, checked, explained and timed beside eager and Inductor. CPU only, about two minutes.

    python examples/demo.py
"""
from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping

FOLDER = tempfile.TemporaryDirectory(prefix="rooffuse-demo-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = FOLDER.name  # both compilers start with an empty cache

import rooffuse  # noqa: E402
import torch  # noqa: E402
from llama import config  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

BATCH, TOKENS, ROUNDS = 4, 128, 15


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if os.isatty(1) else f"\n== {text}", flush=True)


def first_call(function: Callable[[Tensor], Tensor], ids: Tensor) -> tuple[Tensor, float]:
    """The result and the seconds of a call that compiles."""
    start = time.perf_counter()
    result = function(ids)
    return result, time.perf_counter() - start


def medians(functions: Mapping[str, Callable[[Tensor], Tensor]], ids: Tensor) -> dict[str, float]:
    """Median milliseconds of each function, in turns, so that a noisy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            function(ids)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(layers=4, hidden=256, vocabulary=1024)).eval().requires_grad_(False)
    ids = torch.randint(0, model.config.vocab_size, (BATCH, TOKENS))

    def run(ids: Tensor) -> Tensor:
        return model(ids, use_cache=False).logits

    heading(f"Llama-shaped model: 4 layers, hidden 256, batch {BATCH}, {TOKENS} tokens, fp32")
    eager = run(ids)
    fused = torch.compile(run, backend="rooffuse", options={"cache_dir": FOLDER.name})
    result, rooffuse_s = first_call(fused, ids)
    error = (result - eager).abs().max().item()
    print(f'torch.compile(..., backend="rooffuse"): {rooffuse_s:.1f} s from an empty cache')
    print(f"largest difference from eager {error:.2e} (logits up to {eager.abs().max().item():.2f})")
    torch.testing.assert_close(result, eager, rtol=1e-3, atol=1e-4)

    heading("Where its time goes on this machine, as predicted")
    report = rooffuse.explain(run, ids)
    print(report.text(level="node", sort="time", top=12))
    heading("The same function planned for an H100, which need not be there")
    print(rooffuse.explain(run, ids, device="h100").text(level="kernel", sort="time", top=8))

    generated = [k for k in report.kernels if k["kind"] == "cpp"]
    name = max(generated, key=lambda k: len(k["nodes"]) if len(k["nodes"]) < 12 else 0)["name"]
    heading(f"A kernel that was generated: {name}")
    print(report.source(name))

    heading("Beside eager and Inductor (its compilation takes a while)")
    inductor = torch.compile(run)
    functions = {"eager": run, "rooffuse": fused}
    rows = [("eager", ""), ("rooffuse", f"{rooffuse_s:.1f} s")]
    try:
        _, inductor_s = first_call(inductor, ids)
        functions["inductor"] = inductor
        rows.append(("inductor", f"{inductor_s:.1f} s"))
    except Exception as reason:  # it needs a compiler of its own kind
        print(f"Inductor can't be compared with here: {type(reason).__name__}: {str(reason).splitlines()[0]}")
    times = medians(functions, ids)
    print(f"{'':10}{'first call':>12}{f'median of {ROUNDS}':>16}{'against eager':>16}")
    for row, compiled in rows:
        print(f"{row:10}{compiled:>12}{times[row]:>13.1f} ms{times['eager'] / times[row]:>15.2f}×")


if __name__ == "__main__":
    main()
