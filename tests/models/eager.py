"""Compares a compiled function with eager in every respect that a caller could notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Make = Callable[[], list[Any]]
STRICT = {"strict": True, "verify": True}


def tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def sharing(tree: Any) -> list[list[int]]:
    """For each tensor, the numbers of those in the same storage."""
    places = [t.untyped_storage().data_ptr() if t.numel() else -k - 1 for k, t in enumerate(tensors(tree))]
    return [[k for k, p in enumerate(places) if p == q] for q in places]


def real_strides(t: Tensor) -> list[int]:
    return [s for s, n in zip(t.stride(), t.shape) if n != 1] if t.numel() else []


def same_as_eager(fn: Callable[..., Any], make: Make, **options: Any) -> None:
    torch.manual_seed(3)
    eager_inputs = make()
    torch.manual_seed(3)
    inputs = make()
    torch.manual_seed(5)
    eager = fn(*eager_inputs)
    state = torch.get_rng_state()
    torch._dynamo.reset()
    torch.manual_seed(5)
    ours = torch.compile(fn, backend="rooffuse", options={**STRICT, **options})(*inputs)
    assert torch.equal(torch.get_rng_state(), state), "another number of random draws"
    for a, b in zip(tensors((ours, inputs)), tensors((eager, eager_inputs)), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert real_strides(a) == real_strides(b)
        torch.testing.assert_close(
            a,
            b,
            rtol=1e-4 if a.dtype == torch.float32 else None,
            atol=1e-4 if a.dtype == torch.float32 else None,
            equal_nan=True,
        )
    assert [x for x in tree_leaves(ours) if not isinstance(x, Tensor)] == [
        x for x in tree_leaves(eager) if not isinstance(x, Tensor)
    ]
    assert sharing((ours, inputs)) == sharing((eager, eager_inputs))


def randn(*shapes: tuple[int, ...]) -> Make:
    return lambda: [torch.randn(s) for s in shapes]


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.randn(7, 13).t(),
    "expanded": lambda: torch.randn(1, 13).expand(7, 13),
    "stepped": lambda: torch.randn(20, 30)[1::3, 2::2],
    "misaligned": lambda: torch.randn(100)[3:80].view(7, 11),
    "permuted": lambda: torch.randn(3, 4, 5).permute(2, 0, 1),
}
