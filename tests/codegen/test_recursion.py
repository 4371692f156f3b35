"""Long chains of operators need more frames than Python has, for as long as they are lowered."""

from __future__ import annotations

import sys

import pytest
import torch
from rooffuse.codegen.recursion import FRAMES, deep_recursion

from .kernels import lower


@pytest.mark.parametrize("reduced", [False, True])
def test_a_chain_as_long_as_a_group_may_be(reduced: bool) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        result = x
        for _ in range(80):
            result = torch.sin(result * 1.01 + x)
        return result.sum(-1) if reduced else result

    before = sys.getrecursionlimit()
    kernel = lower(fn, torch.empty(3, 17)).group.kernel
    assert len(list(kernel.statements())) > 240 and sys.getrecursionlimit() == before


def test_the_last_one_to_leave_puts_the_limit_back() -> None:
    before = sys.getrecursionlimit()
    first, second = deep_recursion(), deep_recursion()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.getrecursionlimit() >= FRAMES
    with pytest.raises(ValueError), deep_recursion():
        raise ValueError
    second.__exit__(None, None, None)
    assert sys.getrecursionlimit() == before
