"""The templates that random programs are made of: a line of code each, with blanks that ``Blanks`` fills.

``{x}`` is a floating-point tensor and the current one from there on; ``{y}`` one that broadcasts with it, ``{b}`` a
mask and ``{o}`` integers that do; ``{dim}`` one of its dimensions, whose size ``{n}`` is. ``{x'}`` repeats what ``{x}``
was. A line that begins with ``!`` writes in place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    text: str
    weight: float


GROUPS: dict[float, str] = {
    # pointwise, with broadcasting and mixed types
    3.0: """
{x} + {y}
{x} * {y}
{x} - {y} * {num}
{x} * {num} + {num}
{x} * torch.sigmoid({x'})
torch.where({b}, {x}, {y})
{x}.transpose({dim}, {dim})
{x}[{slices}]
{x}.reshape({shape})
{x}.sum({dims}, keepdim={flag})
{x}.mean({dim}, keepdim=True)
{x}.softmax({dim})
""",
    1.0: """
{x} / ({y}.abs() + 0.5)
{y} - {x}
torch.maximum({x}, {y})
torch.minimum({x}, {y})
{x}.tanh()
{x}.sin() + {x'}.cos()
{x}.clamp(-3, 3).exp()
({x}.abs() + 0.1).rsqrt()
({x}.abs() + 1).log()
torch.log1p({x}.abs()).sqrt()
F.gelu({x})
F.gelu({x}, approximate="tanh")
F.silu({x}) * {y}
F.softplus({x})
F.leaky_relu({x}, 0.1)
F.elu({x})
F.hardswish({x})
{x}.relu()
{x}.square() - {y}
{x} ** 3
torch.erf({x})
torch.lerp({x}, {y}, 0.3)
torch.add({x}, {y}, alpha={num})
torch.sub({x}, {y}, alpha=0.3)
torch.sub({i}, {o}, alpha=3)
torch.rsub({x}, {y}, alpha=0.1)
torch.hypot({x}, {y})
torch.logaddexp({x}, {y})
torch.addcmul({x}, {y}, {y}, value={num})
torch.addcdiv({x}, {y}, {y}.abs() + 1)
torch.atan2({x}, {y}.abs() + 0.5)
{x}.clamp({num}, 1.5)
{x}.masked_fill({b}, {num})
{x}.to({dtype}, copy=True)
{x}.to({dtype}, copy=True) * {y}
{x}.sign() * {y}
{x}.round() + {y}
{x}.floor()
{x}.fmod(1.5)
{x} * {o}
{x} + {b}
{x} > {num}
{x} < {y}
({x} >= {num}) & {b}
({x} > 0) | ({x'} < -1)
~{truth}
{truth}.to({dtype})
{truth}.to({itype}) + 1
{i} + {o}
{i} * 3 - {o}
{i} // 3
{i} % 5
{i} & 6
{i} ^ {o}
{i} >= {k}
{i} == {o}
{i}.to({dtype}) * {num}
{i}.to({itype})
({x}.clamp(0, 20) * 4).to({itype})
{i}.clamp(1, 4)
torch.arange({n}) + {i}
torch.arange({n})[:, None] >= torch.arange({n})
{x}.permute({perm})
{any1}.permute({perm})
{any1}[{slices}]
{x}.flatten()
{any1}.reshape({shape})
{x1}.unflatten({dim}, {factors})
{x}.unsqueeze({dim})
{x}.squeeze()
{x1}.select({dim}, {at})
{x1}.flip({dims})
{any1}.flip({dims})
{x1}.roll({k}, {dim})
{x1}.narrow({dim}, 0, {part})
{x1}.chunk(2, {dim})[-1]
{x1}.split({part}, {dim})[0]
{x1}.unfold({dim}, {part}, {k})
{x}.expand(3, *{x'}.shape)
{x}.unsqueeze({dim}).expand_as({y})
{x}.contiguous()
{x}.clone()
{x}.mT.contiguous()
{x1}.movedim({dim}, 0)
{x2}.diagonal()
{x2}.tril({k})
{x2}.triu()
{x1}.repeat_interleave({k}, {dim})
{x1}.tile(2)
{x1}.unbind({dim})[{at}] * 2
torch.cat([{x1}, {same}], {dim})
torch.cat([{x1}, {x'} * 2, {same}], {dim})
torch.cat([{x1}[..., 1:], {x'}[..., :1]], -1)
torch.cat([-{x1}.chunk(2, {dim})[1], {x'}.chunk(2, {dim'})[0]], {dim'})
torch.cat([{any1}, {same}], {dim})
torch.stack([{x}, {same}], {dim})
torch.stack([{x}, {x'}.exp() * 0.1, {same}], -1)
F.pad({x1}, (1, 2))
F.pad({x2}, (0, 1, 2, -1), value={num})
F.pad({x2}[None, None], (1, 1, 1, 1), mode="replicate")
F.pad({x2}, (2, 1), mode="reflect")
{x}.sum()
{x}.sum({dims}, keepdim=True) * {x'}
{x}.mean({dims}, keepdim={flag})
{x}.mean({dim}, dtype={dtype})
{x}.amax({dims}, keepdim={flag})
{x}.amin({dim})
{x} - {x'}.amax({dim}, keepdim=True)
{x}.max({dim})[0]
{x}.max({dim})[1]
{x}.argmax({dim})
{x}.argmin({dim}, keepdim=True)
{x}.argmax()
{x}.var({dims}, keepdim={flag})
{x}.var({dim}, correction=0)
{x}.std({dims}, keepdim=True)
torch.var_mean({x}, {dim})[0]
{x}.clamp(-1.5, 1.5).prod({dim})
{x}.logsumexp({dims})
{x}.log_softmax({dim})
{x}.softmax({dim}, dtype=f32)
({x}.masked_fill({b}, -10000.0)).softmax({dim})
{x}.norm(dim={dim})
{x}.norm()
F.normalize({x1}, dim={dim})
{x}.cumsum({dim})
({x} * 0.1).cumsum({dim}) + {y}
{i}.cumsum({dim})
{truth}.cumsum({dim})
{i}.sum({dim})
{i}.amax({dim})
{truth}.any({dim})
{truth}.all({dim}, keepdim={flag})
{truth}.sum({dims})
({x} > {num}).to(f32).mean({dim})
{x1}.topk(1, {dim})[0]
{x1}.topk(min({x'}.shape[{dim}], 2), {dim'})[0]
{x1}.sort({dim})[0]
F.layer_norm({x1}, {last})
F.layer_norm({x1}, {last}) * {y} + {y}
F.rms_norm({x1}, {last})
F.rms_norm({x1} + {y}, {last})
{x1} * torch.rsqrt({x'}.pow(2).mean(-1, keepdim=True) + 1e-6)
F.group_norm({x2}, {groups})
F.batch_norm({x2}, None, None, training=True)
({x} - {x'}.mean({dim}, keepdim=True)) / ({x'}.std({dim'}, keepdim=True) + 0.1)
""",
    # what single passes and fusions look for
    1.2: """
{x1}.cumsum(-1)[..., -1:]
{x1}.cumsum({dim}).select({dim'}, -1) * {num}
({x1}.cumsum({dim}).narrow({dim'}, -1, 1) - {x'}.cumsum({dim'})).clamp(-9, 2).exp()
{x1}.clamp(-1.5, 1.5).cumprod({dim})
{x1}.clamp(-1.5, 1.5).cumprod({dim}).select({dim'}, -1)
{x1}.cummax({dim})[0]
{x1}.cummin({dim})[0].narrow({dim'}, -1, 1) + {x'}
{x1}.logcumsumexp({dim})
{x1}.logcumsumexp(-1)[..., -1] * {num}
{i}.cumsum(-1)[..., -1:] - {i'}
F.pad({x1}.cumsum(-1), (1, 0))
F.pad({x1}.cumsum(-1)[..., :-1], (1, 0)) + {x'}
F.pad({i}.cumsum(-1), (1, 0))
torch.cat([torch.ones_like({x1}[..., :1]), {x'}.clamp(-1.5, 1.5).cumprod(-1)[..., :-1]], -1)
torch.cat([torch.zeros_like({x1}.narrow({dim}, 0, 1)), {x'}.cumsum({dim'})], {dim'})
torch.cat([{x2} * {num}, {same}.neg()], {dim}).sum({dims}, keepdim={flag})
torch.cat([{x2}.exp() * 0.1, {x'}.chunk(2, -1)[0], {same} + 1], -1).mean(0)
torch.cat([{x2}, {x'} * {num}], -1).amax({dims})
torch.stack([{x2} * {num}, {same}], -1).sum(0)
F.glu({x1}, {dim})
(lambda a, b: a * b.sigmoid())(*({x2} + {y}).chunk(2, -1))
(lambda a, b, c, d: a.sigmoid() * b + c.tanh() * d)(*({x2} * {y}).chunk(4, {dim}))
(lambda a, b: torch.cat([a * b.cos() - b * a.sin(), b * 2], -1))(*{x1}.chunk(2, -1))
({x2} - {x'}.mean(-1, keepdim=True)).sum(-2)
{x2}.softmax(-1).sum(-2, keepdim=True) * {x'}.softmax(-1)
{x2}.softmax(-1).amax({dims})
F.rms_norm({x2}, {x'}.shape[-1:]).mT.softmax(-1)
{x2} * torch.rsqrt({x'}.square().sum({dim}, keepdim=True) + 1).sum({dims}, keepdim=True)
F.pad({x1}, (3, 0)).unfold(-1, 4, 1).sum(-1)
F.pad({x2}, (1, 1), value={num}).unfold(-1, 3, 2).amax(-1)
F.pad({x2}, (0, 0, 2, 1)).unfold(-2, {k}, 1).mean(-1)
torch.complex({x}, {same}).abs()
(torch.complex({x}, {same}) * torch.complex({same}, {x'})).imag
torch.view_as_real(torch.complex({x}, {same}).conj() * (0.5 + 2j))
torch.view_as_real(torch.complex({x1}, {x'} * {num}).sum({dims}, keepdim={flag})).flatten(-2)
(torch.complex({x1}, {same}) / torch.polar({same}.abs() + 0.5, {x'})).real
torch.view_as_real(torch.view_as_complex({x1}.reshape(-1, 2)) * ({num} + 0.5j)).flatten()
(lambda z: torch.view_as_real(z * torch.polar(z.abs(), z.real)).flatten(-2))(torch.complex({x}, {same}))
{x1}.scatter_reduce({dim}, {places}, {x'} * {num}, "sum", include_self={flag})
{x1}.scatter_reduce({dim}, {places}, {x'} * {num}, "amax")
{x1}.scatter_reduce({dim}, {places}, {x'}, "mean")
{x1}.index_select({dim}, {idx}).sum({dims})
torch.zeros_like({x1}).index_add({dim}, {idx}, {x'}.index_select({dim'}, {idx'}) * {num})
{x1}.index_put(({idx},), {x'}[{idx'}] * {num}, accumulate=True)
{x1}.gather({dim}, {places}).mean({dims})
{x1} * {num} + torch.zeros_like({x'}).index_add({dim}, {idx}, {x'}.index_select({dim'}, {idx'}))
{x1}.exp().clamp(0, 9) + torch.zeros_like({x'}).index_put(({idx},), {x'}[{idx'}], accumulate=True)
({matrix} * {num}) + torch.ops.aten.embedding_dense_backward({matrix'}[{idx}], {idx'}, {matrix'}.shape[0], {k}, False)
(torch.arange({n}) * 2).index_fill(0, {once}, 7)
(torch.arange({n}) % 3 > 0).index_fill(0, {once}, False)
{x1}.where(torch.arange({x'}.shape[-1]).index_fill(0, torch.tensor([0]), 9) > {k}, {num})
{x1} * (lambda p: (p.mul_(3), p)[1])(torch.arange({x'}.shape[-1]) + {k})
{x1} * (lambda p: (p[1:].add_(5), p)[1])(torch.arange({x'}.shape[-1]) - {k}) + torch.arange({x'}.shape[-1])
({x} + torch.ones(3, *[1] * {x'}.dim())).relu_().mul_({num})
(lambda e: (e[0].add_(1), e[1].mul_({num}), e)[2])({x}.expand(2, *{x'}.shape).clone())
(lambda e: (e[0].add_({num}), e.sum(0))[1])({x} * torch.ones(3, *[1] * {x'}.dim()))
torch.cat([{x1}, {x'}.cumsum(-1)[..., 9:]], -1)
torch.cat([{x1}.cumsum({dim})[..., 2:5], {x'}], -1)
{x1}.cumsum({dim}, dtype={dtype})
{x1}.cumsum({dim}, dtype={dtype})[..., -1:] + {x'}
{i}.cumsum(-1, dtype={itype})
{x1}.sum({dim}, dtype={dtype}, keepdim=True) - {x'}
torch.full(({n},), {num}).view(torch.int32) % 1000
(torch.arange({n}) * 3 + 1).view(torch.int32)[::2] + 1
{x1}.float().view(torch.int32).bitwise_and(-65536).view(torch.float32)
torch.view_as_real(torch.cat([torch.complex({x1}, {x'} * {num}), {same} + 0j], {dim})).flatten(-2)
torch.where({b}, -0.0, {x}).reciprocal().clamp(-9, 9)
torch.stack([{x} * 0 + 0.0, {x'}.where({x'} > 9, -0.0)], -1).reciprocal().clamp(-3, 3)
""",
    0.7: """
{x1}.index_select({dim}, {idx})
{x1}[{idx}]
{x2}[:, {idx}]
{any1}[{idx}]
{x1}.gather({dim}, {places})
{any1}.gather({dim}, {places})
F.embedding(weight={matrix}, input={idx})
F.one_hot({idx}, {n}).to({dtype}) * {y}
{x1}.index_put(({once},), torch.tensor({num}).to({x'}.dtype))
{x1}.index_add({dim}, {once}, {x'}.narrow({dim'}, 0, {count'}))
torch.zeros({n}, dtype=i64).index_add(0, {idx}, torch.ones_like({idx'}))
{x1}.index_fill({dim}, {once}, {num})
{x1}.scatter({dim}, torch.arange({n}).flip(0)[:1].view([1] * {x'}.dim()), {num})
{x1}.scatter_add({dim}, {places}, {x'})
torch.zeros_like({x1}).scatter_add({dim}, {places}, {x'} * {num})
{x1}.index_copy({dim}, torch.arange({n}).flip(0), {x'} * 2)
{x1}.take_along_dim({places}, {dim})
torch.bucketize({x}, torch.tensor([-1.0, 0.0, 0.7]).to({x'}.dtype))
{x2}.slice_scatter({x'}.select(0, 0).unsqueeze(0), 0, 1, 2)
{x1}.select_scatter({x'}.select({dim}, 0) * 2, {dim'}, 0)
F.linear({x1}, {w}.to({x'}.dtype)) * 0.2
{x1}[..., :1, :] @ {w}.to({x'}.dtype).t() * 0.2
{matrix} @ {matrix'}.t() * 0.1
{x2} @ {x'}.mT * 0.1
({x2} @ {x'}.mT * 0.1).softmax(-1) @ {x'}
torch.einsum("...i,ji->...j", {x1}, {w}.to({x'}.dtype)) * 0.2
F.scaled_dot_product_attention({image}, {image'}, {image'})
""",
    0.3: """
F.conv2d({image}, {filter}.to({image'}.dtype), padding=1) * 0.2
F.conv2d(F.pad({image}, (1, 0, 2, 1)), {filter}.to({image'}.dtype), stride=2) * 0.2
F.conv2d({image}.to(memory_format=torch.channels_last), {filter}.to({image'}.dtype)).relu() * 0.2
F.pad({image}.to(memory_format=torch.channels_last), (1, 1, 1, 1), value={num})
F.pad({image}.permute(0, 2, 3, 1), (0, 1, 1, 1, 2, 0)).permute(0, 3, 1, 2)
F.pad({image}, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).sum((-1, -2))
F.avg_pool2d(F.pad({image}, (2, 1, 0, 1), value={num}), 3, stride=2)
F.max_pool2d(F.pad({image}.relu(), (1, 1, 1, 1)), 2, stride=1)
F.max_pool2d({image}, 2)
F.max_pool2d({image}, 3, stride=2, padding=1)
F.avg_pool2d({image}, 2)
F.avg_pool2d({image}, 3, stride=1, padding=1)
F.adaptive_avg_pool2d({image}, (2, 3))
F.interpolate({image}, scale_factor=2)
F.interpolate({image}, scale_factor=2, mode="bilinear")
F.interpolate({image}, scale_factor=(1, 3), mode="bilinear")
F.interpolate({image}, scale_factor=2, mode="bicubic")
F.interpolate({image}, size=(7, 9), mode="bilinear", align_corners=True)
F.grid_sample({image}, {image'}[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False)
F.pad({image}, (2, 1, 0, 1), mode="reflect")
F.pad({image}, (1, 3, 2, 0), mode="replicate")
F.max_pool2d({image}, 3, stride=1, padding=1, dilation=2)
F.avg_pool2d({image}, 3, stride=2, padding=1, ceil_mode=True)
F.avg_pool2d({image}, 2, stride=2, ceil_mode=True, count_include_pad=False)
F.adaptive_avg_pool2d({image}, (3, 4))
F.adaptive_max_pool2d({image}, (4, 3))
torch.erfinv({x}.tanh() * 0.9)
{x1}.slice_scatter({x'}[..., ::2] * 2, -1, 0, None, 2)
F.group_norm({image}, {groups})
F.batch_norm({image}, None, None, training=True).relu()
F.instance_norm({image})
F.pixel_shuffle({image}, 2)
F.unfold({image}, 3, padding=1)
F.dropout({x}, 0.0)
{image}.mean((2, 3))
{image}.to(memory_format=torch.channels_last)
""",
    0.6: """
!{m}.add_({from})
!{m}.mul_({num})
!{m}.copy_({from})
!{m}[{slices}] = {num}
!{m}[{slices}] += {num}
!{m}[{slices}].mul_(0.5)
!{m}.select({dim}, {at}).copy_({m'}.select({dim'}, 0) * 2)
!{m}.narrow({dim}, 0, {part}).add_(1)
!{m}.clamp_(-1, 1)
!{m}.masked_fill_({b}, {num})
!{m}.relu_()
!{m}.sub_({m'}.mean({dim}, keepdim=True))
!{m}.copy_({m'}.flip({dim}))
!{m}.index_add_({dim}, {once}, {m'}.narrow({dim'}, 0, {count'}).clone())
!{m}.index_put_(({once},), torch.tensor({num}).to({m'}.dtype))
!{m}.index_put_(({idx},), torch.tensor({num}).to({m'}.dtype), accumulate=True)
!{m}[{b}] = {num}
!{m}.scatter_add_({dim}, {places}, {m'} * 2)
!{m}.index_fill_({dim}, {once}, {num})
!{m}.lerp_({from}, 0.1)
!{m}.addcmul_({from}, {from}, value=0.1)
!{m}[1:] = {m'}[:-1] * 1
!{m}[1:] = {m'}[:-1].clone()
!{m}.lerp_({from}, 0.1); {other}.mul_(0.9).add_({num})
!{m}.mul_(0.9).add_({from}, alpha=0.1); {other}.addcmul_({other'}, {other'}, value=-0.01)
!{m}.add_({m'}.square().mean()); {other}.lerp_({other'} * {num}, 0.1); {third}.mul_(0.9)
!torch._foreach_add_([{m}, {other}], [{m'} * {num}, {other'}.clone()], alpha=0.5)
!torch._foreach_mul_([{m}, {other}], [{m'}.sigmoid(), {other'}.tanh()])
!torch._foreach_add_([{m}, {other}], 1.0)
!torch._foreach_mul_([{m}, {other}], 0.9)
!torch._foreach_lerp_([{m}], [{from}], 0.1)
!torch._foreach_addcmul_([{m}], [{from}], [{from}], 0.1)
!torch._foreach_clamp_max_([{m}, {other}], 0.8)
""",
}
LINES = tuple(Template(text, weight) for weight, lines in GROUPS.items() for text in lines.strip().split("\n"))
