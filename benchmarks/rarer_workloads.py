"""Still more of the suite ``kernels``: rows of few elements, groups of neighbouring channels, places of extremes, steps
of several tensors, parts of rows, what is read along one axis and written along another."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from .cases import case
from .inputs import distinct, normal, rms_norm, scaled


@case("kernels", "group_norm_channels_last")
def group_norm_channels_last(device: str, dtype: torch.dtype):
    new, images = normal(device, dtype), scaled(device, 16, 2)
    x = new(images, 320, 64, 64).to(memory_format=torch.channels_last)
    return (lambda x, weight, bias: F.silu(F.group_norm(x, 32, weight, bias))), (x, new(320), new(320))


@case("kernels", "likeliest_token")
def likeliest_token(device: str, dtype: torch.dtype):
    """The logit that is largest after a soft cap, and how likely it is."""
    new, rows = normal(device, dtype), scaled(device, 512, 64)
    classes = scaled(device, 128256, 32064)

    def fn(logits):
        capped = torch.tanh(logits.float() / 30) * 30
        return capped.argmax(-1), (capped.amax(-1) - capped.logsumexp(-1)).exp()

    return fn, (torch.cat([distinct(new(rows, 256)), new(rows, classes - 256).clamp(-5, 5)], -1),)


@case("kernels", "few_classes_loss")
def few_classes_loss(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 4 << 20, 1 << 18)
    target = torch.randint(0, 10, (rows,), device=device)
    return (lambda x, t: F.cross_entropy(x.float(), t)), (new(rows, 10), target)


@case("kernels", "class_overlap")
def class_overlap(device: str, dtype: torch.dtype):
    """How little each class of an image's pixels overlaps with its target (Milletari et al., 2016)."""
    new, images = normal(device, dtype), scaled(device, 16, 2)

    def fn(logits, target):
        p, t = logits.float().softmax(1), target.float()
        shared, together = (p * t).sum((0, 2, 3)), p.sum((0, 2, 3)) + t.sum((0, 2, 3))
        return 1 - (2 * shared + 1) / (together + 1)

    return fn, (new(images, 4, 512, 512), new(images, 4, 512, 512).abs())


@case("kernels", "clipped_step", dtypes=("fp32",))
def clipped_step(device: str, dtype: torch.dtype):
    """A step of momentum for eight matrices and their biases, of gradients together no longer than one, in place."""
    new, size = normal(device, dtype), scaled(device, 2048, 512)
    shapes = [(size * (1 + k % 3), size) for k in range(8)] + [(size,) for _ in range(8)]

    def fn(params, grads, momenta):
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        clipped = torch._foreach_mul(grads, (1 / (norm + 1e-6)).clamp(max=1))
        torch._foreach_mul_(momenta, 0.9)
        torch._foreach_add_(momenta, clipped)
        torch._foreach_add_(params, momenta, alpha=-1e-3)
        return norm

    return fn, tuple([new(*s) for s in shapes] for _ in range(3))


@case("kernels", "partial_rope")
def partial_rope(device: str, dtype: torch.dtype):
    """Normalised queries and keys of which a half of each head is turned."""
    new, length = normal(device, dtype), scaled(device, 4096, 512)

    def turned(x, weight, cos, sin):
        x = rms_norm(x, weight)
        a, b, rest = x[..., :32], x[..., 32:64], x[..., 64:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def fn(q, k, weights, cos, sin):
        return turned(q, weights[0], cos, sin), turned(k, weights[1], cos, sin)

    angle = new(1, length, 1, 32)
    return fn, (new(4, length, 32, 128), new(4, length, 8, 128), new(2, 128), angle.cos(), angle.sin())


@case("kernels", "image_overlap")
def image_overlap(device: str, dtype: torch.dtype):
    """Overlap of each class with its target in each image, and the cross-entropy of the same pixels."""
    new, images = normal(device, dtype), scaled(device, 32, 4)
    target = torch.randint(0, 19, (images, 256, 256), device=device)

    def fn(logits, target):
        p, t = logits.float().softmax(1), F.one_hot(target, 19).permute(0, 3, 1, 2).float()
        overlap = (2 * (p * t).sum((2, 3)) + 1) / ((p + t).sum((2, 3)) + 1)
        return F.cross_entropy(logits.float(), target) + 1 - overlap.mean()

    return fn, (new(images, 19, 256, 256), target)


@case("kernels", "channels_to_rows")
def channels_to_rows(device: str, dtype: torch.dtype):
    """A convolution's channels as rows that are normalised, as a stage of ConvNeXt begins (Liu et al., 2022)."""
    new, images = normal(device, dtype), scaled(device, 64, 4)

    def fn(x, weight, bias):
        return F.layer_norm(x.permute(0, 2, 3, 1), (192,), weight, bias)

    return fn, (new(images, 192, 56, 56), new(192), new(192))


@case("kernels", "causal_convolution")
def causal_convolution(device: str, dtype: torch.dtype):
    """Four steps of each channel, as before a state-space model's scan (Gu and Dao, 2023)."""
    new, length = normal(device, dtype), scaled(device, 2048, 512)

    def fn(x, weight, bias):
        steps = F.pad(x.transpose(1, 2), (3, 0))
        return F.silu(F.conv1d(steps, weight, bias, groups=weight.shape[0])).transpose(1, 2)

    return fn, (new(8, length, 2048), new(2048, 1, 4), new(2048))


@case("kernels", "mixture_sum")
def mixture_sum(device: str, dtype: torch.dtype):
    """Two experts' results for each token, weighted and added to what came in."""
    new, tokens = normal(device, dtype), scaled(device, 8192, 512)

    def fn(results, weights, residual):
        return (results * weights[..., None]).sum(1) + residual

    return fn, (new(tokens, 2, 4096), new(tokens, 2), new(tokens, 4096))
