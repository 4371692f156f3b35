"""What generating text costs: the floor of a decoding step from weights, cache, arithmetic and links.

A step reads all weights once for the whole batch and each sequence's keys and values. Floors leave launches, sampling
and everything else out that a perfect program would hide; they are what a measured time is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .device import Device

#: Bits of one stored value. Scales of quantised values are counted by `weight_bits`.
BITS = {"bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4}


def weight_bits(name: str, group: int | None = 64) -> float:
    """Bits a weight: int4 with one fp16 scale for each ``group`` of weights has 16 / group more, 4.25 for 64; without a
    group scales are left out. The scales of int8 (one a row) are too few to count.

    Raises ValueError for a name that isn't one of `BITS`.
    """
    if name not in BITS:
        raise ValueError(f"unknown format {name!r}; the formats are {', '.join(BITS)}")
    return BITS[name] + (16 / group if name == "int4" and group else 0)


@dataclass(frozen=True)
class DecoderShape:
    """``parameters`` are all that are stored, ``read`` those that a token reads: without an embedding table that is
    only looked up. ``kv_heads`` × ``head_dim`` values of keys and as many of values are cached a layer and token."""

    name: str
    parameters: int
    read: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Setting:
    """How it is run: formats of weights and cache, ``context`` tokens of each sequence, ``tp`` devices that split
    weights and key heads (tensor parallelism), ``group`` as for `weight_bits`."""

    weights: str = "bf16"
    cache: str = "bf16"
    context: int = 4096
    tp: int = 1
    group: int | None = 64


@dataclass(frozen=True)
class Step:
    """One decoding step of a batch on each of the devices: seconds, bytes and FLOPs of one device.

    ``seconds`` is ``max(memory_s, compute_s) + links_s``; it is also the latency between tokens.
    """

    batch: int
    weight_bytes: float
    cache_bytes: float
    flops: float
    memory_s: float
    compute_s: float
    links_s: float

    @property
    def seconds(self) -> float:
        return max(self.memory_s, self.compute_s) + self.links_s

    @property
    def tokens_per_s(self) -> float:
        """Of the whole batch."""
        return self.batch / self.seconds

    @property
    def bound(self) -> str:
        """ "memory", "compute" or "links": the largest part."""
        parts = {"memory": self.memory_s, "compute": self.compute_s, "links": self.links_s}
        return max(parts, key=lambda k: parts[k])


def weight_bytes(shape: DecoderShape, setting: Setting) -> float:
    """Stored bytes of weights on each device."""
    return shape.parameters * weight_bits(setting.weights, setting.group) / 8 / setting.tp


def cache_bytes(shape: DecoderShape, setting: Setting) -> float:
    """Bytes of keys and values of one sequence on each device: 2·layers·kv_heads·head_dim·context values, split over as
    many devices as there are key heads; more devices hold copies."""
    values = 2 * shape.layers * shape.kv_heads * shape.head_dim * setting.context
    return values * weight_bits(setting.cache, None) / 8 / min(setting.tp, shape.kv_heads)


def all_reduce_bytes(width: int, itemsize: int = 2) -> int:
    """Bytes over a device's link to sum ``width`` values over many devices: a ring sends 2·(n-1)/n of them, here 2."""
    return 2 * width * itemsize


def links_seconds(shape: DecoderShape, device: Device, batch: int, tp: int) -> float:
    """Two all-reduces of the hidden state a layer (Shoeybi et al. 2019, Megatron-LM), each a launch and its bytes."""
    if tp == 1:
        return 0.0
    if device.link_bandwidth is None:
        raise ValueError(f"{device.name} has no link_bandwidth in its description, which --tp {tp} needs")
    moved = all_reduce_bytes(batch * shape.hidden)
    return 2 * shape.layers * (device.launch_s + moved / device.link_bandwidth)


def _rates(shape: DecoderShape, setting: Setting) -> tuple[float, float]:
    """Bytes of weights that a step reads, and FLOPs of one sequence, on each device."""
    read = shape.read * weight_bits(setting.weights, setting.group) / 8 / setting.tp
    attention = 4 * shape.layers * shape.heads * shape.head_dim * setting.context
    return read, (2 * shape.read + attention) / setting.tp


def decode_step(shape: DecoderShape, device: Device, setting: Setting, batch: int) -> Step:
    """The floor of one token for each of ``batch`` sequences. Weights are widened to 16 bits on the way into the matrix
    units, whose bf16 rate bounds the arithmetic. Raises ValueError for ``tp`` on devices without a known link."""
    read, flops = _rates(shape, setting)
    cache = batch * cache_bytes(shape, setting)
    return Step(batch, read, cache, batch * flops, (read + cache) / device.bandwidth,
                batch * flops / device.peak(torch.bfloat16), links_seconds(shape, device, batch, setting.tp))


def compute_bound_batch(shape: DecoderShape, device: Device, setting: Setting) -> int | None:
    """The smallest batch whose arithmetic takes as long as its traffic: W/bw + B·kv/bw ≤ B·f/peak. None if there is
    none: each sequence's own cache then keeps the step memory-bound."""
    read, flops = _rates(shape, setting)
    gain = flops / device.peak(torch.bfloat16) - cache_bytes(shape, setting) / device.bandwidth
    return math.ceil(read / device.bandwidth / gain) if gain > 0 else None


def linears_compute_bound_batch(device: Device, setting: Setting) -> int:
    """The smallest batch at which the weight matrices alone are compute-bound: 2·B FLOPs for each weight's bytes."""
    return math.ceil(weight_bits(setting.weights, setting.group) / 8 * device.ridge_point(torch.bfloat16) / 2)


def cache_bound_batch(shape: DecoderShape, setting: Setting) -> int:
    """The smallest batch whose keys and values are more bytes than the weights that a step reads."""
    return math.floor(_rates(shape, setting)[0] / cache_bytes(shape, setting)) + 1


def largest_batch(shape: DecoderShape, device: Device, setting: Setting) -> int:
    """Sequences whose cache fits beside the weights; 0 if the weights don't fit. Activations are left out."""
    left = device.memory_bytes - weight_bytes(shape, setting)
    return max(0, math.floor(left / cache_bytes(shape, setting)))


def first_token_seconds(shape: DecoderShape, device: Device, setting: Setting) -> float:
    """Time to first token: a prompt of ``context`` tokens alone, causal attention half of the square."""
    read, _ = _rates(shape, setting)
    attention = 2 * shape.layers * shape.heads * shape.head_dim * setting.context**2
    flops = (2 * shape.read * setting.context + attention) / setting.tp
    moved = read + cache_bytes(shape, setting)
    return max(flops / device.peak(torch.bfloat16), moved / device.bandwidth) + links_seconds(
        shape, device, setting.context, setting.tp)


def speculated_tokens(drafted: int, acceptance: float) -> float:
    """Expected tokens of a round that verifies ``drafted`` tokens, each accepted with probability ``acceptance`` if all
    before it are: (1 - a^(k+1)) / (1 - a) (Leviathan et al. 2023). Raises ValueError outside of 0 ≤ a ≤ 1, k ≥ 1."""
    if drafted < 1 or not 0 <= acceptance <= 1:
        raise ValueError(f"speculation of {drafted} tokens at acceptance {acceptance}: it takes 1 or more tokens and a "
                         "probability from 0 to 1")
    return drafted + 1.0 if acceptance == 1 else (1 - acceptance ** (drafted + 1)) / (1 - acceptance)


def speculated_step(shape: DecoderShape, device: Device, setting: Setting, batch: int, drafted: int) -> float:
    """Seconds of a verifying round: ``drafted`` + 1 tokens of each sequence share one read of weights and cache.
    Drafting itself is taken as free, as from an n-gram table."""
    step = decode_step(shape, device, setting, batch)
    links = links_seconds(shape, device, batch * (drafted + 1), setting.tp)
    return max(step.memory_s, (drafted + 1) * step.compute_s) + links
