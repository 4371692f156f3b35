"""Philox4x32-10, a random number generator without state: each number is a function of a key and a counter.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC11). The operator
``rooffuse::philox`` gives a tensor's worth of numbers; here it is defined in plain tensor arithmetic, which is what it
means, and kernels compute it where the numbers are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
ROUNDS = 10

_library = torch.library.Library("rooffuse", "FRAGMENT")
_library.define("philox(Tensor seeds, int stream, int[] size, int word) -> Tensor")


def philox_words(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of Philox4x32-10 for four words of counter and two of key, all int64 tensors of values below
    2**32."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # wrap, which leaves all 64 bits as they should be
        a, b, c, d = ((second >> 32) & _LOW) ^ b ^ k0, second & _LOW, ((first >> 32) & _LOW) ^ d ^ k1, first & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return a, b, c, d


def philox_bits(seed: Tensor, position: Tensor, word: int) -> Tensor:
    """Word ``word`` (0 or 1) for the 64-bit key ``seed`` and the counter ``position``, as the bits of an int32."""
    zero = torch.zeros_like(position)
    words = philox_words((position & _LOW, (position >> 32) & _LOW, zero, zero), (seed & _LOW, (seed >> 32) & _LOW))
    bits = words[word]
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32)


def _numbers(seeds: Tensor, stream: int, size: Sequence[int], word: int) -> Tensor:
    position = torch.arange(prod(size), device=seeds.device)
    return philox_bits(seeds[stream], position, word).reshape(tuple(size))


def _fake(seeds: Tensor, stream: int, size: Sequence[int], word: int) -> Tensor:
    return seeds.new_empty(size, dtype=torch.int32)


_library.impl("philox", _numbers, "CompositeExplicitAutograd")
torch.library.register_fake("rooffuse::philox", _fake, lib=_library)
#: ``philox(seeds, stream, size, word)``: int32 bits for each element of ``size``, in row-major order, with the key
#: ``seeds[stream]``.
philox = torch.ops.rooffuse.philox.default
