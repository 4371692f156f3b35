"""What generating text costs: the floor of a decoding step from weights, cache, arithmetic and links.

A step reads all weights once for the whole batch and each sequence's keys and values. Floors leave launches, sampling
and everything else out that a perfect program would hide; they are what a measured time is compared with.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
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
    """``parameters`` are all that are stored, ``read`` those that a large batch reads: without an embedding table that
    is only looked up. ``kv_heads`` × ``head_dim`` values of keys and as many of values are cached a layer and token.

    In a mixture of experts ``routed`` of the parameters are in experts, ``experts`` in each layer that has any, of
    which a token takes ``chosen``. ``windowed`` layers attend to, and keep, the last ``window`` tokens only.
    """

    name: str
    parameters: int
    read: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    routed: int = 0
    experts: int = 1
    chosen: int = 1
    windowed: int = 0
    window: int = 0

    @property
    def active(self) -> float:
        """Parameters that one token is multiplied with."""
        return self.read - self.routed * (1 - self.chosen / self.experts)

    def read_by(self, tokens: int) -> float:
        """Parameters that a step of ``tokens`` tokens reads, experts that no token takes left out."""
        return self.read - self.routed * (1 - experts_touched(self.experts, self.chosen, tokens) / self.experts)

    def kept(self, context: int) -> int:
        """Tokens of one sequence in the caches of all layers together."""
        return (self.layers - self.windowed) * context + self.windowed * min(context, self.window)

    def scores(self, context: int) -> float:
        """Pairs of tokens that causal attention to a prompt looks at, in all layers together: half of the square, or
        with a window w, w²/2 in the first w rows and w in each row after them."""
        seen = min(context, self.window)
        return (self.layers - self.windowed) * context**2 / 2 + self.windowed * (seen * context - seen**2 / 2)


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


def experts_touched(experts: int, chosen: int, tokens: int) -> float:
    """Expected number of different experts of a layer that ``tokens`` tokens take, ``chosen`` each.

    A token leaves a given expert out with probability 1 - k/E, all tokens with (1 - k/E)^n if they choose
    independently and evenly, so E·(1 - (1 - k/E)^n) are taken: k for one token, near E for many. Even choice is what
    routers are trained for (Fedus et al. 2021, Switch Transformers, 2.2); uneven choice touches fewer.
    """
    return experts * (1 - (1 - chosen / experts) ** tokens)


def weight_bytes(shape: DecoderShape, setting: Setting) -> float:
    """Stored bytes of weights on each device."""
    return shape.parameters * weight_bits(setting.weights, setting.group) / 8 / setting.tp


def cache_bytes(shape: DecoderShape, setting: Setting) -> float:
    """Bytes of keys and values of one sequence on each device: 2·layers·kv_heads·head_dim·context values, or a window's
    in layers that have one, split over as many devices as there are key heads; more devices hold copies."""
    values = 2 * shape.kept(setting.context) * shape.kv_heads * shape.head_dim
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


def read_bytes(shape: DecoderShape, setting: Setting, tokens: int) -> float:
    """Bytes of weights that a step of ``tokens`` tokens reads on each device."""
    return shape.read_by(tokens) * weight_bits(setting.weights, setting.group) / 8 / setting.tp


def _flops(shape: DecoderShape, setting: Setting) -> float:
    """FLOPs of one sequence's token on each device: two a parameter, four for each cached value of a query head."""
    attention = 4 * shape.kept(setting.context) * shape.heads * shape.head_dim
    return (2 * shape.active + attention) / setting.tp


def decode_step(shape: DecoderShape, device: Device, setting: Setting, batch: int) -> Step:
    """The floor of one token for each of ``batch`` sequences. Weights are widened to 16 bits on the way into the matrix
    units, whose bf16 rate bounds the arithmetic. Raises ValueError for ``tp`` on devices without a known link."""
    read, flops = read_bytes(shape, setting, batch), batch * _flops(shape, setting)
    cache = batch * cache_bytes(shape, setting)
    return Step(batch, read, cache, flops, (read + cache) / device.bandwidth, flops / device.peak(torch.bfloat16),
                links_seconds(shape, device, batch, setting.tp))


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest batch from which on ``holds`` does."""
    high = 1
    while not holds(high):
        high *= 2
    return bisect.bisect_left(range(high + 1), True, lo=1, key=holds)


def compute_bound_batch(shape: DecoderShape, device: Device, setting: Setting) -> int | None:
    """The smallest batch whose arithmetic takes as long as its traffic: W/bw + B·kv/bw ≤ B·f/peak. None if there is
    none: each sequence's own cache then keeps the step memory-bound."""
    gain = _flops(shape, setting) / device.peak(torch.bfloat16) - cache_bytes(shape, setting) / device.bandwidth
    if gain <= 0:
        return None
    return _first(lambda batch: read_bytes(shape, setting, batch) / device.bandwidth <= batch * gain)


def linears_compute_bound_batch(shape: DecoderShape, device: Device, setting: Setting) -> int:
    """The smallest batch at which the weight matrices alone are compute-bound: 2·B FLOPs for each weight's bytes. In a
    mixture of experts a token meets k of E experts, so that it takes about E/k as large a batch."""
    seconds = 2 * shape.active / setting.tp / device.peak(torch.bfloat16)
    return _first(lambda batch: read_bytes(shape, setting, batch) / device.bandwidth <= batch * seconds)


def cache_bound_batch(shape: DecoderShape, setting: Setting) -> int:
    """The smallest batch whose keys and values are more bytes than the weights that a step reads."""
    cache = cache_bytes(shape, setting)
    return _first(lambda batch: batch * cache > read_bytes(shape, setting, batch))


def largest_batch(shape: DecoderShape, device: Device, setting: Setting) -> int:
    """Sequences whose cache fits beside the weights; 0 if the weights don't fit. Activations are left out."""
    left = device.memory_bytes - weight_bytes(shape, setting)
    return max(0, math.floor(left / cache_bytes(shape, setting)))


def first_token_seconds(shape: DecoderShape, device: Device, setting: Setting) -> float:
    """Time to first token: a prompt of ``context`` tokens alone, causal attention half of the square."""
    attention = 4 * shape.scores(setting.context) * shape.heads * shape.head_dim
    flops = (2 * shape.active * setting.context + attention) / setting.tp
    read = read_bytes(shape, setting, setting.context)
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
    step, tokens = decode_step(shape, device, setting, batch), batch * (drafted + 1)
    memory_s = (read_bytes(shape, setting, tokens) + step.cache_bytes) / device.bandwidth
    return max(memory_s, (drafted + 1) * step.compute_s) + links_seconds(shape, device, tokens, setting.tp)
