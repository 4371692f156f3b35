"""Images pooled, enlarged and sampled by kernels of both languages, Triton's in its interpreter, and what is around
them in the same kernel."""

from __future__ import annotations

import pytest
import rooffuse
import rooffuse.backend
import torch
import torch.nn.functional as F
from rooffuse.cost_model import get_device
from rooffuse.targets import Target

from .eager import same_as_eager
from .poison import poisoned_memory

INTERPRETED = Target("triton", get_device("h100"), torch.device("cpu"), interpreted=True)

IMAGES = {
    "mean of uneven parts": lambda x, g: F.adaptive_avg_pool2d(F.relu(x), (4, 5)) * 2,
    "largest of uneven parts": lambda x, g: F.adaptive_max_pool2d(x * g.sum(), (4, 5))[0] + 1,
    "largest at gaps": lambda x, g: F.max_pool2d(x + 1, 3, 1, 1, 2) * 2,
    "windows beyond the end": lambda x, g: F.avg_pool2d(F.relu(x), 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "enlarged and added": lambda x, g: F.interpolate(x, scale_factor=2, mode="bilinear") + g.mean(),
    "enlarged by a cubic": lambda x, g: F.relu(F.interpolate(x, scale_factor=2, mode="bicubic")),
    "in other sizes": lambda x, g: F.relu(F.interpolate(x, size=(5, 20), mode="bilinear", align_corners=True)),
    "gradient of enlarged": lambda x, g: torch.ops.aten.upsample_bilinear2d_backward(
        x * 2, [7, 9], [2, 3, 7, 3], False, None, None),
    "sampled and masked": lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False) * (g[..., 0] > 0).unsqueeze(1),
    "sampled by reflection": lambda x, g: F.grid_sample(x, g, padding_mode="reflection", align_corners=True) * 2,
    "nearest samples": lambda x, g: F.grid_sample(x, g, mode="nearest", padding_mode="border", align_corners=False) * 2,
    "mirrored": lambda x, g: F.pad(F.relu(x), (3, 2, 1, 4), mode="reflect") * 2,
    "edges repeated": lambda x, g: F.pad(x * g.sum(), (0, 2, 1, 0), mode="replicate") + 1,
    "every other element": lambda x, g: x.slice_scatter(x[..., :4] * 2, 3, 1, None, 2) + 1,
    "what a mask chooses": lambda x, g: torch.ops.aten.index_put(x, [x[..., 0] > 0], g.sum() * x[0, 0, 0]) * 2,
    "inverse error function": lambda x, g: torch.erfinv(torch.tanh(x)) + 1,
}
#: What is a library call on a CPU, where looking up single elements is slow.
LOOKED_UP = {"in other sizes", "sampled and masked", "sampled by reflection", "nearest samples"}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", IMAGES)
def test_images_in_both_languages(name: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    def inputs() -> list[torch.Tensor]:
        return [torch.randn(2, 3, 7, 9).to(memory_format=layout), torch.randn(2, 5, 4, 2)]

    if name in ("mirrored", "edges repeated") and layout == torch.channels_last and torch.__version__ < "2.12":
        pytest.skip("traces of torch 2.11 say that paddings are contiguous, whoever compiles them")
    same_as_eager(IMAGES[name], inputs)
    monkeypatch.setattr(rooffuse.backend, "local_target", lambda values: INTERPRETED)
    same_as_eager(IMAGES[name], inputs)


@pytest.mark.parametrize("device", ["h100", "cpu"])
@pytest.mark.parametrize("name", IMAGES)
def test_images_are_kernels_alone(name: str, device: str) -> None:
    report = rooffuse.explain(IMAGES[name], torch.randn(2, 3, 7, 9), torch.randn(2, 5, 4, 2), device=device)
    calls = [k for graph in report.graphs for k in graph.kernels if k.kind == "extern"]
    assert bool(calls) == (name in LOOKED_UP and device != "h100")


def test_blocks_that_are_turned_are_stored_once() -> None:
    """Results of few channels lie a short row apart, across what is loaded: in turned blocks, not in rows of a few."""
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = F.max_pool2d(F.pad(x.relu(), (1, 1, 1, 1)), 2, stride=1) * 3
        return y.softmax(1), y > 0.5

    x = torch.randn(4, 2, 4, 9, dtype=torch.float64).permute(1, 0, 3, 2)
    with poisoned_memory():
        ours = torch.compile(fn, backend="rooffuse", options={"strict": True})(x)
    torch.testing.assert_close(ours, fn(x))
