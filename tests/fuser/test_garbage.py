"""Full collections wait while torch.compile works, and thresholds are the user's again after it."""
from __future__ import annotations

import gc

import pytest
import rooffuse.backend
import torch
from rooffuse.garbage import postpone_full_collections


@pytest.fixture(autouse=True)
def _thresholds():
    torch._dynamo.reset()
    before = gc.get_threshold()
    gc.set_threshold(600, 7, 9)
    yield
    gc.set_threshold(*before)
    torch._dynamo.reset()


@pytest.mark.parametrize("fails", [False, True])
def test_thresholds_of_a_compilation(monkeypatch, fails):
    seen = []
    whole = rooffuse.backend.compile_graph

    def watched(*args):
        seen.append(gc.get_threshold())
        if fails:
            raise ValueError("on purpose")
        return whole(*args)

    monkeypatch.setattr(rooffuse.backend, "compile_graph", watched)
    postpone_full_collections()
    postpone_full_collections()
    x = torch.ones(3, requires_grad=True)
    run = torch.compile(lambda x: (x * 2).sin().sum(), backend="rooffuse")
    if fails:
        with pytest.raises(Exception, match="on purpose"):
            run(x)
    else:
        run(x).backward()
    assert len(seen) == (1 if fails else 2)
    assert all(s[:2] == (600, 7) and s[2] > 1 << 20 for s in seen)
    assert gc.get_threshold() == (600, 7, 9)


def test_asked_for_in_the_middle_of_a_compilation():
    run = torch.compile(lambda x: x + 1, backend="rooffuse")
    torch._dynamo.reset()  # forgets who is to be called back
    assert run(torch.ones(2)).sum() == 4 and gc.get_threshold() == (600, 7, 9)
