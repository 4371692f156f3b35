"""Workloads of several kinds at GPU sizes: how many launches are planned, and that each moves its arguments once."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rooffuse.cost_model import get_device
from rooffuse.program import CallStep, KernelStep
from rooffuse.step_prices import step_price
from rooffuse.targets import target_for
from torch import Tensor

from .graphs import floor_and_steps, planned


def norm_over_channels(x: Tensor, weight: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    return (x - mean) * torch.rsqrt((x - mean).square().mean(1, keepdim=True) + 1e-6) * weight[:, None, None]


def norm_over_channels_backward(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """What a root-mean-square norm of each pixel's channels gives to its input and to the channels' weights."""
    wide, n = x.float(), x.shape[1]
    rstd = torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-6)
    inner = grad.float() * weight.view(-1, *[1] * (x.dim() - 2))
    given = rstd * inner - wide * rstd ** 3 * (inner * wide).sum(1, keepdim=True) / n
    return given.to(x.dtype), (grad.float() * wide * rstd).sum((0, *range(2, x.dim()))).to(x.dtype)


def divergence(a: Tensor, b: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(a.float(), -1), F.log_softmax(b.float(), -1), log_target=True, reduction="batchmean")


def router(x: Tensor) -> tuple[Tensor, Tensor]:
    weights, chosen = torch.topk(F.softmax(x.float(), -1), 4, -1)
    return weights / weights.sum(-1, keepdim=True), chosen


def shifted_windows(x: Tensor) -> Tensor:
    y = F.layer_norm(x, (96,)).roll((-3, -3), (1, 2))
    return y.view(-1, 8, 7, 8, 7, 96).permute(0, 1, 3, 2, 4, 5).contiguous()


def heads(qkv: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised and rotated queries and keys, heads first."""
    def turned(x: Tensor) -> Tensor:
        wide = x.float()
        x = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight
        a, b = x.chunk(2, -1)
        return (x * cos[:, None] + torch.cat((-b, a), -1) * sin[:, None]).transpose(0, 1).contiguous()

    q, k = qkv.view(-1, 40, 128).split([32, 8], 1)
    return turned(q), turned(k)


def loss_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the rows' entropies, and softmax less one at the first place."""
    log_p = F.log_softmax(x.float(), -1)
    entropies = -(log_p.exp() * log_p).sum(-1)
    first = torch.arange(x.shape[-1], device=x.device) == 0
    return entropies.mean(), (log_p.exp() - first.float()).to(x.dtype)


def chunked_decay(q: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The decay up to each position of a chunk, and from there to the chunk's end."""
    total = F.logsigmoid(g.float()).cumsum(2)
    return (q * total.exp()).to(q.dtype), (q * (total[:, :, -1:] - total).exp()).to(q.dtype)


def gated(x: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """What a gated activation's gradient gives to its input and to the bias before it."""
    a, b = (x + bias).chunk(2, -1)
    found = torch.cat((grad * b * a.sigmoid(), grad * F.silu(a)), -1)
    return found, found.sum(0)


def shifted_norm_backward(x: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a norm with a scale for each image gives to its input and, summed over the image, to scale and shift."""
    mean = x.float().mean(-1, keepdim=True)
    rstd = torch.rsqrt((x.float() - mean).square().mean(-1, keepdim=True) + 1e-6)
    normal = (x.float() - mean) * rstd
    wide = grad.float() * (1 + scale[:, None])
    inner = wide - wide.mean(-1, keepdim=True) - normal * (wide * normal).mean(-1, keepdim=True)
    return (inner * rstd).to(x.dtype), (grad * normal).sum(1).to(x.dtype), grad.sum(1)


def group_norm_backward(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    mean, rstd = (v.to(x.dtype) for v in torch.native_group_norm(x, weight, None, x.shape[0], 256, 1024, 32, 1e-5)[1:])
    return torch.ops.aten.native_group_norm_backward(grad, x, mean, rstd, weight, x.shape[0], 256, 1024, 32, [True] * 3)


def rare_words(x: Tensor) -> Tensor:
    """Logits without those of a probability below a share of the largest."""
    p = F.softmax(x.float(), -1)
    return torch.where(p < 0.05 * p.amax(-1, keepdim=True), float("-inf"), x.float())


def overlap_and_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Overlap of each image with its target, and the cross-entropy of all."""
    p, t = logits.float().sigmoid(), target.float()
    overlap = (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
    return (1 - overlap).mean() + F.binary_cross_entropy_with_logits(logits.float(), t)


def more_likely(logits: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """What one model finds more likely than another does, and by how much it does so for the other's likeliest."""
    p, q = F.softmax(logits.float(), -1), F.softmax(others.float(), -1)
    first = torch.zeros_like(p[:, :1], dtype=torch.int64)
    return (p - q).clamp(0).to(logits.dtype), (p.gather(1, first) / q.gather(1, first)).to(logits.dtype)


def few_classes(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), (logits[:, 0] > 0).long())


def classes_of_pixels(logits: Tensor) -> Tensor:
    """The mean entropy of the likeliest."""
    return -F.log_softmax(logits.float(), 1).amax(1).mean()


def overlap_of_classes(logits: Tensor, target: Tensor) -> Tensor:
    """Overlap of each class with its target over all images, of the probabilities of each pixel."""
    p, t = logits.float().softmax(1), target.float()
    shared, all_ = (p * t).sum((0, 2, 3)), p.sum((0, 2, 3)) + t.sum((0, 2, 3))
    return (2 * shared + 1) / (all_ + 1)


def areas_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's area of each class, and the mean entropy of the likeliest, which go through the same pixels."""
    return logits.float().softmax(1).sum((2, 3)), classes_of_pixels(logits)


def partly_rotated(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half of each normalised head turned, as in several language models."""
    n, size = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6), cos.shape[-1]
    turned, rest = (n.to(x.dtype) * weight).split([2 * size, x.shape[-1] - 2 * size], -1)
    a, b = turned.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def scaled_advantages(advantages: Tensor, ratios: Tensor) -> Tensor:
    a = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
    return torch.minimum(ratios * a, ratios.clamp(0.8, 1.2) * a).mean()


def similarity(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.float(), y.float()
    return (1 - (x * y).sum(-1) * torch.rsqrt(x.square().sum(-1) * y.square().sum(-1) + 1e-6)).mean()


def normalised_step(p: Tensor, g: Tensor, m: Tensor) -> None:
    """A step of momentum in place whose length is that of the parameters."""
    m.mul_(0.9).add_(g)
    p.sub_(m * (p.float().norm() / m.float().norm()).to(p.dtype))


@pytest.mark.parametrize("fn, shapes, launches", [
    (norm_over_channels, [(16, 192, 56, 56), (192,)], 1),
    (norm_over_channels_backward, [(16, 96, 56, 56), (96,), (16, 96, 56, 56)], 2),
    (norm_over_channels_backward, [(4, 512, 16384), (512,), (4, 512, 16384)], 2),
    (divergence, [(512, 32000), (512, 32000)], 2),
    (router, [(16384, 64)], 1),
    (shifted_windows, [(16, 56, 56, 96)], 1),
    (heads, [(4096, 40 * 128), (128,), (4096, 128), (4096, 128)], 1),
    (lambda x: (x.float().mean(0), x.float().var(0)), [(16384, 2048)], 2),
    (loss_and_gradient, [(4096, 32000)], 2),
    (chunked_decay, [(512, 64, 64, 128)] * 2, 1),
    (gated, [(8192, 10240), (10240,), (8192, 5120)], 2),
    (lambda x: F.softmax(x, -1), [(1024, 128256)], 1),
    (divergence, [(1024, 50304), (1024, 50304)], 2),
    (lambda x: F.layer_norm(x, (131072,)), [(1024, 131072)], 1),
    (shifted_norm_backward, [(16, 1024, 1152), (16, 1152), (16, 1024, 1152)], 2),
    (group_norm_backward, [(16, 256, 1024), (256,), (16, 256, 1024)], 2),
    (lambda x: (x.float().cumsum(1), x.float().cumsum(1)[:, -1:] * 2), [(8, 4096, 256)], 1),
    (lambda x: F.softmax(x, -1), [(48, 128256)], 1),
    (rare_words, [(64, 128256)], 1),
    (lambda x: F.layer_norm(x, (100000,)), [(100, 100000)], 1),
    (lambda x: F.group_norm(x, 1), [(64, 64, 56, 56)], 1),
    (lambda x: torch.logsumexp(x.float(), -1), [(8, 128256)], 2),
    (overlap_and_entropy, [(64, 512, 512)] * 2, 2),
    (more_likely, [(64, 32000)] * 2, 1),
    (few_classes, [(1 << 20, 10)], 2),
    (classes_of_pixels, [(16, 19, 512, 512)], 2),
    (similarity, [(1 << 18, 64)] * 2, 2),
    (overlap_of_classes, [(8, 4, 512, 512)] * 2, 2),
    (areas_and_entropy, [(32, 19, 256, 256)], 2),
    (partly_rotated, [(4, 2048, 32, 128), (128,), (4, 2048, 1, 32), (4, 2048, 1, 32)], 1),
], ids=["channels", "channels of images", "channels of few images", "divergence", "router",
        "windows", "heads", "moments", "loss", "decay", "gated", "vocabulary",
        "vocabularies", "long rows", "images", "groups", "scan and total", "few rows", "words of few rows",
        "few long rows", "few images", "few sums", "overlap", "one of each row", "classes", "pixels", "similarity",
        "overlap of classes", "areas", "partly rotated"])
def test_everything_is_read_and_written_once(fn: Callable, shapes: list[tuple[int, ...]], launches: int) -> None:
    args = [torch.empty(s, dtype=torch.bfloat16, device="meta") for s in shapes]
    target = target_for(get_device("h100"))
    plan = planned(fn, *[torch.empty(a.shape, dtype=a.dtype) for a in args])
    steps = [s for s in plan.program.steps if isinstance(s, KernelStep | CallStep)]
    moved = sum(step_price(s, target).cost.bytes for s in steps)
    results = fn(*args)
    results = results if isinstance(results, tuple) else (results,)
    floor = sum(v.nbytes for v in (*args, *results))
    assert len(steps) == launches
    assert moved <= 1.05 * floor


def test_long_rows_are_not_read_again_by_every_program_that_has_a_part_of_them() -> None:
    """Softmax's maximum and sum of each part, then of all parts and the largest of each, the largest of those, and at
    last the result from the logits: what is computed from three numbers a row isn't stored."""
    logits = torch.empty(16, 128256, dtype=torch.bfloat16)
    plan = planned(rare_words, logits)
    moved = [step_price(s, target_for(get_device("h100"))).cost.bytes for s in plan.program.steps
             if isinstance(s, KernelStep | CallStep)]
    assert sum(moved) <= 1.01 * (3 * logits.nbytes + 2 * logits.nbytes)


def softmax_by_parts(x: Tensor, parts: int) -> Tensor:
    x = x.float().view(x.shape[0], parts, -1)
    high = x.amax(2, keepdim=True)
    top = high.amax(1, keepdim=True)
    total = ((x - high).exp().sum(2, keepdim=True) * (high - top).exp()).sum(1, keepdim=True)
    return (x - top).exp() / total


def test_no_group_is_left_that_cant_be_one_kernel() -> None:
    """What is computed again elsewhere takes nothing away without which the rest of its group is no kernel."""
    def fn(x: Tensor) -> Tensor:
        p = softmax_by_parts(x, 4)
        return softmax_by_parts(torch.where(p < 0.05 * p.amax((1, 2), keepdim=True), 0, x.float().view(p.shape)), 4)

    plan = planned(fn, torch.empty(256, 32768, dtype=torch.bfloat16))
    assert any(r.reason == "its programs would read the same rows again and again" for r in plan.grouping.refusals)
    assert len([s for s in plan.program.steps if isinstance(s, KernelStep | CallStep)]) <= 4


def test_a_mean_and_a_deviation_of_everything_are_found_together() -> None:
    """Advantages are read for both, and once more beside the ratios."""
    plan = planned(scaled_advantages, *[torch.empty(4096, 2048)] * 2)
    steps = [s for s in plan.program.steps if isinstance(s, KernelStep | CallStep)]
    moved = sum(step_price(s, target_for(get_device("h100"))).cost.bytes for s in steps)
    assert len(steps) == 4 and moved <= 1.01 * 3 * 4 * 4096 * 2048


def test_a_buffer_is_overwritten_in_the_sweep_that_reads_it() -> None:
    """p, g and m are read and m is written beside the sums; then p and m are read and p is written."""
    size = 1 << 24
    plan = planned(normalised_step, *[torch.empty(size, dtype=torch.bfloat16)] * 3)
    steps = [s for s in plan.program.steps if isinstance(s, KernelStep | CallStep)]
    moved = sum(step_price(s, target_for(get_device("h100"))).cost.bytes for s in steps)
    assert moved <= 1.01 * (4 + 3) * 2 * size


def test_statistics_of_groups_are_found_in_one_sweep_though_the_batch_has_the_size_of_what_is_reduced_after() -> None:
    def fn(x: Tensor) -> Tensor:
        return torch.logsumexp(F.group_norm(x, 8).tanh(), 1)

    x = torch.empty(64, 64, 256, 256, dtype=torch.bfloat16)
    plan = planned(fn, x)
    steps = [s for s in plan.program.steps if isinstance(s, KernelStep | CallStep)]
    moved = sum(step_price(s, target_for(get_device("h100"))).cost.bytes for s in steps)
    assert len(steps) == 2 and moved <= 1.01 * 2 * x.nbytes + x.nbytes // 64


def test_a_cache_is_written_through_views_of_it_where_it_is() -> None:
    def fn(cache: Tensor, scale: Tensor, rows: Tensor, k: Tensor) -> None:
        codes = (k.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        cache.view(torch.uint8).view(-1, 8, 128).index_put_((rows,), codes.view(torch.uint8))

    cache, k = torch.empty(1024, 16, 8, 128, dtype=torch.float8_e4m3fn), torch.empty(512, 8, 128, dtype=torch.bfloat16)
    rows = torch.empty(512, dtype=torch.int64)
    plan = planned(fn, cache, torch.empty(1), rows, k)
    steps = [s for s in plan.program.steps if isinstance(s, KernelStep | CallStep)]
    moved = sum(step_price(s, target_for(get_device("h100"))).cost.bytes for s in steps)
    assert len(steps) == 1 and moved <= 1.01 * (k.nbytes + k.nbytes // 2 + rows.nbytes)


def test_both_factors_of_a_gram_matrix_are_read_once() -> None:
    x = torch.empty(4096, 512, dtype=torch.bfloat16)
    plan = planned(lambda x: (x.t() @ x, x[:512] @ x[512:1024]), x)
    moved = [step_price(s, target_for(get_device("h100"))).cost.bytes for s in plan.program.steps
             if isinstance(s, CallStep)]
    assert moved == [x.nbytes + 2 * 512 * 512, 3 * 2 * 512 * 512]


@pytest.mark.parametrize("reduced", [lambda y: y.amax(-1), lambda y: y.mean((2, 3))], ids=["neighbours", "images"])
def test_batch_statistics_take_one_sweep_whatever_is_reduced_of_the_normalised(reduced: Callable) -> None:
    def fn(x: Tensor) -> Tensor:
        return reduced(F.batch_norm(x, None, None, training=True).relu())

    x = torch.empty(64, 256, 28, 28, dtype=torch.bfloat16)
    moved, launches = floor_and_steps(fn, x, written=0)
    assert moved < 2.1 and launches == 2


def in_fours(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.float().abs().amax(-1, keepdim=True) / 7
    return (x / scale).round().clamp(-8, 7).to(torch.int32) + 8, scale


def packed_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    q, scale = in_fours(x.view(-1, 128))
    q = q.view(x.shape)
    return (q[:, ::2] | q[:, 1::2] << 4).to(torch.uint8), scale


def packed_halves(x: Tensor) -> tuple[Tensor, Tensor]:
    q, scale = in_fours(x.view(-1, 128))
    return (q[:, :64] | q[:, 64:] << 4).to(torch.uint8), scale


def packed_norms(x: Tensor) -> tuple[Tensor, Tensor]:
    q, scale = in_fours(x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6))
    return (q[:, ::2] | q[:, 1::2] << 4).to(torch.uint8), scale


@pytest.mark.parametrize(("fn", "scales"), [(packed_pairs, 32), (packed_halves, 32), (packed_norms, 1)])
def test_quantised_rows_are_packed_where_their_scale_is_found(fn: Callable, scales: int) -> None:
    x = torch.empty(8192, 4096, dtype=torch.bfloat16)
    moved, launches = floor_and_steps(fn, x, written=8192 * (2048 + 4 * scales))
    assert moved < 1.01 and launches == 1


@pytest.mark.parametrize("fn", [packed_pairs, packed_halves, packed_norms])
def test_packed_rows_are_those_of_eager_execution(fn: Callable) -> None:
    x = torch.randn(33, 384, generator=torch.Generator().manual_seed(5))
    found = torch.compile(fn, backend="rooffuse", dynamic=False, options={"strict": True})(x)
    for ours, theirs in zip(found, fn(x)):
        torch.testing.assert_close(ours, theirs)


def test_scans_of_rows_that_are_padded_apart_share_a_sweep() -> None:
    def fn(x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pad(x.cumsum(-1), (1, 0)), F.pad((x * x).cumsum(-1), (1, 0))

    x = torch.empty(4096, 2048)
    moved, launches = floor_and_steps(fn, x, written=2 * 4096 * 2049 * 4)
    assert moved < 1.001 and launches == 1
    x = torch.randn(5, 37)
    found = torch.compile(fn, backend="rooffuse", dynamic=False, options={"strict": True})(x)
    for ours, theirs in zip(found, fn(x.double())):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


def pooled_beside_means(x: Tensor) -> tuple[Tensor, Tensor]:
    return F.max_pool2d(x, 2) + F.avg_pool2d(x, 2), x.mean((2, 3))


def differences_beside_variances(x: Tensor) -> tuple[Tensor, Tensor]:
    flat = x.flatten(2)
    return flat[..., ::2] - flat[..., 1::2], flat.float().var(-1)


def signs_beside_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Four to a byte, with the rows' mean sizes."""
    bits = (x.flatten(1).unflatten(1, (-1, 4)) > 0).to(torch.uint8) << torch.arange(4, dtype=torch.uint8)
    return bits.sum(-1, dtype=torch.uint8), x.abs().mean((1, 2, 3))


@pytest.mark.parametrize("fn", [pooled_beside_means, differences_beside_variances, signs_beside_means])
def test_what_is_computed_from_several_elements_joins_what_reduces_them(fn: Callable) -> None:
    x = torch.empty(16384, 16, 14, 14, dtype=torch.bfloat16)
    moved, launches = floor_and_steps(fn, x, written=16384 * sum(r.nbytes for r in fn(x[:1])))
    assert moved < 1.01 and launches == 1
    for shape in ((3, 5, 10, 14), (2, 1, 6, 2)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        found = torch.compile(fn, backend="rooffuse", dynamic=False, options={"strict": True})(x)
        for ours, theirs in zip(found, fn(x.double())):
            torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-5, atol=1e-5)
