"""``rooffuse plan-decode``: floors of text generation over devices, formats and batch sizes."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rooffuse.cost_model import Device, decoding
from rooffuse.cost_model.decoding import DecoderShape, Setting, Step
from tabulate import tabulate

from .presets import Scenario, config_of, model_kind, model_of, read_fields
from .report_target import TargetError
from .report_text import format_time

#: Tokens of each sequence, where no others are asked for.
CONTEXT = 4096
#: Weights and cache, where no others are asked for.
FORMATS = (("bf16", "bf16"), ("int8", "int8"), ("int4", "int4"))


def decoder_shape(target: str) -> DecoderShape:
    """The shape of a preset or configuration, its parameters counted on the model itself, on the meta device.

    Raises TargetError for what doesn't decode, and for caches that aren't keys and values of each layer: a state of
    linear attention, latent vectors, a layer's cache that others share.
    """
    config = config_of(target, read_fields(target))
    if model_kind(config) != "decoder":
        raise TargetError(f"{target} doesn't decode; plan-decode takes causal language models")
    windowed, window = _windows(target, config)
    model: Any = model_of(target, config, "decoder", Scenario(), False)
    parameters = sum(p.numel() for p in model.parameters())
    table = model.get_input_embeddings().weight
    tied = model.get_output_embeddings() is not None and model.get_output_embeddings().weight is table
    routed, experts, chosen = _experts(target, config, model)
    heads = config.num_attention_heads
    return DecoderShape(target, parameters, parameters - (0 if tied else table.numel()), config.num_hidden_layers,
                        config.hidden_size, heads, _key_heads(config),
                        getattr(config, "head_dim", None) or config.hidden_size // heads, routed, experts, chosen,
                        windowed, window)


def context_of(target: str, asked: int | None) -> int:
    """The tokens to plan for: as asked for, or `CONTEXT` or what the model takes. Raises TargetError for more."""
    most = getattr(config_of(target, read_fields(target)), "max_position_embeddings", None)
    if asked is not None and most and asked > most:
        raise TargetError(f"{target} takes contexts of up to {most} tokens, not {asked}")
    return asked or min(CONTEXT, most or CONTEXT)


def _key_heads(config: Any) -> int:
    found = getattr(config, "num_key_value_heads", None)
    if found is None and getattr(config, "multi_query", False):  # Falcon has a field of its own
        found = config.num_kv_heads if getattr(config, "new_decoder_architecture", False) else 1
    return found or config.num_attention_heads


def _windows(target: str, config: Any) -> tuple[int, int]:
    """How many layers keep a window of tokens only, and its size. Raises TargetError for other caches."""
    if config.get_text_config() is not config:
        raise TargetError(f"{target} is more than a language model; write its text_config into a file of its own")
    odd = {"kv_lora_rank": "caches latent vectors (multi-head latent attention), not keys and values",
           "num_kv_shared_layers": "has layers that share a cache"}
    for name, what in odd.items():
        if getattr(config, name, None):
            raise TargetError(f"{target} {what}; plan-decode takes models with a cache of keys and values a layer")
    windows = {"sliding_attention": getattr(config, "sliding_window", None),
               "chunked_attention": getattr(config, "attention_chunk_size", None), "full_attention": None}
    kinds = getattr(config, "layer_types", None) or (
        ["sliding_attention" if windows["sliding_attention"] else "full_attention"] * config.num_hidden_layers)
    other = sorted(set(kinds) - set(windows))
    if other or not getattr(config, "num_attention_heads", None):
        raise TargetError(f"{target} has layers of {', '.join(other) or 'no attention'}; plan-decode takes models "
                          "whose layers all have attention with a cache of keys and values")
    sizes = [int(size) for kind in kinds if (size := windows[kind])]
    if len(set(sizes)) > 1:
        raise TargetError(f"{target} has windows of {', '.join(map(str, sorted(set(sizes))))} tokens; plan-decode "
                          "takes one size")
    return len(sizes), sizes[0] if sizes else 0


def _experts(target: str, config: Any, model: Any) -> tuple[int, int, int]:
    """Parameters in routed experts, the experts of a layer, and how many of them a token takes; 0, 1, 1 without any."""
    named = {name: p for name, p in model.named_parameters() if ".experts." in name}
    if not named:
        return 0, 1, 1
    experts = next((e for field in ("num_local_experts", "num_experts", "n_routed_experts")
                    if (e := getattr(config, field, None))), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    if not experts or not chosen or chosen > experts:
        raise TargetError(f"{target} is a mixture of experts, and its configuration doesn't say of how many, or how "
                          "many a token takes (num_local_experts or num_experts, and num_experts_per_tok)")
    return sum(p.numel() for p in named.values()), experts, chosen


@dataclass(frozen=True)
class Request:
    """What to plan: devices, formats as pairs of weights and cache, batch sizes, tokens of context, devices that share
    one model, (drafted tokens, acceptance) of speculation, and dollars an hour of one device."""

    devices: tuple[Device, ...]
    batches: tuple[int, ...]
    formats: tuple[tuple[str, str], ...] = FORMATS
    context: int = CONTEXT
    tp: int = 1
    speculate: tuple[int, float] | None = None
    price: float | None = None


def parse_batches(text: str) -> tuple[int, ...]:
    """``1..256`` as powers of two from 1 to 256 (and the ends), or ``1,8,64`` as it is. Raises ValueError."""
    first, dots, last = text.partition("..")
    try:
        if dots:
            low, high = int(first), int(last)
            powers = [1 << k for k in range(high.bit_length() + 1)]
            found = sorted({low, high, *(p for p in powers if low <= p <= high)}) if low <= high else []
        else:
            found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ValueError(f"{text!r} is no batch; write one as 8, several as 1,8,64, or powers of two as 1..256")
    return tuple(found)


def parse_speculation(text: str) -> tuple[int, float]:
    """``5,0.78`` as drafted tokens and acceptance. Raises ValueError."""
    drafted, _, acceptance = text.partition(",")
    try:
        pair = int(drafted), float(acceptance)
    except ValueError:
        raise ValueError(f"{text!r} is no speculation; write drafted tokens and acceptance as 5,0.78") from None
    decoding.speculated_tokens(*pair)
    return pair


def parse_formats(text: str) -> tuple[tuple[str, str], ...]:
    """``bf16,int4/int8`` as pairs of weights and cache. Raises ValueError for a format that there isn't."""
    pairs = []
    for part in text.split(","):
        weights, slash, cache = part.strip().partition("/")
        pairs.append((weights, cache if slash else weights))
        for name in pairs[-1]:
            decoding.weight_bits(name)
    return tuple(pairs)


def plan(shape: DecoderShape, request: Request) -> dict[str, Any]:
    """The plan as plain data. Bytes and FLOPs are of one device, times in seconds, ``cost`` dollars for a million
    tokens, ``joules`` a token's energy for moving its bytes through memory; None where a figure isn't known.

    ``mbu`` is bytes of weights and cache over time and bandwidth, ``mfu`` FLOPs over time and the bf16 peak.
    """
    found = []
    for device in request.devices:
        for weights, cache in request.formats:
            setting = Setting(weights, cache, request.context, request.tp)
            steps = [_step(decoding.decode_step(shape, device, setting, batch), shape, device, setting, request)
                     for batch in request.batches]
            found.append({
                "device": device.name, "weights": weights, "cache": cache,
                "weight_bytes": decoding.weight_bytes(shape, setting),
                "cache_bytes_per_sequence": decoding.cache_bytes(shape, setting),
                "largest_batch": decoding.largest_batch(shape, device, setting),
                "linears_compute_bound_from": decoding.linears_compute_bound_batch(shape, device, setting),
                "compute_bound_from": decoding.compute_bound_batch(shape, device, setting),
                "cache_outweighs_from": decoding.cache_bound_batch(shape, setting),
                "first_token_s": decoding.first_token_seconds(shape, device, setting), "steps": steps})
    return {"model": shape.name, "parameters": shape.parameters, "active_parameters": round(shape.active),
            "experts": shape.experts, "experts_per_token": shape.chosen, "context": request.context, "tp": request.tp,
            "plans": found}


def _step(step: Step, shape: DecoderShape, device: Device, setting: Setting, request: Request) -> dict[str, Any]:
    moved = step.weight_bytes + step.cache_bytes
    seconds = step.seconds
    result: dict[str, Any] = {
        "batch": step.batch, "fits": step.batch <= decoding.largest_batch(shape, device, setting),
        "time_per_token_s": seconds, "tokens_per_s": step.tokens_per_s, "bound": step.bound,
        "mbu": moved / (seconds * device.bandwidth), "mfu": step.compute_s / seconds, "links_s": step.links_s}
    per_token = seconds / step.batch
    if request.speculate is not None:
        drafted, acceptance = request.speculate
        tokens = decoding.speculated_tokens(drafted, acceptance)
        effective = decoding.speculated_step(shape, device, setting, step.batch, drafted) / tokens
        result |= {"tokens_per_round": tokens, "effective_time_per_token_s": effective}
        per_token = effective / step.batch
    if request.price is not None:
        result["cost"] = 1e6 * per_token * request.tp * request.price / 3600
    pj = device.pj_per_hbm_byte
    result["joules"] = 1e-12 * pj * moved * request.tp / step.batch if pj is not None else None
    return result


def _limit(value: int | None) -> str:
    return "never" if value is None else str(value)


def plan_text(data: dict[str, Any]) -> str:
    """The plan as two tables: what each device holds, and each batch."""
    shares = f", split over {data['tp']} devices" if data["tp"] > 1 else ""
    heads = ["device", "weights/KV", "weights", "KV a sequence", "largest batch",
             "compute-bound from\nlinears alone", "\nwhole step", "KV outweighs\nfrom", "first token"]
    rows = [[p["device"], f"{p['weights']}/{p['cache']}", f"{p['weight_bytes'] / 1e9:.1f} GB",
             f"{p['cache_bytes_per_sequence'] / 1e6:.0f} MB", str(p["largest_batch"] or "doesn't fit"),
             str(p["linears_compute_bound_from"]), _limit(p["compute_bound_from"]), str(p["cache_outweighs_from"]),
             format_time(1e6 * p["first_token_s"])] for p in data["plans"]]
    experts = (f" ({data['active_parameters'] / 1e9:.2f} G a token, which takes {data['experts_per_token']} of "
               f"{data['experts']} experts)" if data["experts"] > 1 else "")
    blocks = [f"{data['model']}: {data['parameters'] / 1e9:.2f} G parameters{experts}, {data['context']} tokens of "
              f"context{shares}; floors, in bytes of one device",
              tabulate(rows, heads, tablefmt="simple", colalign=["left"] * 2 + ["right"] * 7, disable_numparse=True),
              _steps_table(data["plans"])]
    if any(not s["fits"] for p in data["plans"] for s in p["steps"]):
        blocks.append("(n): a batch of n doesn't fit in memory")
    return "\n\n".join(blocks)


def _steps_table(plans: Sequence[dict[str, Any]]) -> str:
    first = plans[0]["steps"][0]
    extra = [name for name in ("effective_time_per_token_s", "cost") if name in first]
    titles = {"effective_time_per_token_s": "speculated", "cost": "$/M tokens"}
    rows = []
    for p in plans:
        for s in p["steps"]:
            row = [p["device"], f"{p['weights']}/{p['cache']}", str(s["batch"]) if s["fits"] else f"({s['batch']})",
                   format_time(1e6 * s["time_per_token_s"]), f"{s['tokens_per_s']:.0f}", s["bound"],
                   f"{s['mbu']:.0%}", f"{s['mfu']:.1%}",
                   "" if s["joules"] is None else f"{1e3 * s['joules']:.0f} mJ"]
            for name in extra:
                row.append(f"{s[name]:.3g}" if name == "cost" else format_time(1e6 * s[name]))
            rows.append(row)
    heads = ["device", "weights/KV", "batch", "a token", "tok/s", "bound", "MBU", "MFU", "energy a token",
             *(titles[name] for name in extra)]
    align = ["left"] * 2 + ["right"] * 3 + ["left"] + ["right"] * (3 + len(extra))
    return tabulate(rows, heads, tablefmt="simple", colalign=align, disable_numparse=True)


def save_plot(data: dict[str, Any], path: str) -> None:
    """Tokens a second over the batch, a line for each device and format. Raises ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib; install it with pip install 'rooffuse[plots]'") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for p in data["plans"]:
        axes.plot([s["batch"] for s in p["steps"]], [s["tokens_per_s"] for s in p["steps"]], marker="o", ms=3,
                  label=f"{p['device']} {p['weights']}/{p['cache']}")
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="tokens a second, floor", title=data["model"])
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
