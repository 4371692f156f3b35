"""Reductions of different lengths in one nest: the shorter ones see what changes nothing beyond their end."""

from __future__ import annotations

import torch

from .case_table import case, integers

for n in (29, 33, 500):
    case(f"totals_of_{n}", lambda x, y: x.square().sum() + (y * 2).sum() + x.sum() * y.mean(), (n,), (n + 12,))
    case(f"rows_of_{n}", lambda x, y: (x * x).sum(-1) / y.exp().sum(-1) - y.amax(-1) * (x + 3).amin(-1),
         (5, n), (5, n + 7))
    case(f"products_of_{n}", lambda x, y: (x * 0.1 + 1).prod() + (y * 0.1 + 1).prod(), (n,), (n // 2,))
case("conditions_of_different_lengths", lambda x, y: ((x > 9).any() | (y < 0).all(), (y > 2).any() & (x < 9).all()),
     (33,), (57,))
case("integers_of_different_lengths", lambda x, y: x.sum() * y.amax() - x.amin() + y.prod(),
     integers(5, 40, low=1), integers(3, 64, low=1, dtype=torch.int32))
case("rows_of_blocks", lambda x, y: x.sum((1, 2)) * y.sum((1, 2)), (5, 6, 7), (5, 6, 9))
for n in (33, 300):
    case(f"scans_of_many_rows_{n}", lambda x: (x.cumsum(-1) * x, (x * 0.1 + 1).cumprod(-1).log()), (11, n))
    case(f"logcumsumexp_of_many_rows_{n}", lambda x: x.logcumsumexp(-1), (9, n))
