"""Scans along rows and down columns, between producers, consumers and reductions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from rooffuse.passes.running import running_max, running_min

from .case_table import RAGGED, case, integers

for n in RAGGED:
    big = n > 1000
    case(f"cumsum_row_{n}", lambda x: x.cumsum(-1), (3, n), heavy=big)
    case(f"cumsum_column_{n}", lambda x: (x * 2).cumsum(0) + 1, (n, 19), heavy=big)
    case(f"cumsum_with_total_{n}", lambda x: x.exp().cumsum(-1) / x.exp().sum(-1, keepdim=True), (3, n), heavy=big)
for n in (7, 33, 300):
    case(f"cumprod_{n}", lambda x: (x * 0.1 + 1).cumprod(-1), (3, n))
    case(f"cumsum_middle_{n}", lambda x: x.cumsum(1), (3, n, 5))
    case(f"cumsum_of_normalised_{n}", lambda x: F.softmax(x, -1).cumsum(-1), (5, n))
    case(f"cumsum_twice_{n}", lambda x: (x.cumsum(-1).cumsum(-1), x.sum(-1)), (5, n))
    case(f"softmax_of_cumsum_{n}", lambda x: F.softmax(x.cumsum(-1), -1), (5, n))  # each sweep scans anew
    case(f"largest_cumsum_{n}", lambda x: x.cumsum(-1).amax(-1), (5, n))
    case(f"cumsum_from_the_end_{n}", lambda x: x.flip(-1).cumsum(-1).flip(-1) * 2, (5, n))
    case(f"cumsum_of_some_{n}", lambda x, m: (x * m).cumsum(-1), (3, n), lambda n=n: torch.rand(3, n) < 0.5)
    case(f"cumsum_of_gelu_{n}", lambda x: F.gelu(F.gelu(x).cumsum(-1)), lambda n=n: torch.randn(5, n).bfloat16())
    case(f"logcumsumexp_{n}", lambda x: x.logcumsumexp(-1) + 1, (3, n))
    case(f"logcumsumexp_column_{n}", lambda x: (x * 4).logcumsumexp(0), (n, 19))
    case(f"cummax_{n}", lambda x: running_max(x, -1) * 2, (3, n))
    case(f"cummin_column_{n}", lambda x: running_min(x + 1, 0), (n, 19))
    case(f"scan_down_strips_{n}", lambda x: ((x.cumsum(1) * x).amax(-1), x.sum(1)), (3, 24, n + 6))
    case(f"softmax_of_scan_{n}", lambda x, y: F.softmax(x.cumsum(1) + y, -1) * y, (2, 9, n + 6), (n + 6,))
case("scans_down_strips", lambda x: (running_max(x, 1).exp().sum(-1), (x.logcumsumexp(1) - x).square().mean(-1),
     x.cumprod(1)), (3, 8, 33))
case("slots_down_strips", lambda x: ((x[..., None] == torch.arange(13)).long().cumsum(1)
                                     * (x[..., None] == torch.arange(13))).sum(-1), integers(13, 4, 64))
case("logcumsumexp_infinities", lambda x: x.log().logcumsumexp(-1), lambda: torch.randn(9, 33).relu())
case("cummax_integers", lambda x: (running_max(x, -1), running_min(x, 1)),
     integers(90, 7, 33, low=-90, dtype=torch.int8))
case("cummax_not_a_number", lambda x: (running_max(x, -1), running_min(x, -1)),
     lambda: torch.where(torch.rand(9, 17) < 0.1, float("nan"), torch.randn(9, 17)))
case("cumsum_alone", lambda x: x.cumsum(0), (65,))
case("cumsum_of_one", lambda x: x.cumsum(1) * 2, (5, 1, 3))
case("cumsum_integers", lambda x: (x.cumsum(-1), x.cumprod(-1)), integers(3, 5, 33, low=-2, dtype=torch.int8))
case("cumsum_truth", lambda x: (x > 1).cumsum(0) - 1, integers(3, 40, 9))
case("cumsum_bfloat16", lambda x: x.cumsum(-1), lambda: torch.randn(5, 65).bfloat16())
case("cumsum_double", lambda x: x.cumsum(0), lambda: torch.randn(65, 9).double())
case("cumsum_to_double", lambda x: x.cumsum(-1, dtype=torch.float64), (5, 65))
case("cumsum_transposed", lambda x: x.t().cumsum(-1), (33, 5))
