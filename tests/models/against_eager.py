"""A model of the zoo, compiled, against itself in eager execution and in float64.

Where a kernel sums in another order or keeps float32 between operators it may be a little better or worse than eager,
so that its error is allowed twice eager's own plus a fraction of the result's largest value: SLACK, a few rounding
steps of the type.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .zoo import MODELS, logits

SLACK = {torch.float32: 4e-6, torch.bfloat16: 1.6e-2}
FACTOR = 2.0
STRICT = {"strict": True, "verify": True}


def assert_as_exact(
    ours: Tensor, eager: Tensor, exact: Tensor, what: str, dtype: torch.dtype, scale: float | None = None
) -> None:
    """The error of ``ours`` is within FACTOR times eager's plus SLACK times ``scale``, the largest exact value."""
    scale = exact.abs().max().item() if scale is None else scale
    mine, theirs = ((x.double() - exact).abs().max().item() for x in (ours, eager))
    assert mine <= FACTOR * theirs + SLACK[dtype] * scale, (
        f"{what}: error {mine:.3g}, eager's {theirs:.3g}, of {scale:.3g}"
    )


def exact_twin(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The same weights and inputs in float64."""
    twin = copy.deepcopy(model).double()
    if hasattr(twin, "set_experts_implementation"):
        twin.set_experts_implementation("eager")  # the grouped matrix product has no float64
    return twin, {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def _built(name: str, dtype: torch.dtype, device: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in MODELS[name].inputs(dtype).items()}
    return MODELS[name].build(dtype).to(device), inputs


def check_forward(name: str, dtype: torch.dtype, device: str = "cpu", runs: int = 2, **options: Any) -> None:
    """Logits of ``runs`` runs."""
    model, inputs = _built(name, dtype, device)
    compiled = torch.compile(model.eval(), backend="rooffuse", options={**STRICT, **options})
    with torch.no_grad():
        exact = logits(*exact_twin(model, inputs))
        eager = logits(model, inputs)
        for run in range(runs):
            assert_as_exact(logits(compiled, inputs), eager, exact, f"{name}, run {run}", dtype)


def _training_step(model: torch.nn.Module, call: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    out = logits(call, inputs)
    loss = -torch.log_softmax(out if out.dtype == torch.float64 else out.float(), -1)[..., 1].mean()
    loss.backward()
    return loss.detach()


def check_training_step(name: str, device: str = "cpu") -> None:
    """Loss and the gradient of every parameter. A gradient's error is measured against the largest gradient in the
    model: some, such as that of a key's bias, are zero but for rounding."""
    model, inputs = _built(name, torch.float32, device)
    model.train()
    eager = copy.deepcopy(model)
    twin, exact_inputs = exact_twin(model, inputs)
    exact_loss = _training_step(twin, twin, exact_inputs)
    eager_loss = _training_step(eager, eager, inputs)
    our_loss = _training_step(model, torch.compile(model, backend="rooffuse", options=STRICT), inputs)
    assert_as_exact(our_loss, eager_loss, exact_loss, "loss", torch.float32)
    largest = max(p.grad.abs().max().item() for p in twin.parameters() if p.grad is not None)
    for (parameter, mine), theirs, best in zip(
        model.named_parameters(), eager.parameters(), twin.parameters(), strict=True
    ):
        assert (mine.grad is None) == (theirs.grad is None), parameter
        if mine.grad is not None and theirs.grad is not None and best.grad is not None:
            assert_as_exact(mine.grad, theirs.grad, best.grad, parameter, torch.float32, scale=largest)
    for (buffer, mine), theirs in zip(model.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda m, b=buffer: f"{b}: {m}")
