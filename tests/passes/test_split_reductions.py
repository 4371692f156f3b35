from __future__ import annotations

import pytest
import torch
from rooffuse.passes import RowLimits, split_reductions, verify
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten


def traced(fn, *args):
    return make_fx(fn, tracing_mode="fake")(*args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int32])
@pytest.mark.parametrize("shape,dims,keepdim", [
    ((70001,), [0], False), ((8, 65536), [1], True), ((8, 65536), [0, 1], False), ((5000, 96), [0], False),
    ((4, 40000, 3), [0, 1], True), ((3, 50000), [-1], False),
])
def test_results_sizes_and_types_are_kept(shape, dims, keepdim, dtype):
    def fn(x):
        return aten.sum.dim_IntList(x, dims, keepdim), aten.amax.default(x, dims, keepdim)

    x = torch.randint(-5, 5, shape).to(dtype) if not dtype.is_floating_point else torch.randn(shape).to(dtype)
    gm = split_reductions(traced(fn, x), RowLimits(264))
    gm.recompile()
    verify(gm)
    assert sum(str(n.target) == "aten.amax.default" for n in gm.graph.nodes) == 2
    exact = fn(x.double() if dtype.is_floating_point else x)
    for ours, reference in zip(gm(x), exact):
        assert ours.shape == reference.shape
        tolerance = {torch.bfloat16: 1e-2, torch.float32: 1e-5}.get(dtype, 1e-12)
        scale = max(reference.abs().max().item(), x.numel() ** 0.5)  # of partial sums: a total may cancel to nothing
        assert (ours.double() - reference.double()).abs().max().item() <= tolerance * scale


def test_mean_divides_by_the_true_count_and_not_by_the_padded_one():
    x = torch.full((40009,), 3.0)
    gm = split_reductions(traced(lambda x: aten.mean.dim(x, [0]), x), RowLimits(132))
    gm.recompile()
    assert any("pad" in str(n.target) for n in gm.graph.nodes)
    torch.testing.assert_close(gm(x), torch.tensor(3.0))


def test_a_nan_in_the_last_piece_reaches_the_maximum():
    x = torch.zeros(50001)
    x[-1] = float("nan")
    gm = split_reductions(traced(lambda x: aten.amax.default(x, [0]), x), RowLimits(132))
    gm.recompile()
    assert gm(x).isnan()


@pytest.mark.parametrize("shape,dims", [((4096, 4096), [1]), ((8, 1024), [1]), ((300, 64), [0]), ((1024, 65536), [0])])
def test_reductions_that_fill_the_device_or_are_short_are_left_alone(shape, dims):
    gm = traced(lambda x: aten.sum.dim_IntList(x, dims), torch.empty(shape))
    before = str(gm.graph)
    assert str(split_reductions(gm, RowLimits(264)).graph) == before


def test_the_first_stage_has_a_result_for_each_program():
    gm = split_reductions(traced(lambda x: aten.sum.default(x), torch.empty(1 << 22)), RowLimits(264))
    first = next(n for n in gm.graph.nodes if str(n.target).startswith("aten.sum"))
    assert first.meta["val"].numel() >= 264


def row_and_column(x):
    return aten.sum.dim_IntList(x, [-1]), aten.sum.dim_IntList(x, [0])


@pytest.mark.parametrize("rows,programs,strips", [(8192, 264, 128), (512, 16, 8), (96, 16, 8), (65536, 16, 128)])
def test_columns_of_what_is_reduced_along_rows_are_summed_in_strips(rows, programs, strips):
    gm = split_reductions(traced(row_and_column, torch.empty(rows, 64)), RowLimits(programs))
    gm.recompile()
    verify(gm)
    partial = [n.meta["val"].shape for n in gm.graph.nodes if str(n.target).startswith("aten.sum")]
    assert (strips, 64) in partial
    x = torch.randn(rows, 64)
    torch.testing.assert_close(gm(x), row_and_column(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(509, 64), (40, 64), (16, 64)])
def test_rows_that_no_number_of_strips_divides_are_left_alone(shape):
    gm = traced(row_and_column, torch.empty(shape))
    before = str(gm.graph)
    assert str(split_reductions(gm, RowLimits(264)).graph) == before


@pytest.mark.parametrize("shape", [(0, 3, 64), (3, 0, 64), (2, 3, 0)])
def test_what_is_empty_is_left_alone(shape):
    gm = traced(lambda x: (x.sum(-1), x.sum(1)), torch.empty(shape))
    before = [str(n.target) for n in gm.graph.nodes]
    assert [str(n.target) for n in split_reductions(gm, RowLimits(16)).graph.nodes] == before


@pytest.mark.parametrize("shape,dims", [((4, 16, 512), (0, 2)), ((4, 16, 16, 32), (0, 2, 3))])
def test_segments_of_reduced_rows_are_summed_before_the_rest(shape, dims):
    """Channels beside their groups: the sums of a channel in each image come first, then those over the images."""
    def fn(x):
        return x.view(4, 4, -1).mean(-1), (x * 2).sum(dims)

    gm = split_reductions(traced(fn, torch.randn(shape)), RowLimits(264))
    gm.recompile()
    stages = [tuple(n.meta["val"].shape) for n in gm.graph.nodes if "sum" in str(n.target)]
    assert stages == [(4, 16), (16,)]
    x = torch.randn(shape)
    torch.testing.assert_close(gm(x)[1], fn(x.double())[1].float(), atol=1e-4, rtol=1e-5)


def test_rows_whose_segments_do_not_fit_are_left_alone():
    gm = traced(lambda x: (x.view(4, 4, -1).mean(-1), x.sum((0, 2))), torch.randn(4, 20, 1024))
    assert str(split_reductions(gm, RowLimits(1)).graph) == str(gm.graph)


def test_columns_of_each_image_are_summed_in_strips_beside_its_rows():
    gm = split_reductions(traced(lambda x: (x.amax(-1), x.sum(1)), torch.empty(16, 1024, 1152)), RowLimits(264))
    stages = [tuple(n.meta["val"].shape) for n in gm.graph.nodes if "sum" in str(n.target)]
    assert stages == [(16, 8, 1152), (16, 1152)]


def test_a_mean_and_the_variance_that_needs_it_are_not_summed_in_strips():
    def fn(x):
        away = x - x.mean(1, keepdim=True)
        return x.amax(-1), (away * away).sum(1)

    gm = split_reductions(traced(fn, torch.empty(16, 1024, 1152)), RowLimits(264))
    assert all(n.meta["val"].shape != (16, 8, 1152) for n in gm.graph.nodes if "sum" in str(n.target))


@pytest.mark.parametrize("scan", [lambda x: x.cumsum(1), lambda x: x.cumprod(1)])
def test_a_total_beside_its_scan_is_left_alone(scan):
    gm = traced(lambda x: (scan(x), x.sum(1)), torch.empty(8, 4096, 256))
    assert str(split_reductions(gm, RowLimits(264)).graph) == str(gm.graph)
    alone = split_reductions(traced(lambda x: x.sum(1), torch.empty(8, 4096, 256)), RowLimits(264))
    assert str(alone.graph).count("sum") > 1


def test_everything_over_several_dimensions_goes_along_what_is_reduced_by_itself():
    """Parts of each image for its own sum are parts of all images' sum, which so reads nothing again."""
    x = torch.randn(64, 512, 512)
    gm = split_reductions(traced(lambda x: (x.sum((1, 2)), x.square().sum()), x), RowLimits(264))
    firsts = [n for n in gm.graph.nodes if "sum" in str(n.target) and n.meta["val"].numel() > 64]
    assert len(firsts) == 2 and firsts[0].meta["val"].shape == firsts[1].meta["val"].shape
    assert firsts[0].args[1] == firsts[1].args[1]


def test_strips_whose_columns_stay_on_chip():
    """A norm's gradients of wide rows: where a row and its columns' sums don't fit, all columns are programs enough."""
    limits = RowLimits(264, strip_elements=40960)
    assert limits.keeps_strips(8192, sums=True) and not limits.keeps_strips(8193, sums=True)
    assert limits.keeps_strips(16384, sums=False) and not limits.keeps_strips(20000, sums=False)
    assert RowLimits(264).keeps_strips(1 << 20, sums=True)

    def stages(columns):
        gm = traced(lambda x: (x.sum(0), x - x.mean(-1, keepdim=True)), torch.empty(4096, columns))
        return str(split_reductions(gm, limits).graph).count("sum.dim_IntList")

    assert [stages(n) for n in (4096, 8192, 16384)] == [2, 2, 1]


def test_nearly_enough_columns_are_not_cut():
    def stages(columns):
        gm = traced(lambda x: x.sum(0), torch.empty(8192, columns))
        return str(split_reductions(gm, RowLimits(264)).graph).count("sum.dim_IntList")

    assert [stages(64 * n) for n in (264, 256, 172, 171, 64)] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("shape,dim,rows", [((65536, 10), -1, 64), ((1 << 20, 3), -1, 512), ((8, 21, 128, 128), 1, 64)])
@pytest.mark.parametrize("total", [torch.sum, torch.mean, torch.amax])
def test_what_short_rows_come_to_is_reduced_so_many_rows_together(shape, dim, rows, total):
    def fn(x):
        return total(x.exp().sum(dim).log())

    x = torch.randn(shape)
    gm = split_reductions(traced(fn, x), RowLimits(264, strip_elements=40960))
    gm.recompile()
    verify(gm)
    assert [tuple(n.meta["val"].shape) for n in gm.graph.nodes if n.target is aten.reshape.default] == [
        (x.numel() // x.shape[dim] // rows, rows)]
    torch.testing.assert_close(gm(x), fn(x.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(65536, 1000), (30000, 10), (65537, 10), (1 << 25, 2)])
def test_results_of_long_few_odd_and_very_many_rows_are_cut_as_others(shape):
    def fn(x):
        return x.amax(-1).sum()

    with FakeTensorMode():
        graph = traced(fn, torch.empty(shape))
    with_limits, without = (str(split_reductions(graph, RowLimits(264, strip_elements=n)).graph) for n in (40960, 0))
    assert with_limits == without


def shares(x, dim):
    return x.exp() / x.exp().sum(dim, keepdim=True)


@pytest.mark.parametrize("shape,parts", [
    ((4, 19, 256, 64), (4, 19, 256, 64)),
    ((32, 5, 64, 256), (32, 5, 64, 256)),
    ((32, 2, 512, 64), (32, 2, 64, 512)),
    ((2, 3, 128, 1024), (2, 3, 1024, 128)),
    ((8, 96, 56, 56), (8, 96, 28, 112)),
])
@pytest.mark.parametrize("total", [torch.sum, torch.mean, torch.amax])
@pytest.mark.parametrize("images", [(), (0,)], ids=["each image", "all images"])
def test_what_is_found_of_short_rows_is_reduced_so_many_rows_together(shape, parts, total, images):
    def fn(x):
        return total(shares(x, 1), (*images, 2, 3))

    x = torch.randn(shape)
    gm = split_reductions(traced(fn, x), RowLimits(264, strip_elements=40960))
    gm.recompile()
    verify(gm)
    assert [tuple(n.meta["val"].shape) for n in gm.graph.nodes if n.target is aten.reshape.default] == [parts]
    torch.testing.assert_close(gm(x), fn(x.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 5, 64, 64), (4, 600, 64, 64), (2, 5, 32, 32)])
def test_many_images_of_many_classes_or_few_pixels_are_left_alone(shape):
    with FakeTensorMode():
        gm = split_reductions(traced(lambda x: shares(x, 1).amax((2, 3)), torch.empty(shape)),
                              RowLimits(264, strip_elements=40960))
    assert "reshape" not in str(gm.graph)


@pytest.mark.parametrize("fn", [
    lambda x: shares(x, 1).view(64, 8, 8, 4096).sum((2, 3)),  # of groups: there are as many images as channels
    lambda x: (p := shares(x, 1)) - (p - p.mean((2, 3), True)).square().mean((2, 3), True),  # after their mean
])
def test_what_is_found_of_other_dimensions_is_reduced_by_itself(fn):
    with FakeTensorMode():
        gm = split_reductions(traced(fn, torch.empty(64, 64, 64, 64)), RowLimits(264, strip_elements=40960))
    assert "reshape" not in str(gm.graph)
