"""Tiles of rows that have something in common: the same elements to be reduced, or a place along an axis.

Sizes that a tile divides, so that a place is one number for all of it, and sizes that it doesn't. Windows, whose
places are in or out of what they are taken from.
"""

from __future__ import annotations

import torch

from .case_table import case, integers

for slots in (1, 3, 64, 100, 256):
    case(f"counts_{slots}", lambda x, n=slots: (x[..., None] == torch.arange(n)).sum(1), integers(slots, 5, 300))
    case(f"counts_of_long_rows_{slots}", lambda x, n=slots: (x[:, None] == torch.arange(n)).long().sum(0),
         integers(slots, 9000), heavy=True)
    case(f"nearest_{slots}", lambda x, y: (x[:, None] - y[:, None, None]).abs().amin(-1), (4, 1, 33), (slots,))
    case(f"moments_about_{slots}", lambda x, y: ((x[:, None] - y[:, None]).square() * x[:, None]).sum(-1),
         (4, 131), (slots,))
for size in (33, 64, 512):
    case(f"planes_{size}", lambda x, y, z: x * y[:, None, None] + z[:, None] - x.flip(0), (4, 6, size), (4,), (6,))
    case(f"planes_turned_{size}", lambda x, y: x.transpose(1, 2) * y, (4, size, 64), (4, 1, 1))
    case(f"planes_masked_{size}", lambda x, y: torch.where(y[:, None, None] > 0, x, 1.0) + torch.nn.functional.pad(
        y, (1, -1))[:, None, None], (4, 8, size), (4,))
    case(f"rows_of_planes_{size}", lambda x, y: (x * y[:, None, None]).softmax(-1), (4, size, 16), (4,))
    case(f"chosen_planes_{size}", lambda x, i: x[i].exp() * i[:, None, None], (4, 6, size), integers(4, 5))


def windows_of_volume(x: torch.Tensor) -> torch.Tensor:
    """The softmax of each place's neighbours, as far as there are any: what says so is kept from sweep to sweep."""
    padded = torch.nn.functional.pad(x, [1] * 6, value=float("-inf"))
    return padded.unfold(0, 3, 1).unfold(1, 3, 1).unfold(2, 3, 1).flatten(3).softmax(-1)


case("windows_of_volume", windows_of_volume, (3, 9, 11))
case("windows_of_long_volume", windows_of_volume, (2, 3, 40), heavy=True)
