"""Still more of the suite ``kernels``: rows of few elements, groups of neighbouring channels, places of extremes, steps
of several tensors."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from .cases import case
from .inputs import distinct, normal, scaled


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
