"""Functions that lower to one kernel, with inputs: the shapes of work that the generator knows, at awkward sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from rooffuse.passes.philox import philox
from torch import Tensor

from . import length_cases, rotary_cases, scan_cases, tile_cases  # noqa: F401  (fill the table)
from .case_table import CASES, FLOATS, INTEGERS, RAGGED, case, integers
from .row_parts import (
    best_groups,
    gates,
    halves_of_norm,
    layer_norm,
    nested_groups,
    normed_heads,
    pairs_of_softmax,
    quantised,
    with_sink,
)


def rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return total, total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor of two values a row, one of what their sum divides, and the rows' places."""
    both = torch.cat([x.amax(-1, True), x.exp().sum(-1, True)], -1)
    return both / both.sum(-1, keepdim=True), torch.cat([x.argmax(-1, True), x.argmin(-1, True)], -1) + 1


def windows(x: Tensor) -> Tensor:
    """Windows of 2 by 3 of images in channels-last layout."""
    n, h, w, c = x.shape
    return x.view(n, h // 2, 2, w // 3, 3, c).transpose(2, 3).contiguous()


def in_threes(x: Tensor) -> Tensor:
    """Elements of padded rows that lie side by side, each with a computation of its own."""
    padded = F.pad(x, (8, 8))
    return torch.stack([padded[:, ::3] * 2 + 1, padded[:, 1::3] * 3 + 1, padded[:, 2::3] * 3 + 4], -1)


def few(op: str) -> Callable[[Tensor], Tensor]:
    """Rows of 33 elements, each of which is reduced from three."""
    def fn(x: Tensor) -> Tensor:
        return getattr(x > 0 if op in ("any", "all") else x, op)(1).float().exp().sum(-1)

    return fn


def rope(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = q.shape[-1] // 2
    return q * cos + torch.cat([-q[..., half:], q[..., :half]], -1) * sin


def recurrence(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """A state space model's loop: what is read of its state at each step."""
    state, read = torch.zeros_like(a[:, 0]), []
    for t in range(a.shape[1]):
        state = a[:, t] * state + b[:, t]
        read.append((c[:, t, None] * state).sum(-1))
    return torch.stack(read, 1)


def label_log_probability(x: Tensor, labels: Tensor) -> Tensor:
    return F.log_softmax(x, -1).gather(-1, labels[:, None])[:, 0]


# rows: several reductions in one kernel, and what is stored between and after them
for n in RAGGED:
    big = n > 1000
    case(f"softmax_row_{n}", lambda x: F.softmax(x, -1), (3, n), heavy=big)
    case(f"layer_norm_{n}", layer_norm, (3, n), heavy=big)
    case(f"statistics_{n}", lambda x: (x.var(-1, correction=0), x.amax(-1), x.mean(-1)), (3, n), heavy=big)
    case(f"argmax_row_{n}", lambda x: x.argmax(-1), (3, n), heavy=big)
    case(f"pointwise_{n}", lambda x, y: (x * 2 + y).relu(), (3, n), (n,), heavy=big)
    case(f"sum_all_{n}", lambda x: x.sum(), (n,), heavy=big)
    # columns: memory runs along a parallel axis
    case(f"softmax_column_{n}", lambda x: F.softmax(x, 0), (n, 19), heavy=big)
    case(f"sum_column_{n}", lambda x: x.sum(0), (n, 131), heavy=big)
    case(f"argmin_column_{n}", lambda x: (x.argmin(0), x.amin(0)), (n, 17), heavy=big)
    case(f"transpose_{n}", lambda x: x.t().contiguous() + 1, (n, 5), heavy=big)
# rows of which a multiprocessor goes through one at a time
case("softmax_70001", lambda x: F.softmax(x, -1), (5, 70001), heavy=True)
case("layer_norm_70001", layer_norm, (5, 70001), heavy=True)
case("entropies_70001", lambda x, y: ((p := F.log_softmax(x, -1)).exp() * (p - F.log_softmax(y, -1))).sum(-1),
     (5, 70001), (5, 70001), heavy=True)
for n in (7, 33, 300):
    case(f"label_log_probability_{n}", label_log_probability, (5, n), integers(n, 5))
    case(f"sum_ends_{n}", lambda x: x.sum((0, 2)), (3, n, 5))
    case(f"sum_middle_{n}", lambda x: x.sum(1, keepdim=True), (3, n, 5))
    case(f"mean_two_{n}", lambda x: x.mean((1, 2)), (4, n, 3))
    case(f"norm_over_two_{n}", lambda x: (x - x.mean((1, 2), keepdim=True)) * 2, (4, n, 3))
    case(f"softmax_middle_{n}", lambda x: F.softmax(x, 1), (3, n, 20))
    case(f"column_with_row_weight_{n}", lambda x, w: x.sum(0) * w.sum(), (n, 16), (n,))
case("sum_to_scalar_of_three", lambda x: x.sum(), (3, 5, 7))
case("cross_row_and_total", lambda x: (x.sum(-1), (x * x).sum(-1)), (9, 40))
case(
    "masked_softmax",
    lambda x: F.softmax(x.masked_fill(torch.ones(13, 13).triu(1).bool(), float("-inf")), -1),
    (2, 13, 13),
)
case("residual_rms_norm", rms_norm, (6, 64), (6, 64), (64,))
case("rope", rope, (2, 3, 5, 16), (5, 16), (5, 16))
case("constants_with_their_sum", lambda x: (torch.zeros_like(x), torch.zeros_like(x).sum(0)), (5, 40))
case("two_sizes", lambda x, y: (x * 2, y.exp()), (5, 6), (7,))
case("two_row_lengths", lambda x, y: (x.exp(), y + 1), (5, 6), (7, 9))

# index maps
case("gather_in_a_pad", lambda x, i: F.pad(x[:, i[:, None] + torch.arange(5) * 3], (1, 9)),
     (3, 20), integers(8, 5))
case("concat", lambda x, y: torch.cat([x, y[:, 1:], x * 2], 1), (5, 3), (5, 4))
case("concat_types", lambda x, y: torch.cat([x, y]), (5, 3), integers(9, 2, 3))
case("concat_then_softmax", lambda x, y: F.softmax(torch.cat([x, y], -1), -1), (5, 33), (5, 4))
case("stack", lambda x, y: torch.stack([x, y, x + y], 1), (5, 3), (5, 3))
case("stack_sums", lambda x, y: torch.stack([x.sum(-1), (x * y).sum(-1), y.amax(-1)]), (5, 33), (5, 33))
case("stack_interleaved", lambda x, y: torch.stack([x * y, x + y], -1).flatten(-2), (5, 6), (5, 6))
case("stack_of_products", lambda x: torch.stack(  # of the numbers of a normalised row, as spherical harmonics are
    [(n := F.normalize(x, dim=-1)).select(-1, 0) * n.select(-1, 1), n.select(-1, 1) * n.select(-1, 2)], -1), (2, 50, 3))
case("concat_row_and_products", lambda x: torch.cat(
    [n := F.normalize(x, dim=-1), (n[:, 0] * n[:, 1])[:, None], (n[:, 0] * n[:, 2])[:, None]], -1), (70, 5))
case("stack_of_different_rows", lambda x, y: torch.stack([x.sum(-1), y.amax(-1)], -1), (50, 3), (50, 5))
case("stack_of_steps", recurrence, (2, 12, 5, 3), (2, 12, 5, 3), (2, 12, 3))
case("stack_of_concats", lambda x, y: torch.stack([torch.cat([x, y]), torch.cat([y * 2, x])], 1), (5, 3), (2, 3))
case("concat_first", lambda x, y: torch.cat([x, y * 2, x + 1], 0), (5, 3, 2), (1, 3, 2))
case("concat_middle", lambda x, y: torch.cat([x, y * 2, x + 1], 1), (5, 3, 2), (5, 4, 2))
case("concat_last", lambda x, y: torch.cat([x, y * 2, x + 1], -1), (5, 3, 2), (5, 3, 17))
case("concat_with_itself", lambda x: torch.cat([x.exp(), x, x.exp()], 1), (5, 3))
case("concat_expanded", lambda x, y: torch.cat([x.expand(5, 3), y, (y[:1] + x).expand(2, 3)]), (3,), (4, 3))
case("concat_promoted", lambda x, y: torch.cat([x.half(), y * 2, x > 0], 1).double(), (5, 3), integers(9, 5, 2))
case("concat_promoted_output", lambda x, y: torch.cat([x, y, x > 0], 1),
     lambda: torch.randn(5, 3).bfloat16(), lambda: torch.randn(5, 2).half())
case("concat_own_nests", lambda x, y: torch.cat([x.mean(0), y.t().sum(-1), x[0]]), (9, 5), (33, 4))
case("concat_permuted", lambda x, y: torch.cat([x, y + 1], 1).permute(2, 0, 1).contiguous(), (5, 3, 2), (5, 4, 2))
case("concat_stored_and_read", lambda x, y: (c := torch.cat([x, y * 2], 1), c * c), (5, 3), (5, 4))
case("concat_of_empty", lambda x, y: torch.cat([torch.zeros(0), x, y + 1], 1), (5, 3), (5, 4))
case("slices_of_rows", extremes, (5, 33))
case("slices_of_halves", lambda x: (x.sum(-1), torch.cat([x.exp(), x], -1) * 2), (5, 33))
case("slices_transposed", lambda x: torch.stack([x.amax(-1), x.amin(-1)], -1).t().contiguous() * 3, (5, 33))
case("slices_gathered", lambda x: x.gather(1, torch.cat([x.argmax(1, True), x.argmin(1, True)], 1)).exp(), (5, 33))
case("slices_of_types", lambda x: torch.stack([x.amax(-1), x.sum(-1)], -1).bfloat16() > 1, (5, 33))
for op in ("sum", "amax", "amin"):
    case(f"short_loops_{op}", lambda x, y, op=op: getattr(torch.where(y[..., None] > 0, x, y[..., None]), op)((1, 2)),
         (5, 8, 33), (5, 8))
    case(f"short_loops_{op}_nan", lambda x, y, op=op: getattr(x + y[..., None], op)((1, 2)), (5, 8, 33),
         lambda: torch.randn(5, 8).masked_fill(torch.arange(40).view(5, 8) == 11, float("nan")))
case("short_loops_whole", lambda x, y: (x + y[..., None]).amax((1, 2)), integers(99, 5, 8, 33), integers(9, 5, 8))
case("two_lanes", lambda x, y: x[..., None] * y, (5, 40), (5, 40, 2))
case("three_lanes", lambda x, y: (x[..., None] + y, y.exp()), (5, 9), (5, 9, 3))
case("nearest", lambda x, y: F.interpolate(x, scale_factor=2) + y, (2, 3, 5, 4), (2, 3, 10, 8))
case("nearest_uneven", lambda x: F.interpolate(x, size=(7, 12)) * 2, (2, 3, 5, 4))
for op in ("sum", "mean", "prod", "amax", "amin", "any", "all"):
    case(f"few_{op}", few(op), (5, 3, 33))
case("pad", lambda x: F.pad(x, (1, 2, 3, 0), value=2.5) * 2, (5, 3))
case("pad_negative", lambda x: F.pad(x, (-1, 2, 1, -2)), (5, 7))
case("pad_few_channels", lambda x: F.pad(x, (0, 1, 2, -1), value=2.0), (9, 9, 8, 3))
case("pad_lowest", lambda x: F.pad(x, (1, 2), value=-float("inf")).unfold(1, 3, 1).amax(-1), (5, 33))
case("pad_nan", lambda x: F.pad(x, (1, 2), value=float("nan")), (5, 3))
case("pad_negative_zero", lambda x: 1 / F.pad(x.abs(), (1, 2), value=-0.0), (5, 3))
case("pad_inexactly", lambda x: F.pad(x.float(), (1, 2), value=0.1), lambda: torch.randn(5, 33).bfloat16())
case("pad_index", lambda x, i: x[F.pad(i, (1, 1), value=-1)], (5, 3), integers(5, 7))
case("pad_index_within", lambda x, i: F.pad(x[F.pad(i, (1, 1), value=-1)], (0, 0, 2, 2)), (5, 3), integers(5, 7))
case("short_axis_overwritten", lambda x, y, z: torch.stack([x, y], -1).select_scatter(z, -1, 1), (5, 3), (5, 3), (5, 3))
case("short_axis_of_signed_zeros", lambda x: torch.stack([x * 0 + 0.0, x.where(x > 9, -0.0)], -1).reciprocal(), (5, 3))
case("pad_truth", lambda x: F.pad(x > 0, (1, 2), value=True), (5, 3))
case("pad_bytes", lambda i: F.pad(i, (1, 2), value=255).int() + 1, integers(9, 5, 9, dtype=torch.uint8))
case("pad_images", lambda x: F.pad(x, (0, 0, 1, 1, 1, 1)).relu(), (8, 9, 9, 3))
case("pad_in_threes", in_threes, (70, 8))
case("pad_away", lambda x: F.pad(x, (-3, 4)), (5, 3))
case("slice_steps", lambda x: x[1:9:3, ::2] * 2, (11, 7))
case("slice_from_end", lambda x: x[-4:-1] + x[:3], (11, 7))
case("flip", lambda x: x.flip((0, 1)) - x, (5, 7))
case("roll", lambda x: x.roll(2, 0) - x.roll((-3, 1), (1, 0)), (5, 7))
case("roll_flat", lambda x: x.roll(11) + x.roll(-40), (5, 7))
case("roll_of_normalised", lambda x: windows(layer_norm(x).roll((3, -2), (1, 2))), (2, 6, 6, 9))
case("repeat", lambda x: x.repeat(3, 2) + 1, (5, 7))
case("select", lambda x: x[2] * x[-1], (5, 7))
case("diagonal", lambda x: x.diagonal(1, 0, 2) * 2, (5, 3, 7))
case("unfold", lambda x: x.unfold(1, 3, 2) * 2, (5, 9))
case("split", lambda x: torch.split(x, [2, 3, 4], 1)[1] * x.unbind(1)[0][:, None], (5, 9))
case("reshape_through", lambda x: (x.reshape(6, 10).t() + 1).reshape(4, 15), (3, 4, 5))
case("reshape_prime", lambda x: x.reshape(7, 9).t().contiguous().reshape(3, 21).exp(), (9, 7))
case("permuted", lambda x: x.permute(2, 0, 1).contiguous() * 2, (4, 5, 6))
case("expanded", lambda x: x[:, None].expand(5, 4, 7).contiguous() + 1, (5, 7))
case("triangle", lambda x: x.tril(-1) + x.triu(2), (6, 8))
case("diagonal_scatter", lambda x, y: torch.diagonal_scatter(x * 2, y, 1, 0, 2), (5, 3, 7), (3, 5))
case("diagonal_scatter_below", lambda x, y: torch.diagonal_scatter(x, y, -2) + 1, (6, 8), (4,))
case("embedding", lambda w, i: F.embedding(i, w) * 2, (10, 6), integers(10, 3, 4))
case("index_two", lambda x, i, j: x[i, :, j] + 1, (5, 6, 7), integers(5, 3, 1, low=-5), integers(7, 4, low=-7))
case("index_middle", lambda x, i: x[:, i] * 2, (5, 6, 7), integers(6, 3, 2, low=-6))
case("one_of_each_row_beside_it", lambda x, i: (x.softmax(-1), x.softmax(-1).gather(1, i)), (5, 33),
     integers(33, 5, 1))
case("gather", lambda x, i: x.gather(1, i) + 1, (5, 6), integers(6, 5, 9))
case("index_select", lambda x, i: x.index_select(1, i) + 1, (5, 6), integers(6, 4))
case("arange", lambda x: x + torch.arange(2, 16, 2), (3, 7))
case("arange_floats", lambda x: x * torch.arange(0, 1, 0.125), (3, 8))
case("arange_as_index", lambda w: F.embedding((torch.arange(2, 42) * 3 - 5).clamp(min=0) % 7, w) * 2, (7, 5))
case("arange_divided", lambda x: x[:, (torch.arange(14) // 2 + 1).clamp(max=6)] + 1, (3, 7))
case("arange_narrow", lambda x: x * (torch.arange(7, dtype=torch.int32) * 2**30), (3, 7))
case("arange_of_fractions", lambda x: x * torch.arange(0.5, 5, 1.5, dtype=torch.int64), (3, 5))
case("scalar", lambda x: x * 2 + 1, ())
case("scalar_and_row", lambda x, y: x * y + y.sum(), (), (9,))

# windows, their gradients, and tables that are searched
case("max_pool", lambda x: F.max_pool2d(x.relu(), 3, 2, 1), (2, 3, 11, 14))
case("max_pool_places", lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), (2, 3, 11, 14))
case("max_pool_volume", lambda x: F.max_pool3d(x, 2) + 1, (2, 6, 8, 4))
case("average_pool", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (2, 3, 11, 14))
case("average_pool_parts", lambda x: F.adaptive_avg_pool2d(x, (3, 7)).exp(), (2, 3, 12, 14))
case("average_pool_gradient", lambda g: torch.ops.aten.avg_pool2d_backward(
    g, torch.empty(2, 3, 11, 14), [3, 3], [2, 2], [1, 1], False, True, None), (2, 3, 6, 7))
case("max_pool_gradient", lambda g, i: torch.ops.aten.max_pool2d_with_indices_backward(
    g, torch.empty(1, 1, 11, 14), [3, 3], [2, 2], [1, 1], [1, 1], False, i), (1, 1, 6, 7),
    lambda: F.max_pool2d(torch.randn(1, 1, 11, 14), 3, 2, 1, return_indices=True)[1])
case("convolved_by_channel", lambda x, w, b: F.silu(F.conv1d(x, w, b, padding=3, groups=6)[..., :-3]), (2, 6, 33),
     (6, 1, 4), (6,))
case("upsampled", lambda x, y: F.interpolate(x, scale_factor=2) + y, (2, 3, 5, 7), (2, 3, 10, 14))
case("upsampled_unevenly", lambda x: F.interpolate(x, size=(8, 9)) * 2, (2, 3, 5, 7))
case("upsampled_bilinear", lambda x: F.interpolate(x, size=(10, 9), mode="bilinear") * 2, (2, 3, 5, 7))
case("bucketize", lambda x, edges: torch.bucketize(x, edges), (5, 33), lambda: torch.randn(13).sort().values)
case("searchsorted", lambda rows, x: torch.searchsorted(rows, x, right=True), lambda: torch.randn(5, 9).sort().values,
     (5, 33))
case("largest_and_place", lambda x: x.max(-1), (5, 33))
case("numbers_over_nan", lambda x, y: (torch.fmax(x.log(), y.log()), torch.fmin(x, y.log())), (5, 33), (5, 33))
case("one_value_like", lambda x: (x - torch.full_like(x, 2.5)) * torch.eye(7), (7, 7))

# random bits
case("philox", lambda seeds: philox(seeds, 1, [5, 33], 0), integers(2**62, 3, low=-(2**62)))
case("philox_transposed", lambda seeds, x: (
    philox(seeds, 0, [7, 9], 1).t() + x), integers(2**62, 1), integers(9, 9, 7, dtype=torch.int32))

# layouts
_LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.randn(19, 33).t(),
    "expanded": lambda: torch.randn(1, 19).expand(33, 19),
    "stepped": lambda: torch.randn(99, 40)[1::3, 2::2],
    "misaligned": lambda: torch.randn(800)[3 : 3 + 33 * 19].view(33, 19),
    "column_of_one": lambda: torch.randn(33, 1).expand(33, 19),
}
for layout, make in _LAYOUTS.items():
    case(f"{layout}_softmax", lambda x: F.softmax(x, -1), make)
    case(f"{layout}_column_sum", lambda x: (x * x).sum(0), make)
    case(f"{layout}_pointwise", lambda x: x * 2 + 1, make)
    case(f"{layout}_argmax", lambda x: x.argmax(0), make)

# types
for dtype in FLOATS:
    kind = str(dtype)[6:]
    case(f"pointwise_{kind}", lambda x: F.gelu(x) * torch.sigmoid(x), lambda d=dtype: torch.randn(5, 33).to(d))
    case(f"softmax_{kind}", lambda x: F.softmax(x, -1), lambda d=dtype: torch.randn(5, 65).to(d))
    case(f"mean_{kind}", lambda x: x.mean(-1), lambda d=dtype: torch.randn(5, 65).to(d))
    case(f"to_integer_{kind}", lambda x: x.to(torch.int32), lambda d=dtype: 50 * torch.randn(5, 33).to(d))
    case(f"to_truth_{kind}", lambda x: x.relu().bool(), lambda d=dtype: torch.randn(5, 33).to(d))
for dtype in INTEGERS:
    kind = str(dtype)[6:]
    low = 0 if dtype == torch.uint8 else -100
    case(
        f"pointwise_{kind}",
        lambda x, y: (x * y + x, x // y, x % y, x & y, x > y),
        integers(100, 5, 33, low=low, dtype=dtype),
        integers(9, 5, 33, low=1, dtype=dtype),
    )
    case(f"sum_{kind}", lambda x: (x.sum(-1), x.amax(-1), x.amin(-1)), integers(100, 5, 33, low=low, dtype=dtype))
    case(f"arg_{kind}", lambda x: (x.argmax(-1), x.argmin(-1)), integers(100, 5, 33, low=low, dtype=dtype))
    case(f"to_float_{kind}", lambda x: x.float() / 3, integers(100, 5, 33, low=low, dtype=dtype))
case(
    "truth",
    lambda x, y: (x & y, x | y, x ^ y, ~x),
    integers(2, 5, 9, dtype=torch.bool),
    integers(2, 5, 9, dtype=torch.bool),
)
case("truth_reduced", lambda x: (x.any(-1), x.all(-1), x.sum(-1)), integers(2, 9, 3, dtype=torch.bool))

# sums along rows and down columns of one input
def norm_backward(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, parts: int) -> tuple[Tensor, ...]:
    normal = (x - mean) * rstd
    gw = g * weight
    gx = rstd * (gw - gw.mean(-1, keepdim=True) - normal * (gw * normal).mean(-1, keepdim=True))
    cut = (parts, -1, x.shape[-1])
    return gx, (g * normal).view(cut).sum(1, dtype=torch.float32), g.view(cut).sum(1, dtype=torch.float32)


def centred_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of a column of what needs its row's sum, scaled by what lies along the columns."""
    centred = x - x.mean(-1, keepdim=True)
    return centred, centred.sum((0, 1)) * torch.arange(x.shape[-1])


for rows, parts, size in ((8, 2, 65), (24, 3, 1000), (6, 6, 7), (640, 2, 31)):
    case(f"norm_backward_{rows}_{size}", lambda g, x, m, r, w, parts=parts: norm_backward(g, x, m, r, w, parts),
         (rows, size), (rows, size), (rows, 1), (rows, 1), (size,))
case("norm_backward_bfloat16", lambda g, x, m, r, w: norm_backward(g.float(), x.float(), m, r, w.float(), 4),
     lambda: torch.randn(16, 130).bfloat16(), lambda: torch.randn(16, 130).bfloat16(), (16, 1), (16, 1),
     lambda: torch.randn(130).bfloat16())
case("centred_columns", centred_columns, (3, 10, 33))
case("columns_that_need_their_sums", lambda x: (x - x.mean(0), (x - x.mean(0)).square().sum(0), x.sum(-1)), (6, 40))
case("columns_halved_and_rows_halved", lambda x: (x.sum(-1) / 2, x.sum(0) / 2, x.sum(0) * x[0]), (9, 40))
case("windows_that_overlap", lambda x: (x.unfold(1, 3, 2).sum(-1), x.cos(), x.sum(0)), (5, 6))
case("equal_rows_and_their_columns", lambda x: (x.expand(6, 40).gt(0).float().mean(-1), *(
    f(x.expand(6, 40), 0) for f in (torch.amax, torch.mean))), (1, 40))
case("row_and_column_extremes", lambda x: (x / x.abs().amax(-1, keepdim=True), *(
    f(x.view(4, 5, 77), 1) for f in (torch.amax, torch.amin, torch.sum))), (20, 77))
case("row_and_column_sums", lambda x: (x.sum(-1), x.view(4, 5, 77).sum(1)), (20, 77))
case("row_maximum_and_column_sums", lambda x: (x.softmax(-1), x.exp().sum(0)), (12, 50))
case("column_sums_beside_what_waits_in_a_row", lambda x, s: ((y := x.exp() * s).softmax(-1), y.logsumexp(0)), (16, 16),
     (8, 1, 1))

# products with one row
def normed_gate(x: Tensor, weight: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
    return F.silu(h @ gate.t()) * (h @ up.t())


def packed_int4(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    low, high = (packed & 15).to(torch.int8) - 8, (packed >> 4).to(torch.int8) - 8
    groups = torch.stack((low, high), -1).view(packed.shape[0], scales.shape[1], -1).to(x.dtype)
    return x @ (groups * scales[..., None]).view(packed.shape[0], -1).t()


for size in (2, 31, 257, 1000):
    case(f"one_row_{size}", lambda x, w: x @ w.t(), (1, size), (19, size))
    case(f"one_row_of_columns_{size}", lambda x, w: (x @ w).relu(), (1, 19), (19, size))
case("one_row_added", lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=2.0), (33,), (1, 65), (65, 33))
case("one_row_bfloat16", lambda x, w: x @ w.t(), lambda: torch.randn(1, 300).bfloat16(),
     lambda: torch.randn(40, 300).bfloat16())
case("one_row_of_int8", lambda x, w, s: (x @ w.to(x.dtype).t()) * s, (1, 200), integers(100, 33, 200, low=-100,
                                                                                        dtype=torch.int8), (33,))
case("one_row_of_int4", packed_int4, (1, 256), integers(256, 33, 128, dtype=torch.uint8), (33, 4))
case("normed_gate", normed_gate, (1, 96), (96,), (77, 96), (77, 96))

# products with several rows
def half(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape).bfloat16() / shape[-1] ** 0.5


def gated(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(x @ gate.t()) * (x @ up.t())


for rows, inner, columns in ((2, 64, 32), (37, 65, 50), (130, 33, 257)):
    case(f"product_{rows}_{inner}_{columns}", lambda x, w: (x @ w.t()).relu(), half(rows, inner),
         half(columns, inner))
case("product_of_columns", lambda x, w: (x @ w) * 2, half(33, 70), half(70, 40))
case("product_added", lambda b, x, w, r: torch.addmm(b, x, w).exp() + r, half(40), half(33, 70), half(70, 40),
     half(33, 40))
case("product_float16", lambda x, w: (x @ w.t()) + 1, lambda: torch.randn(20, 96).half() / 9,
     lambda: torch.randn(24, 96).half() / 9)
case("product_gated", gated, half(18, 48), half(35, 48), half(35, 48))
case("product_of_int8", lambda x, w, s: (x @ (w.to(x.dtype) * s[:, None] / 64).t()), half(5, 100),
     integers(100, 33, 100, low=-100, dtype=torch.int8), half(33))
case("product_in_blocks", lambda x, w, r: (x @ w.t()).view(4, 9, 30) + r, half(36, 64), half(30, 64), half(9, 1))


# segments: reductions of parts of a row beside those of the whole row
for size, groups in ((9, 3), (16, 7), (33, 9), (128, 20), (250, 2)):
    case(f"quantised_{size}_{groups}", quantised(size), (5, size * groups), (size * groups,), heavy=size == 128)
    case(f"normed_heads_{size}_{groups}", normed_heads, (3, size * groups), (size,), heavy=size == 128)
    case(f"best_groups_{size}_{groups}", best_groups(size), (3, size * groups), heavy=size == 128)
case("quantised_one_row", quantised(12), (1, 36), (36,))
case("nested_groups", nested_groups, (2, 990))
case("quantised_bfloat16", lambda x: quantised(32)(x, x[0].exp())[0], lambda: torch.randn(4, 160).bfloat16())
case("segments_of_channels", lambda x: (F.softmax(x, 1), x.view(2, 3, 11, 20).amax(2)), (2, 33, 20))
case("segments_of_a_vector", lambda x: layer_norm(x).view(-1, 12) * x.view(-1, 12).sum(-1, keepdim=True), (36,))

# values that wait in a result, and what is known of rows and of strips of them
case("softmaxes_that_wait", lambda x, y: (F.softmax(x, -1).sigmoid(), F.softmax(y, -1).exp(), F.softmax(x * y, -1)),
     (5, 200), (5, 200))
case("column_sums_times_row_sums", lambda x, y: (x.softmax(-1), x.sum(1) * y.sum(-1, keepdim=True)),
     (2, 8, 33), (2, 33))

# columns beside sums that all of them share, and values rounded on the way
for n in (8, 700):
    case(f"shares_of_a_sum_{n}", lambda x, w: (x * (w / w.sum(0))[..., None]).sum(0), (n, 6, 70),
         lambda n=n: torch.rand(n, 6) + 0.5)
    case(f"largest_weights_{n}", lambda x, w: ((x * (w == w.amax(0))[..., None]).sum(0), w.argmax(0)), (n, 6, 70),
         (n, 6))
case("rounded_then_erf", lambda x: F.gelu((x * 3).bfloat16()), lambda: torch.randn(7, 65).log())

# cutouts: results that are a part of the rows they come from
for n in (9, 64, 301):
    case(f"with_sink_{n}", with_sink, (3, 5, n), (3,))
    case(f"halves_of_norm_{n}", halves_of_norm, (4, n), (n - 5,))
    case(f"gates_{n}", gates, (4, 4 * n), (4, n))
    case(f"pairs_of_softmax_{n}", pairs_of_softmax, (2, 3, 2 * n))
case("plane_sums_of_columns", lambda x, y: (x * y[:, None] - x.mean((1, 2), keepdim=True), y + x.sum((1, 2))[:, None]),
     (3, 6, 20), (3, 20))
case("equal_rows", lambda x: (x.exp() / x.exp().sum(0), x * x.sum(-1, keepdim=True)),
     lambda: torch.randn(13).expand(40, 13))
for n in (5, 17, 64):
    case(f"sides_along_rows_{n}", lambda x, y, w: torch.cat([x * 2, y.exp()], 1) * w + 1, (3, 4, n), (3, 2, n), (n,))
    case(f"woven_rows_{n}", lambda x, y, w: torch.stack([torch.cat([x, y], 1), torch.cat([y, x], 1)], 2) * w, (3, 4, n),
         (3, 2, n), (n,))
case("rows_cut_out", lambda x: (F.softmax(x, -1), F.softmax(x, -1)[2:, 1:7].t() + 1), (6, 33))
case("columns_cut_out", lambda x: F.softmax(x, 0)[1:-1].exp(), (70, 19))
case("rows_of_two", lambda x, y: (x - x.mean(-1, keepdim=True)) * y.std(-1, keepdim=True), (7, 65), (7, 65))

BY_NAME = {c.name: c for c in CASES}
assert len(BY_NAME) == len(CASES)
