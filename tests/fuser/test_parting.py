"""Groups that are parted for merges that a kernel between them would keep from being made."""
from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from rooffuse.group_state import GroupState
from torch import Tensor
from torch.fx import Graph

from .graphs import floor_and_steps


def response_norm_gradients(x: Tensor, w: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    """Of a global response norm: channels' norms over an image by their mean, times a weight."""
    g = x.float().square().sum((2, 3), keepdim=True).sqrt()
    mean = g.mean(1, keepdim=True) + 1e-6
    n = g / mean
    dw = (d * x * n).sum((0, 2, 3))
    dn = (d * x * w[:, None, None]).sum((2, 3), keepdim=True)
    dg = dn / mean - (dn * g).mean(1, keepdim=True) / mean.square()
    return d * n * w[:, None, None] + dg * x / g, dw


def entropy_gradients(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """How many labels count is needed by the gradient and by the loss, and its kernel would join both."""
    return torch.func.grad_and_value(lambda x: F.cross_entropy(x.float(), y))(x)


def mixture_gradients(p: Tensor, m: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Of how likely ``y`` is under a few normal distributions."""
    def loss(p: Tensor, m: Tensor, s: Tensor) -> Tensor:
        each = -((y[:, None] - m) / s.exp()).square() / 2 - s
        return -(p.log_softmax(-1) + each.sum(-1)).logsumexp(-1).mean()

    return torch.func.grad(loss, argnums=(0, 1, 2))(p, m, s)


def segment_norm(x: Tensor, at: Tensor) -> Tensor:
    """Rows less their segment's mean, by its deviation."""
    count = torch.zeros(32, device=x.device).index_add(0, at, torch.ones_like(x[:, 0])).clamp(min=1)[:, None]
    mean = torch.zeros(32, x.shape[1], device=x.device).index_add(0, at, x) / count
    y = x - mean[at]
    variance = torch.zeros(32, x.shape[1], device=x.device).index_add(0, at, y * y) / count
    return y * (variance[at] + 1e-5).rsqrt()


def test_sums_that_no_statistic_is_needed_for_are_had_with_it() -> None:
    """The weight's gradient waits for the norms, and is had with the input's; the others' sums are had with these."""
    x, w = torch.empty(32, 512, 28, 28), torch.empty(512)
    moved, launches = floor_and_steps(response_norm_gradients, x, w, x, written=x.nbytes + w.nbytes)
    assert moved < 1.68 and launches <= 3


def test_what_comes_after_a_kernel_between_leaves_it() -> None:
    """The difference of both terms is taken where it is needed, so that the two softmaxes are one kernel."""
    p, m, y = torch.empty(16384, 10), torch.empty(16384, 10, 32), torch.empty(16384, 32)
    assert floor_and_steps(mixture_gradients, p, m, m, y, written=p.nbytes + 2 * m.nbytes)[1] == 3


def test_what_written_memory_holds_is_read_again_once_nobody_writes_there_any_more() -> None:
    x, at = torch.empty(200000, 128), torch.zeros(200000, dtype=torch.int64)
    assert floor_and_steps(segment_norm, x, at, written=x.nbytes)[0] < 2.1  # three reads and a write


@pytest.mark.parametrize("fn,args", [
    (response_norm_gradients, (torch.randn(3, 24, 9, 7), torch.randn(24), torch.randn(3, 24, 9, 7))),
    (mixture_gradients, (torch.randn(65, 5), torch.randn(65, 5, 9), torch.randn(65, 5, 9), torch.randn(65, 9))),
    (segment_norm, (torch.randn(500, 12), torch.randint(0, 32, (500,)))),
    (entropy_gradients, (torch.randn(256, 2000), torch.randint(0, 2000, (256,)))),
], ids=lambda value: getattr(value, "__name__", ""))
def test_results_are_those_of_eager_execution(fn: Callable[..., object], args: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(fn, backend="rooffuse", dynamic=False, options={"strict": True, "verify": True})
    torch.testing.assert_close(compiled(*args), fn(*args), rtol=2e-5, atol=2e-5)


def test_groups_that_would_wait_for_each_other_are_not_made() -> None:
    graph = Graph()
    a, b, c = (graph.placeholder(name) for name in "abc")
    needs = nx.DiGraph([(a, b), (b, c)])

    def state() -> GroupState:
        made = GroupState({k: frozenset([n]) for k, n in enumerate((a, b, c))}, {a: 0, b: 1, c: 2},
                          nx.DiGraph([(0, 1), (1, 2)]), {0: 0, 1: 1, 2: 2})
        made.put_in_order()
        return made

    before = state()
    assert before.path_outside([0, 2]) and not before.path_outside([0, 1]) and not before.path_outside([0, 1, 2])
    after = before.copy()
    assert not after.regroup([0, 2], [3], [frozenset([a, c])], [0], needs)
    assert before.members == state().members and before.owner == state().owner and before.rank == state().rank
    after = before.copy()
    assert after.regroup([0, 1], [3], [frozenset([a, b])], [0], needs)
    assert list(after.graph.edges) == [(3, 2)] and after.rank == {3: 0, 2: 1} and after.owner == {a: 3, b: 3, c: 2}
