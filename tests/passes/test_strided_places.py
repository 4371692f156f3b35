"""What counts places in memory from where a storage begins finds them in the tensor, wherever that lies."""

from __future__ import annotations

import pytest
import torch
from conftest import targets, trace
from rooffuse.passes import PIPELINE, run_passes, strided_places

aten = torch.ops.aten


def _diagonal(x):
    y = x * 2
    return y.fill_diagonal_(3.0) + 1


SEEN = {
    "a diagonal": _diagonal,
    "every third": lambda x: torch.as_strided((x * 2), (5,), (3,), 4).sin(),
    "windows that overlap": lambda x: torch.as_strided(x.exp(), (6, 4), (5, 1), 1) * 2,
    "one element": lambda x: torch.as_strided(x.exp(), (1, 1), (7, 3), 9) * 2,
    "a number": lambda x: torch.as_strided(x.exp(), (), (), 9) * 2,
    "the same again and again": lambda x: torch.as_strided(x.exp(), (3, 4), (0, 2)) * 2,
    "a copy": lambda x: torch.as_strided_copy(x[1:], (3, 2), (8, 2), 10) * 2,
    "writes of blocks": lambda x: torch.as_strided_scatter(x * 2, x[:3, :2], (3, 2), (9, 2), 3),
    "writes into columns": lambda x: torch.as_strided_scatter((x * 2).t().contiguous().t(), x[0, :6], (6,), (1,), 2),
    "writes into a part": lambda x: torch.as_strided_scatter((x * 2)[1:], x[0, :3], (3,), (4,), 9),
    "another order": lambda x: torch.as_strided(x.exp(), (4, 3, 6), (1, 24, 4)).reshape(12, 6).sin(),
    "another order seen as blocks": lambda x: torch.as_strided(x.exp(), (8, 2, 4), (1, 32, 8)).permute(
        1, 2, 0).view(2, 32).sin(),
    "windows seen in another order": lambda x: torch.as_strided(x.exp(), (6, 4), (5, 1)).t().unsqueeze(0) * 2,
    "a write and a read": lambda x: torch.as_strided((x * 2).as_strided_scatter(x[0, :3], (3,), (4,)), (4,), (2,)) + 1,
}
LEFT = {
    "gaps": lambda x: torch.as_strided((x * 2)[:, ::2], (3, 2), (9, 2)) + 1,
    "before the tensor": lambda x: torch.as_strided((x * 2)[2:], (3,), (4,), 1) + 1,
    "a view that is returned": lambda x: torch.as_strided(x * 2, (3,), (4,)),
    "of an argument": lambda x: torch.as_strided(x, (3,), (4,)) * 2,
    "what only its strides allow to view": lambda x: torch.as_strided(x.exp(), (3, 4, 2), (2, 5, 1)).transpose(
        0, 1).view(4, 6) * 2,
    "nothing": lambda x: torch.as_strided(x * 2, (0, 3), (4, 1)) + 1,
}


def _left(gm):
    return [t for t in targets(gm) if "as_strided" in str(t)]


@pytest.mark.parametrize("name", [*SEEN, *LEFT])
def test_equal_values(name):
    x = torch.randn(8, 9)
    gm = trace((SEEN | LEFT)[name], x)
    assert _left(gm)
    changed = run_passes(gm, [p for p in PIPELINE if p.name == "strided_places"])
    assert bool(_left(changed)) == (name in LEFT)
    for ours, theirs in zip(*([r] if isinstance(r, torch.Tensor) else r for r in (changed(x), gm(x)))):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert name in LEFT or "write" not in name or ours.stride() == theirs.stride()


def test_writes_that_meet_are_left_alone():
    def fn(x):
        return torch.as_strided_scatter(x * 2, x[:3, :2], (3, 2), (1, 1))

    assert _left(strided_places(trace(fn, torch.randn(8, 9))))


def normalised_distances(x):
    """Of each row to its nearest neighbour, itself left out."""
    x = torch.nn.functional.normalize(x, dim=-1)
    near = torch.mm(x, x.t())
    near.fill_diagonal_(-2)
    return (x - x[near.argmax(1)]).norm(dim=1)


def written_part(x):
    y = torch.mm(x, x.t())
    z = torch.mm(y, y)
    z.as_strided((3,), (4,), 2).copy_(torch.ones(3))
    return z.sort(-1).values, y.sin()


def read_in_gaps(x):
    y = torch.mm(x, x.t())
    z = torch.mm(y, y)
    gaps = z[:, ::2]
    return torch.as_strided(gaps[2:], (3, 2), (4, 1), 1) * 2, torch.as_strided(gaps, (4,), (3,)).sort().values, y.sin()


def copied_argument(x):
    y = x.clone()
    y.fill_diagonal_(1.0)
    return y


@pytest.mark.parametrize("fn", [normalised_distances, written_part, read_in_gaps, copied_argument, *SEEN.values()])
@pytest.mark.parametrize("skipped", [0, 2])
def test_compiled_wherever_values_lie(fn, skipped):
    """Of a whole tensor, and of one that begins in the middle of another."""
    x = torch.randn(9 + skipped, 9)[skipped:]
    ours = torch.compile(fn, backend="rooffuse", fullgraph=True)(x)
    theirs = fn(x.clone() if skipped == 0 else x)
    for mine, expected in zip(*(r if isinstance(r, tuple) else (r,) for r in (ours, theirs))):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("places", [((2, 2), (1, 2)), ((2, 2), (2, 1)), ((4,), (2,), 1), ((3, 2), (1, 1))])
def test_copies_lie_in_memory_of_their_own_as_eager_s_do(places):
    x = torch.randn(9)
    changed = strided_places(trace(lambda x: torch.as_strided_copy(x, *places), x))
    ours = changed(x)
    assert not _left(changed) and ours.stride() == torch.as_strided_copy(x, *places).stride()
    assert ours.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
