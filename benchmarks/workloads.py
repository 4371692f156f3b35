"""The suite ``kernels``: memory-bound work that models are full of. CPU shapes are smaller than GPU shapes."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from .cases import case
from .inputs import distinct, normal, rms_norm, scaled


@case("kernels", "residual_rmsnorm")
def residual_rmsnorm(device: str, dtype: torch.dtype):
    new = normal(device, dtype)
    rows = scaled(device, 8192, 1024)

    def fn(x, residual, weight):
        h = x + residual
        return h, rms_norm(h, weight)

    return fn, (new(rows, 4096), new(rows, 4096), new(4096))


@case("kernels", "layernorm_gelu")
def layernorm_gelu(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 4096, 512)
    return (lambda x, w, b: F.gelu(F.layer_norm(x, (8192,), w, b))), (new(rows, 8192), new(8192), new(8192))


@case("kernels", "softmax")
def softmax(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 2048, 128)
    return (lambda x: F.softmax(x, -1)), (new(rows, 32768),)


@case("kernels", "cross_entropy")
def cross_entropy(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 4096, 64)
    classes = 128256
    target = torch.randint(0, classes, (rows,), device=device)
    return (lambda x, t: F.cross_entropy(x.float(), t)), (new(rows, classes), target)


@case("kernels", "silu_mul")
def silu_mul(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 8192, 512)
    return (lambda g, u: F.silu(g) * u), (new(rows, 14336), new(rows, 14336))


@case("kernels", "rope_qk")
def rope_qk(device: str, dtype: torch.dtype):
    new, length = normal(device, dtype), scaled(device, 4096, 512)

    def rotate(x):
        a, b = x.chunk(2, -1)
        return torch.cat((-b, a), -1)

    def fn(q, k, cos, sin):
        return q * cos + rotate(q) * sin, k * cos + rotate(k) * sin

    batch = scaled(device, 4, 1)
    return fn, (new(batch, 32, length, 128), new(batch, 8, length, 128), new(length, 128), new(length, 128))


@case("kernels", "bias_gelu_residual")
def bias_gelu_residual(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 8192, 1024)
    return ((lambda x, b, r: F.gelu(x + b, approximate="tanh") + r),
            (new(rows, 4096), new(4096), new(rows, 4096)))


@case("kernels", "layernorm_backward")
def layernorm_backward(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 8192, 1024)

    def fn(g, x, w, mean, rstd):
        return torch.ops.aten.native_layer_norm_backward(g, x, [4096], mean, rstd, w, w, [True, True, True])

    x = new(rows, 4096)
    mean = x.float().mean(-1, keepdim=True)
    rstd = torch.rsqrt(x.float().var(-1, keepdim=True, unbiased=False) + 1e-5)
    if dtype == torch.bfloat16 and device == "cpu":
        mean, rstd = mean.to(dtype), rstd.to(dtype)
    return fn, (new(rows, 4096), x, new(4096), mean, rstd)


@case("kernels", "adamw", dtypes=("fp32",))
def adamw(device: str, dtype: torch.dtype):
    new, count = normal(device, torch.float32), scaled(device, 64 << 20, 4 << 20)

    def fn(p, g, m, v):
        m.mul_(0.9).add_(g, alpha=0.1)
        v.mul_(0.999).addcmul_(g, g, value=0.001)
        p.mul_(1 - 1e-5).addcdiv_(m, v.sqrt() + 1e-8, value=-1e-3)

    return fn, (new(count), new(count), new(count), new(count).abs())


@case("kernels", "linear_int8_m1", dtypes=("bf16",))
def linear_int8(device: str, dtype: torch.dtype):
    new = normal(device, dtype)
    weight = torch.randint(-127, 127, (14336, 4096), device=device, dtype=torch.int8)
    return ((lambda x, w, s: F.linear(x, w.to(x.dtype)) * s), (new(1, 4096), weight, new(14336)))


@case("kernels", "linear_int4_m1", dtypes=("bf16",))
def linear_int4(device: str, dtype: torch.dtype):
    new, group = normal(device, dtype), 128
    packed = torch.randint(0, 256, (14336, 2048), device=device, dtype=torch.uint8)
    scales = new(14336, 4096 // group)

    def fn(x, packed, scales):
        low, high = (packed & 15).to(torch.int8) - 8, (packed >> 4).to(torch.int8) - 8
        w = torch.stack((low, high), -1).view(packed.shape[0], -1, group).to(x.dtype) * scales[..., None]
        return F.linear(x, w.view(packed.shape[0], -1))

    return fn, (new(1, 4096), packed, scales)


@case("kernels", "linear_m1")
def linear_m1(device: str, dtype: torch.dtype):
    new = normal(device, dtype)
    return F.linear, (new(1, 4096), new(14336, 4096))


@case("kernels", "layernorm_linear_gelu_residual")
def layernorm_linear(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 8192, 512)

    def fn(x, residual, w, b, weight, bias):
        return F.gelu(F.linear(F.layer_norm(x, (1024,), w, b), weight, bias), approximate="tanh") + residual

    return fn, (new(rows, 1024), new(rows, 1024), new(1024), new(1024), new(1024, 1024), new(1024))


@case("kernels", "batch_norm_statistics")
def batch_norm_statistics(device: str, dtype: torch.dtype):
    new, n = normal(device, dtype), scaled(device, 64, 8)

    def fn(x, w, b):
        return F.relu(F.batch_norm(x, None, None, w, b, training=True))

    return fn, (new(n, 128, 56, 56), new(128), new(128))


@case("kernels", "group_norm_silu")
def group_norm_silu(device: str, dtype: torch.dtype):
    new, n = normal(device, dtype), scaled(device, 16, 2)
    return ((lambda x, w, b: F.silu(F.group_norm(x, 32, w, b))), (new(n, 320, 64, 64), new(320), new(320)))


@case("kernels", "entropy")
def entropy(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 1024, 64)

    def fn(logits):
        log_p = F.log_softmax(logits.float(), -1)
        return -(log_p.exp() * log_p).sum(-1)

    return fn, (new(rows, 32000),)


@case("kernels", "router_top2")
def router(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 16384, 4096)

    def fn(x):
        weights, chosen = torch.topk(F.softmax(x.float(), -1), 2, -1)
        return weights / weights.sum(-1, keepdim=True), chosen

    return fn, (distinct(new(rows, 64)),)


def _rows_of_the_table(fn: object, args: tuple[torch.Tensor, ...]) -> int:
    """Indices, the rows that they name, the weight, and the result."""
    tokens, table, weight = args
    return tokens.nbytes + weight.nbytes + 2 * tokens.numel() * table.shape[1] * table.element_size()


@case("kernels", "embedding_norm", floor=_rows_of_the_table)
def embedding_norm(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 16384, 1024)
    tokens = torch.randint(0, 32000, (rows,), device=device)
    return (lambda i, t, w: rms_norm(F.embedding(i, t), w)), (tokens, new(32000, 1024), new(1024))


@case("kernels", "column_sum")
def column_sum(device: str, dtype: torch.dtype):
    new, rows = normal(device, dtype), scaled(device, 16384, 4096)
    return (lambda x: (x.sum(0), x.amax(0))), (new(rows, 1024),)


@case("kernels", "total_mean_square")
def total_mean_square(device: str, dtype: torch.dtype):
    new, count = normal(device, dtype), scaled(device, 64 << 20, 4 << 20)
    return (lambda x, y: (x.float() - y.float()).square().mean()), (new(count), new(count))


@case("kernels", "small_mlp_tail")
def small_mlp_tail(device: str, dtype: torch.dtype):
    new = normal(device, dtype)
    return (lambda x, b: torch.tanh(x + b).square()), (new(16, 256), new(256))


