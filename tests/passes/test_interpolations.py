"""Images at other sizes: the same numbers as the library's, written out where that pays, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import draw, single_call, targets
from rooffuse.passes import PRIMITIVES, run_passes, verify
from rooffuse.passes.graph import packet_name
from rooffuse.passes.interpolations import MOST_RESULTS, interpolations_pass

aten = torch.ops.aten
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
#: Operator and its gradient, sizes of images.
KINDS = {
    "linear": (aten.upsample_linear1d, aten.upsample_linear1d_backward, (7,)),
    "bilinear": (aten.upsample_bilinear2d, aten.upsample_bilinear2d_backward, (5, 6)),
    "trilinear": (aten.upsample_trilinear3d, aten.upsample_trilinear3d_backward, (3, 4, 5)),
    "bicubic": (aten.upsample_bicubic2d, aten.upsample_bicubic2d_backward, (5, 6)),
}
TILES = ((2, 2, 2), (1, 3, 2), (4, 2, 1))


def expanded(op, *args, looks_up=False):
    """The operators of a call after the pass, and what they compute."""
    gm = run_passes(single_call(op, *args), [interpolations_pass(looks_up)])
    verify(gm)
    return gm, gm(*[a for a in args if isinstance(a, torch.Tensor)])


def is_written_out(gm) -> bool:
    return {packet_name(t) for t in (n.target for n in gm.graph.nodes) if packet_name(t)} <= PRIMITIVES


def assert_same(ours: torch.Tensor, wanted: torch.Tensor, exact: torch.Tensor) -> None:
    assert (ours.dtype, ours.shape, ours.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    # Both round what they sum, in their own order, and narrow results once more.
    step = {torch.bfloat16: 2**-8, torch.float32: 2**-21, torch.float64: 2**-50}[ours.dtype]
    torch.testing.assert_close(ours.double(), exact, rtol=step, atol=16 * step)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_whole_scales_are_written_out_with_their_gradients(kind, tiles, dtype):
    forward, backward, sizes = KINDS[kind]
    for dense in (False, True):
        x = draw(2, 3, *sizes, dtype=dtype)
        if dense and len(sizes) == 2:
            x = x.to(memory_format=torch.channels_last)
        outputs = [n * t for n, t in zip(sizes, tiles, strict=False)]
        scales = [None if dense else float(t) for t in tiles[: len(sizes)]]
        gm, ours = expanded(forward.default, x, outputs, False, *scales)
        assert is_written_out(gm)
        assert_same(ours, forward.default(x, outputs, False, *scales), forward.default(x.double(), outputs, False))
        grad, inputs = draw(2, 3, *outputs, dtype=dtype), [2, 3, *sizes]
        gm, ours = expanded(backward.default, grad, outputs, inputs, False, *scales)
        assert is_written_out(gm)
        assert_same(ours, backward.default(grad, outputs, inputs, False, *scales),
                    backward.default(grad.double(), outputs, inputs, False))


@pytest.mark.parametrize("kind", KINDS)
def test_other_scales_are_looked_up_where_that_is_fast(kind):
    forward, backward, sizes = KINDS[kind]
    x = draw(2, 3, *sizes, dtype=torch.float32)
    outputs = [2 * n + 1 for n in sizes]
    for align in (False, True):
        wanted = forward.default(x, outputs, align)
        gm, ours = expanded(forward.default, x, outputs, align, looks_up=True)
        assert is_written_out(gm)
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)  # positions are float32, as the library's are
        assert targets(expanded(forward.default, x, outputs, align)[0]) == [str(forward.default)]
        gradient = [str(backward.default)]
        assert targets(expanded(backward.default, wanted, outputs, [2, 3, *sizes], align, looks_up=True)[0]) == gradient


def test_channels_as_neighbours_are_looked_up_on_a_cpu_too():
    x = draw(2, 8, 5, 6, dtype=torch.float32).to(memory_format=torch.channels_last)
    gm, ours = expanded(aten.upsample_bilinear2d.default, x, [9, 8], False)
    assert is_written_out(gm)
    torch.testing.assert_close(ours, aten.upsample_bilinear2d.default(x, [9, 8], False))


@pytest.mark.parametrize("arguments", [
    ((5, 6), [5 * 2 + 1, 12], False), ((5, 6), [10, 12], True), ((5, 6), [5, 6 * (MOST_RESULTS + 1)], False),
    ((1, 6), [2, 12], False), ((5, 6), [10, 12], False, 2.1, 2.0)], ids=str)
def test_what_stays_with_the_library_on_a_cpu(arguments):
    sizes, *rest = arguments
    x = draw(2, 3, *sizes, dtype=torch.float32)
    gm, ours = expanded(aten.upsample_bilinear2d.default, x, *rest)
    assert not is_written_out(gm)
    torch.testing.assert_close(ours, aten.upsample_bilinear2d.default(x, *rest), rtol=0, atol=0)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_samples_are_looked_up_where_that_is_fast(mode, padding, align):
    x, grid = draw(2, 3, 7, 6, dtype=torch.float32), draw(2, 5, 4, 2, dtype=torch.float32)
    call = (aten.grid_sampler_2d.default, x, grid, mode, padding, align)
    gm, ours = expanded(*call, looks_up=True)
    assert is_written_out(gm) == (mode != 2)
    torch.testing.assert_close(ours, call[0](*call[1:]))
    assert targets(expanded(*call)[0]) == [str(aten.grid_sampler_2d.default)]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int32], ids=str)
@pytest.mark.parametrize("kind", ["replication", "reflection"])
def test_edges_are_read_and_not_stored(kind, dtype):
    for rank, pads in ((1, [2, 0]), (1, [0, 0]), (2, [3, 1, 0, 2]), (3, [1, 1, 2, 0, 1, 2])):
        for batch in ((2, 3), (4,)):
            x = (10 * draw(*batch, *(5, 4, 6)[:rank], dtype=torch.float32)).to(dtype)
            for image in (x, x.to(memory_format=torch.channels_last)) if rank == 2 and x.dim() == 4 else (x,):
                op = getattr(aten, f"{kind}_pad{rank}d").default
                if dtype == torch.int32 and kind == "reflection":
                    continue  # eager has no kernel
                for looks_up in (False, True):
                    gm, ours = expanded(op, image, pads, looks_up=looks_up)
                    assert is_written_out(gm) and torch.equal(ours, op(image, pads))
                    (declared,) = (n.meta["val"] for n in single_call(op, image, pads).graph.find_nodes(
                        op="call_function", target=op))
                    assert ours.stride() == declared.stride()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("mode", ["linear", "bilinear", "trilinear", "bicubic", "nearest", "nearest-exact"])
def test_compiled_training_matches_eager(mode, dynamic):
    rank = {"linear": 1, "trilinear": 3}.get(mode, 2)
    corners = {} if mode.startswith("nearest") else {"align_corners": False}

    def block(x, skip):
        return torch.cat([F.relu(F.interpolate(x, scale_factor=2, mode=mode, **corners)), skip], 1)

    x, skip = torch.randn(2, 3, *[5] * rank), torch.randn(2, 2, *[10] * rank)
    results = []
    for function in (block, torch.compile(block, backend="rooffuse", fullgraph=True, dynamic=dynamic)):
        leaves = [x.clone().requires_grad_(), skip.clone().requires_grad_()]
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for ours, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
