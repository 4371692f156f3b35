"""More of the suite ``kernels``: norms over channels, losses, routers, optimisers, low-precision scaling, windows,
complex numbers, gates, scans."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from .cases import case
from .inputs import distinct, normal, rms_norm, scaled

FP8_LARGEST = torch.finfo(torch.float8_e4m3fn).max


@case("kernels", "channel_norm")
def channel_norm(device: str, dtype: torch.dtype):
    new, n = normal(device, dtype), scaled(device, 64, 4)

    def fn(x, weight, bias):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-6) * weight[:, None, None] + bias[:, None, None]

    return fn, (new(n, 192, 56, 56), new(192), new(192))


@case("kernels", "batch_norm_channels_last")
def batch_norm_channels_last(device: str, dtype: torch.dtype):
    new, n = normal(device, dtype), scaled(device, 32, 4)

    def fn(x, mean, variance, weight, bias, residual):
        return F.relu(F.batch_norm(x, mean, variance, weight, bias) + residual)

    x, residual = (new(n, 256, 56, 56).to(memory_format=torch.channels_last) for _ in range(2))
    return fn, (x, new(256), new(256).abs(), new(256), new(256), residual)


@case("kernels", "qkv_norm_rope")
def qkv_norm_rope(device: str, dtype: torch.dtype):
    new, length = normal(device, dtype), scaled(device, 8192, 512)

    def fn(qkv, q_weight, k_weight, cos, sin):
        def turned(x, weight):
            x = rms_norm(x, weight)
            a, b = x.chunk(2, -1)
            return (x * cos[:, None] + torch.cat((-b, a), -1) * sin[:, None]).transpose(0, 1).contiguous()

        q, k, v = qkv.view(length, 48, 128).split([32, 8, 8], 1)
        return turned(q, q_weight), turned(k, k_weight), v.transpose(0, 1).contiguous()

    return fn, (new(length, 48 * 128), new(128), new(128), new(length, 128), new(length, 128))


@case("kernels", "causal_softmax")
def causal_softmax(device: str, dtype: torch.dtype):
    new, batch = normal(device, dtype), scaled(device, 8, 1)

    def fn(scores):
        position = torch.arange(scores.shape[-1], device=scores.device)
        later = position[:, None] < position
        return F.softmax((scores * 0.125).masked_fill(later, float("-inf")).float(), -1).to(scores.dtype)

    return fn, (new(batch, 16, 1024, 1024),)


@case("kernels", "softmax_backward")
def softmax_backward(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 8192, 1024)
    return ((lambda g, y: torch.ops.aten._softmax_backward_data(g, y, -1, y.dtype)), (new(rows, 4096), new(rows, 4096)))


@case("kernels", "bias_gelu_backward")
def bias_gelu_backward(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 8192, 1024)

    def fn(grad, x, bias):
        grad_x = torch.ops.aten.gelu_backward(grad, x + bias, approximate="tanh")
        return grad_x, grad_x.sum(0)

    return fn, (new(rows, 4096), new(rows, 4096), new(4096))


@case("kernels", "kl_divergence")
def kl_divergence(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 2048, 64)

    def fn(student, teacher):
        p, q = F.log_softmax(student.float() / 2, -1), F.log_softmax(teacher.float() / 2, -1)
        return F.kl_div(p, q, log_target=True, reduction="batchmean")

    return fn, (new(rows, 32000), new(rows, 32000))


@case("kernels", "focal_loss")
def focal_loss(device: str, dtype: torch.dtype):
    new, count = normal(device, dtype), scaled(device, 1 << 22, 1 << 17)

    def fn(logits, labels):
        logits, labels = logits.float(), labels.float()
        p = torch.sigmoid(logits)
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return ((1 - p * labels - (1 - p) * (1 - labels)).square() * loss).mean()

    return fn, (new(count, 8), (new(count, 8) > 1).to(dtype))


@case("kernels", "cosine_similarity")
def cosine_similarity(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 65536, 4096)
    return (lambda a, b: F.cosine_similarity(a.float(), b.float())), (new(rows, 768), new(rows, 768))


@case("kernels", "fp8_rows", dtypes=("bf16",))
def fp8_rows(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 8192, 1024)

    def fn(x):
        scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / FP8_LARGEST
        return (x.float() / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn), scale

    return fn, (new(rows, 4096),)


@case("kernels", "norm_fp8_groups", dtypes=("bf16",))
def norm_fp8_groups(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 8192, 512)

    def fn(x, residual, weight):
        total = x + residual
        groups = rms_norm(total, weight).view(total.shape[0], -1, 128)
        scale = groups.abs().amax(-1, keepdim=True).float().clamp(min=1e-4) / FP8_LARGEST
        return total, (groups.float() / scale).to(torch.float8_e4m3fn).view(total.shape), scale.squeeze(-1)

    return fn, (new(rows, 7168), new(rows, 7168), new(7168))


@case("kernels", "group_norm_pool")
def group_norm_pool(device: str, dtype: torch.dtype):
    new, images = normal(device, dtype), scaled(device, 64, 8)

    def fn(x, weight, bias):
        y = F.silu(F.group_norm(x, 32, weight, bias))
        return y, y.mean((2, 3))

    return fn, (new(images, 512, 32, 32), new(512), new(512))


@case("kernels", "silu_mul_fp8_blocks", dtypes=("bf16",))
def silu_mul_fp8_blocks(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 8192, 512)

    def fn(gate_up):
        gate, up = gate_up.chunk(2, -1)
        blocks = (F.silu(gate) * up).float().view(rows, -1, 128)
        scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_LARGEST
        return (blocks / scale).to(torch.float8_e4m3fn).view(rows, -1), scale.squeeze(-1)

    return fn, (new(rows, 14336),)


@case("kernels", "top_p")
def top_p(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 256, 64)

    def fn(logits):
        p = F.softmax(logits.float(), -1)
        return torch.where(torch.cumsum(p, -1) - p > 0.9, 0.0, p)

    return fn, (new(rows, 32000),)


@case("kernels", "router_groups")
def router_groups(device: str, dtype: torch.dtype):
    """Eight of 256 experts, from the best four of their eight groups."""
    new, rows = normal(device, dtype), scaled(device, 16384, 2048)

    def fn(x, bias):
        scores = x.float().sigmoid()
        choice = scores + bias
        groups = choice.view(rows, 8, 32).topk(2, -1)[0].sum(-1).topk(4, -1)[1]
        kept = torch.zeros_like(scores[:, :8]).scatter_(1, groups, 1.0).bool()
        choice = choice.masked_fill(~kept[:, :, None].expand(rows, 8, 32).reshape(rows, 256), 0.0)
        chosen = choice.topk(8, -1)[1]
        weights = scores.gather(1, chosen)
        return weights / weights.sum(-1, keepdim=True) * 2.5, chosen

    return fn, (distinct(new(rows, 256)), new(256, kind=torch.float32))


@case("kernels", "lion")
def lion(device: str, dtype: torch.dtype):
    new, count = normal(device, dtype), scaled(device, 64 << 20, 4 << 20)

    def fn(p, g, m):
        update = torch.sign(m * 0.9 + g * 0.1)
        p.mul_(0.999).add_(update, alpha=-1e-4)
        m.mul_(0.99).add_(g, alpha=0.01)

    return fn, (new(count), new(count), new(count))


@case("kernels", "adafactor", dtypes=("fp32",))
def adafactor(device: str, dtype: torch.dtype):
    new, rows = normal(device, torch.float32), scaled(device, 4096, 1024)

    def fn(p, g, r, c):
        square = g.square() + 1e-30
        r.lerp_(square.mean(-1), 0.1)
        c.lerp_(square.mean(0), 0.1)
        p.sub_(1e-3 * g * torch.rsqrt(r / r.mean())[:, None] * torch.rsqrt(c))

    return fn, (new(rows, 4096), new(rows, 4096), new(rows).abs(), new(4096).abs())


@case("kernels", "shifted_windows")
def shifted_windows(device: str, dtype: torch.dtype):
    new, n = normal(device, dtype), scaled(device, 32, 4)

    def fn(x, weight, bias):
        y = F.layer_norm(x, (96,), weight, bias).roll((-3, -3), (1, 2))
        return y.view(n, 8, 7, 8, 7, 96).permute(0, 1, 3, 2, 4, 5).reshape(-1, 49, 96)

    return fn, (new(n, 56, 56, 96), new(96), new(96))


@case("kernels", "column_moments")
def column_moments(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 16384, 4096)
    return (lambda x: torch.var_mean(x.float(), 0)), (new(rows, 2048),)


@case("kernels", "upsample_add")
def upsample_add(device: str, dtype: torch.dtype):
    new, n = normal(device, dtype), scaled(device, 32, 2)
    return ((lambda x, y: F.interpolate(x, scale_factor=2, mode="nearest") + y),
            (new(n, 128, 56, 56), new(n, 128, 112, 112)))


@case("kernels", "rope_complex")
def rope_complex(device: str, dtype: torch.dtype):
    """A rotary embedding as reference implementations write it: neighbours as complex numbers."""
    new, length = normal(device, dtype), scaled(device, 4096, 256)

    def fn(q, turns):
        pairs = torch.view_as_complex(q.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns[:, None]).flatten(-2).to(q.dtype)

    angles = torch.rand(length, 64, device=device) * 6
    return fn, (new(4, length, 32, 128), torch.polar(torch.ones_like(angles), angles))


@case("kernels", "norm_gates")
def norm_gates(device: str, dtype: torch.dtype):
    """A recurrent cell with gates from one normalised row (Ba et al., 2016)."""
    new, rows = normal(device, dtype), scaled(device, 8192, 1024)

    def fn(x, memory, weight, bias):
        into, keep, what, out = F.layer_norm(x, (4096,), weight, bias).chunk(4, -1)
        memory = keep.sigmoid() * memory + into.sigmoid() * what.tanh()
        return out.sigmoid() * memory.tanh(), memory

    return fn, (new(rows, 4096), new(rows, 1024), new(4096), new(4096))


@case("kernels", "expert_positions", dtypes=("fp32",))
def expert_positions(device: str, dtype: torch.dtype):
    """The place of each token among those of its expert, and how many there are, as a capacity is checked by."""
    tokens = scaled(device, 16384, 4096)

    def fn(expert):
        chosen = F.one_hot(expert, 64)
        return (chosen.cumsum(0) * chosen).amax(-1) - 1, chosen.sum(0)

    return fn, (torch.randint(0, 64, (tokens,), device=device),)


@case("kernels", "running_maximum")
def running_maximum(device: str, dtype: torch.dtype):
    """How far below the best so far each element is."""
    new, rows = normal(device, dtype), scaled(device, 8192, 256)
    return (lambda x: x - torch.cummax(x, -1).values), (new(rows, 4096),)


@case("kernels", "smoothed_loss")
def smoothed_loss(device: str, dtype: torch.dtype):
    """Cross-entropy with smoothed labels and a penalty on the partition function (Szegedy et al., 2016; PaLM, 2022)."""
    new, rows, words = normal(device, dtype), scaled(device, 2048, 64), scaled(device, 128256, 32000)

    def fn(logits, labels):
        wide = logits.float()
        total = torch.logsumexp(wide, -1)
        right = wide.gather(1, labels[:, None]).squeeze(1)
        return (total - 0.9 * right - 0.1 * wide.mean(-1) + 1e-4 * total.square()).mean()

    return fn, (new(rows, words), torch.randint(0, words, (rows,), device=device))


@case("kernels", "chunked_decay")
def chunked_decay(device: str, dtype: torch.dtype):
    """Queries and keys of gated linear attention, decayed from the chunk's beginning and to its end (Yang, 2024)."""
    new, chunks = normal(device, dtype), scaled(device, 1024, 32)

    def fn(q, k, gate):
        total = (F.logsigmoid(gate.float()) / 16).cumsum(1)
        return ((q * total.exp()).to(q.dtype), (k * (-total).exp()).to(k.dtype),
                (k * (total[:, -1:] - total).exp()).to(k.dtype))

    return fn, tuple(new(chunks, 64, 512) for _ in range(3))


@case("kernels", "gated_bias_backward")
def gated_bias_backward(device: str, dtype: torch.dtype):
    """What a gated activation gives back to its input, and to the bias before the split."""
    new, rows = normal(device, dtype), scaled(device, 8192, 512)

    def fn(x, bias, grad):
        gate, up = (x + bias).chunk(2, -1)
        share = gate.sigmoid()
        found = torch.cat((grad * up * share * (1 + gate * (1 - share)), grad * gate * share), -1)
        return found, found.sum(0)

    return fn, (new(rows, 8192), new(8192), new(rows, 4096))


@case("kernels", "adaptive_norm_backward")
def adaptive_norm_backward(device: str, dtype: torch.dtype):
    """A norm that each image scales and shifts its own way, as in diffusion transformers (Peebles and Xie, 2023)."""
    new, images = normal(device, dtype), scaled(device, 16, 2)

    def fn(x, scale, grad):
        _, pullback = torch.func.vjp(lambda a, s: F.layer_norm(a, (1152,)) * (1 + s[:, None]), x, scale)
        return (*pullback(grad), grad.sum(1))

    return fn, (new(images, 1024, 1152), new(images, 1152), new(images, 1024, 1152))


@case("kernels", "group_norm_backward")
def group_norm_backward(device: str, dtype: torch.dtype):
    new, images = normal(device, dtype), scaled(device, 16, 2)

    def fn(x, weight, bias, grad):
        return torch.func.vjp(lambda *a: F.group_norm(a[0], 32, *a[1:]), x, weight, bias)[1](grad)

    return fn, (new(images, 256, 32, 32), new(256), new(256), new(images, 256, 32, 32))


@case("kernels", "weighted_parts")
def weighted_parts(device: str, dtype: torch.dtype):
    """Attention's results for parts of the keys put together by their logarithms of sums (flash decoding, 2023)."""
    new, count = normal(device, dtype), scaled(device, 64, 8)

    def fn(parts, totals):
        weights = (totals - totals.logsumexp(0)).exp()
        return (parts * weights[..., None]).sum(0).to(parts.dtype)

    return fn, (new(8, count, 32, 128), new(8, count, 32).float())


@case("kernels", "pooled_relu_backward")
def pooled_relu_backward(device: str, dtype: torch.dtype):
    """The first max pooling of a residual network (He et al., 2015), with windows that overlap, and its gradient."""
    new, images = normal(device, dtype), scaled(device, 32, 4)

    def fn(x, grad):
        pooled, pullback = torch.func.vjp(lambda a: F.max_pool2d(F.relu(a), 3, 2, 1), x)
        return (pooled, *pullback(grad))

    return fn, (new(images, 64, 112, 112), new(images, 64, 56, 56))
