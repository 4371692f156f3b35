"""Paddings that repeat around the edges are concatenations in a trace, and what torch has them as elsewhere."""
from __future__ import annotations

import pytest
import rooffuse
import torch
import torch.nn.functional as F
from rooffuse.whole_operators import whole_operators
from torch import Tensor

PADS = [((9,), (2, 3)), ((9,), (9, 0)), ((5, 7), (1, 2, 3, 0)), ((4, 5, 6), (1, 1, 0, 5, 2, 4)),
        ((5, 7), (-1, 2, 3, -2)), ((5, 7), (0, 0, 0, 0))]


def padded(x: Tensor, pad: tuple[int, ...]) -> Tensor:
    return F.pad(x * 2, pad, mode="circular") + 1


@pytest.mark.parametrize(("size", "pad"), PADS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_results_and_gradients_are_those_of_eager_execution(size: tuple[int, ...], pad: tuple[int, ...],
                                                            dynamic: bool) -> None:
    torch._dynamo.reset()  # there is a limit to how often a function is compiled anew
    x = torch.randn(2, 3, *size, requires_grad=True)
    found = torch.compile(padded, backend="rooffuse", dynamic=dynamic)(x, pad)
    expected = padded(x, pad)
    torch.testing.assert_close(found, expected)
    assert found.stride() == expected.stride()
    weights = torch.randn(found.shape)
    torch.testing.assert_close(*(torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)))


@pytest.mark.parametrize(("device", "language"), [("h100", "triton"), ("cpu", "cpp")])
def test_edges_are_read_in_the_kernel_that_needs_them(device: str, language: str) -> None:
    torch._dynamo.reset()
    report = rooffuse.explain(padded, torch.randn(2, 3, 264, 265), (1, 1, 2, 2), device=device)
    assert [k.kind for graph in report.graphs for k in graph.kernels] == [language]


def test_what_torch_refuses_is_refused() -> None:
    with pytest.raises(Exception, match="wrapping around more than once"):
        torch.compile(padded, backend="rooffuse")(torch.randn(2, 3, 4), (5, 0))


def test_nothing_is_left_of_it_afterwards() -> None:
    around = torch.ops.aten._pad_circular.default
    before = dict(around.py_kernels)
    with whole_operators():
        assert around.py_kernels != before
    assert around.py_kernels == before
    x = torch.randn(1, 2, 5)
    torch.testing.assert_close(F.pad(x, (1, 2), mode="circular"), torch.cat([x[..., -1:], x, x[..., :2]], -1))
