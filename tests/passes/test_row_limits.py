"""Which few rows are gone through whole: those of which more than a number is needed once they have been reduced."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rooffuse.passes import RowLimits
from rooffuse.passes.decompose import decompose
from rooffuse.passes.row_limits import whole_rows
from torch.fx.experimental.proxy_tensor import make_fx

#: About those of an H100.
LIMITS = RowLimits(264, 49152, 50 << 20, 132, 66, 4_355_000)
ROWS, COLUMNS = 64, 128256


def found(fn, rows=ROWS, columns=COLUMNS, dtype=torch.bfloat16, limits=LIMITS):
    x = torch.empty(rows, columns, dtype=dtype, device="meta")
    gm = decompose(make_fx(lambda x: fn(x.float()), tracing_mode="fake")(x))
    return whole_rows(gm, limits)


def entropy(x):
    logs = F.log_softmax(x, -1)
    return -(logs.exp() * logs).sum(-1)


def centred(x):
    return x - x.mean(-1, keepdim=True)


def halves_of_a_softmax(x):
    a, b = F.softmax(x, -1).chunk(2, -1)
    return a * b


@pytest.mark.parametrize("fn", [lambda x: F.softmax(x, -1), entropy, centred, halves_of_a_softmax, lambda x: (
    x / x.amax(-1, keepdim=True), x.sum(-1))], ids=["softmax", "entropy", "centred", "halves", "scaled"])
def test_what_is_computed_from_rows_and_their_reductions(fn):
    assert found(fn) == {(ROWS, COLUMNS)}


@pytest.mark.parametrize("fn", [
    lambda x: x.sum(-1), lambda x: F.log_softmax(x, -1)[:, 7], lambda x: x.var(-1),
    lambda x: F.nll_loss(F.log_softmax(x, -1), torch.zeros(x.shape[0], dtype=torch.long, device="meta"))
], ids=["sum", "one of a row", "variance", "loss"])
def test_what_needs_no_more_than_the_reductions(fn):
    assert found(fn) == set()


def test_many_and_very_few_and_short_rows():
    assert found(centred, rows=512) == set()
    assert found(centred, rows=8) == set()
    assert found(centred, rows=8, columns=4096) == set()
    assert found(centred, rows=0) == set()
    assert found(lambda x: x - x.mean(0), rows=COLUMNS, columns=ROWS) == set()
    assert found(centred, limits=RowLimits(264)) == set()  # nothing known of the processors: all of them are wanted


def fewest(row_bytes, sweeps=2):
    return next(rows for rows in range(1, 1000) if LIMITS.whole(rows, row_bytes, sweeps))


def test_fewest_rows():
    row = 256 << 10
    assert fewest(row) == 33  # (2 · 66 − 2 · 4.355 MB / 256 KiB) / 3
    assert fewest(3 * row) > fewest(row)  # more bytes beside the launches
    assert fewest(3 * row) == 41 and LIMITS.whole(64, 3 * row) and not LIMITS.whole(20, 3 * row)
    assert fewest(row // 4) == 1  # so short that two launches take longer than one processor does
    assert not RowLimits(264).whole(263, row) and RowLimits(264).whole(264, row)


def test_rows_of_all_processors_have_to_fit_into_the_cache():
    assert LIMITS.held(66) // 2 == LIMITS.held(132) == LIMITS.held(500)
    row = 1 << 20  # of 66 rows the cache holds 50
    assert LIMITS.whole(45, row) and not LIMITS.whole(55, row) and LIMITS.whole(55, row, sweeps=1)
