"""Which convolutions are put in channels-last memory, where copies are made for it, and what keeps its strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import clone_all, targets, trace
from rooffuse.codegen.lower import refusal
from rooffuse.cost_model import Device, device_from_dict, get_device
from rooffuse.passes import Layout, channels_last_pass, run_passes
from torch import Tensor
from torch.fx import GraphModule, Node

CPU = device_from_dict({"name": "cpu", "kind": "cpu", "peaks": {"fp32": 1e12}, "bandwidth": 1e10, "launch_s": 1e-6})
aten = torch.ops.aten


pytestmark = pytest.mark.usefixtures("two_threads")


def placed(gm: GraphModule, device: Device = CPU, layout: Layout | None = None) -> GraphModule:
    return run_passes(gm, [channels_last_pass(device, lambda n: refusal(n) is None, layout)])


def conv(x: Tensor, weight: Tensor, padding: int = 1, groups: int = 1) -> Tensor:
    dims = x.dim() - 2
    return aten.convolution(x, weight, None, [1] * dims, [padding] * dims, [1] * dims, False, [0] * dims, groups)


def calls(gm: GraphModule, op: Any) -> list[Node]:
    return [n for n in gm.graph.nodes if n.target is op]


def formats(gm: GraphModule) -> list[Any]:
    return [n.kwargs.get("memory_format") for n in calls(gm, aten.clone.default)]


def is_last(node: Any) -> bool:
    form = torch.channels_last if node.meta["val"].dim() == 4 else torch.channels_last_3d
    return node.meta["val"].is_contiguous(memory_format=form)


def checked(function: Callable[..., Any], *inputs: Tensor) -> GraphModule:
    """The placed graph, which gives the results of the traced one with their strides, and writes the same."""
    before = trace(function, *inputs)
    after = placed(before)
    left, right = clone_all(inputs), clone_all(inputs)
    torch.manual_seed(0)
    expected = before(*left)
    torch.manual_seed(0)
    # A library's kernels for the two layouts add up in different orders.
    torch.testing.assert_close(after(*right), expected, rtol=1e-3, atol=1e-3, check_stride=True)
    torch.testing.assert_close(right, left, rtol=1e-3, atol=1e-3)
    return after


IMAGE, WEIGHT = torch.randn(2, 16, 28, 28), torch.randn(16, 16, 3, 3)


def chain(x: Tensor, w: Tensor) -> Tensor:
    for _ in range(4):
        x = torch.relu(conv(x, w))
    return x


def test_a_chain_is_copied_at_its_ends_alone() -> None:
    after = checked(chain, IMAGE, WEIGHT)
    assert formats(after) == [torch.channels_last, torch.contiguous_format]
    assert all(is_last(n) and is_last(n.args[0]) for n in calls(after, aten.convolution.default))


def test_three_dimensions() -> None:
    after = checked(chain, torch.randn(2, 16, 19, 20, 11), torch.randn(16, 16, 3, 3, 3))
    assert formats(after) == [torch.channels_last_3d, torch.contiguous_format]


def test_a_weight_larger_than_its_image_leaves_the_others_to_win() -> None:
    def narrowing(x: Tensor, w: Tensor, widening: Tensor, wide: Tensor) -> Tensor:
        return conv(conv(torch.nn.functional.avg_pool2d(chain(x, w), 8), widening), wide)

    after = placed(trace(narrowing, torch.randn(2, 16, 64, 56), WEIGHT, torch.randn(256, 16, 3, 3),
                         torch.randn(256, 256, 3, 3)))
    first, *_, last = (n.args[0].meta["val"] for n in calls(after, aten.convolution.default))
    assert first.is_contiguous(memory_format=torch.channels_last) and last.is_contiguous()


def test_one_convolution_loses() -> None:
    gm = trace(lambda x, w: conv(x, w), IMAGE, WEIGHT)
    assert targets(placed(gm)) == targets(gm)


@pytest.mark.parametrize(
    ("image", "weight"),
    [
        ((4, 16, 1, 1), (16, 16, 1, 1)),
        ((2, 1, 12, 12), (1, 1, 3, 3)),
        ((2, 512, 7, 7), (512, 512, 3, 3)),
        ((0, 16, 12, 12), (16, 16, 3, 3)),
    ],
    ids=["one position", "one channel", "mostly weight", "empty"],
)
def test_left_alone(image: tuple[int, ...], weight: tuple[int, ...]) -> None:
    gm = trace(lambda x, w: conv(conv(x, w, weight[-1] // 2), w, weight[-1] // 2), torch.randn(image),
               torch.randn(weight))
    assert targets(placed(gm)) == targets(gm)


def test_types_without_blocked_kernels_are_left_alone() -> None:
    gm = trace(chain, IMAGE.double(), WEIGHT.double())
    assert targets(placed(gm)) == targets(gm)
    gm = trace(chain, IMAGE, WEIGHT)
    assert targets(placed(gm, get_device("h100"))) == targets(gm)
    gm = trace(chain, IMAGE.bfloat16().repeat(1, 1, 8, 8), WEIGHT.bfloat16())
    assert formats(placed(gm, get_device("h100"))) == [torch.channels_last, torch.contiguous_format]


def test_already_there() -> None:
    gm = trace(chain, IMAGE.to(memory_format=torch.channels_last), WEIGHT)
    assert targets(placed(gm)) == targets(gm)


def test_residual_block_with_norm_and_pooling() -> None:
    def block(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        def normed(y: Tensor) -> Tensor:
            return aten._native_batch_norm_legit_no_training(y, scale, scale, scale, scale.abs(), 0.1, 1e-5)[0]

        x = aten.max_pool2d_with_indices(torch.relu(normed(conv(x, w))), [3, 3], [2, 2], [1, 1])[0]
        y = x + normed(conv(torch.relu(normed(conv(x, w))), w))
        y = torch.cat([aten.upsample_nearest2d(y, [28, 28]), aten.upsample_nearest2d(x, [28, 28])], 1)
        return conv(y, torch.cat([w, w], 1)).mean((2, 3))

    after = checked(block, IMAGE, WEIGHT, torch.randn(16))
    assert formats(after) == [torch.channels_last]
    assert all(map(is_last, calls(after, aten.cat.default)[:1]))


def test_what_reads_an_input_beside_a_convolution_reads_the_copy() -> None:
    after = checked(lambda x, w: x + chain(x, w), IMAGE, WEIGHT)
    assert len(formats(after)) == 2 and is_last(calls(after, aten.add.Tensor)[0])


def test_views_that_no_longer_apply_are_of_the_traced_layout() -> None:
    def viewed(x: Tensor, w: Tensor) -> list[Tensor]:
        y = chain(x, w)
        return [y.view(2, -1) + 1, y.view(2, 4, 4, 64, 56) + 1]

    after = checked(viewed, torch.randn(2, 16, 64, 56), WEIGHT)
    flat, grouped = (n for n in calls(after, aten.view.default) if n.users)
    assert flat.args[0].target is aten.clone.default and flat.args[0].meta["val"].is_contiguous()
    assert grouped.args[0].target is aten.relu.default


def test_strides_that_are_asked_for() -> None:
    def layouts(x: Tensor, w: Tensor) -> list[Tensor]:
        y = chain(x, w)
        return [y.as_strided((2, 5), (1, 7), 3), y[:, 1:5:2], y.transpose(1, 3), y.view(torch.int32)]

    checked(layouts, IMAGE, WEIGHT)


def test_random_numbers_and_places_keep_their_order() -> None:
    def drawn(x: Tensor, w: Tensor) -> list[Tensor]:
        y = chain(x, w)
        return [y + aten.rand_like(y), aten.bernoulli.p(y, 0.5)]

    checked(drawn, IMAGE, WEIGHT)


def test_what_is_written_in_place_keeps_its_strides() -> None:
    def written(x: Tensor, w: Tensor, out: Tensor) -> Tensor:
        y = chain(x, w)
        out.copy_(y)
        z = chain(out, w)
        place = y.clone()
        place[:, 0].copy_(z[:, 1])
        return place

    checked(written, IMAGE, WEIGHT, torch.zeros(IMAGE.shape))


def test_results_that_share_memory_still_do() -> None:
    after = checked(lambda x, w: (lambda y: [y, y[0], y.view(2, -1)])(chain(x, w)), IMAGE, WEIGHT)
    whole, part, flat = after(IMAGE, WEIGHT)
    assert whole.data_ptr() == part.data_ptr() == flat.data_ptr()


def test_attention_between_convolutions() -> None:
    def mixed(x: Tensor, w: Tensor) -> Tensor:
        x = chain(x, w)
        tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)
        y = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return chain(y.squeeze(1).transpose(1, 2).reshape(x.shape), w)

    after = checked(mixed, IMAGE, WEIGHT)
    assert all(is_last(n) for n in calls(after, aten.convolution.default))


def test_depthwise_convolutions_follow_their_neighbours() -> None:
    def inverted(x: Tensor, up: Tensor, each: Tensor, down: Tensor) -> Tensor:
        for _ in range(2):
            x = x + conv(conv(conv(x, up, 0), each, groups=64), down, 0)
        return x

    checked(inverted, IMAGE, torch.randn(64, 16, 1, 1), torch.randn(64, 1, 3, 3), torch.randn(16, 64, 1, 1))
    alone = trace(lambda x, w: conv(torch.relu(conv(x, w, groups=16)), w, groups=16), IMAGE, torch.randn(16, 1, 3, 3))
    assert targets(placed(alone)) == targets(alone)


def backward(grad: Tensor, x: Tensor, y: Tensor, w: Tensor) -> list[Tensor]:
    settings = ([0], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
    for saved in (y, y, y, x):
        grad, of_weight, _ = aten.convolution_backward(torch.where(saved > 0, grad, 0), saved, w, *settings)
    return [grad, of_weight]


def test_backward_of_a_chain() -> None:
    after = checked(backward, IMAGE, IMAGE + 1, IMAGE + 2, WEIGHT / 12)
    for node in calls(after, aten.convolution_backward.default):
        assert is_last(node.args[0]) and is_last(node.args[1])


def test_saved_tensors_leave_and_arrive_in_channels_last() -> None:
    def saving(x: Tensor, w: Tensor) -> list[Tensor]:
        y = chain(x, w)
        return [y * 2, y]

    kept = placed(trace(saving, IMAGE, WEIGHT)).graph.output_node().args[0]
    free = placed(trace(saving, IMAGE, WEIGHT), layout=Layout(free=frozenset({1}))).graph.output_node().args[0]
    assert [is_last(n) for n in kept] == [False, False] and [is_last(n) for n in free] == [False, True]

    gm = trace(backward, IMAGE, IMAGE, IMAGE, WEIGHT)
    names = [n.name for n in gm.graph.find_nodes(op="placeholder")]
    with gm.graph.find_nodes(op="placeholder")[0].meta["val"].fake_mode:
        saved = torch.empty(IMAGE.shape).to(memory_format=torch.channels_last)
    after = placed(gm, layout=Layout(inputs={names[1]: saved, names[2]: saved}))
    inputs = [IMAGE, *(t.to(memory_format=torch.channels_last) for t in (IMAGE + 1, IMAGE + 2)), WEIGHT / 12]
    torch.testing.assert_close(after(*inputs), gm(*inputs), rtol=1e-3, atol=1e-3)
    assert not any(n.args[0].op == "placeholder" and n.args[0].name in names[1:3]
                   for n in calls(after, aten.clone.default))


def test_inputs_in_other_strides_than_traced_without_convolutions() -> None:
    gm = trace(lambda x: x.view(2, -1) * 2, IMAGE)
    node = gm.graph.find_nodes(op="placeholder")[0]
    with node.meta["val"].fake_mode:
        value = torch.empty(IMAGE.shape).to(memory_format=torch.channels_last)
    after = placed(gm, layout=Layout(inputs={node.name: value}))
    torch.testing.assert_close(after(IMAGE.to(memory_format=torch.channels_last)), IMAGE.view(2, -1) * 2)


def test_a_transposed_convolution_is_faster_by_far() -> None:
    def upward(x: Tensor, w: Tensor) -> Tensor:
        up = aten.convolution(x, w, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1)
        return torch.relu(up).mean((2, 3))

    after = checked(upward, torch.randn(2, 32, 28, 28), torch.randn(32, 64, 3, 3))
    assert formats(after) == [torch.channels_last]  # of the image: what it is enlarged to is read as it lies
    assert is_last(calls(after, aten.convolution.default)[0])


def test_a_transposed_convolution_of_volumes_is_the_frameworks_own() -> None:
    def upward(x: Tensor, w: Tensor) -> Tensor:
        return aten.convolution(x, w, None, [2] * 3, [1] * 3, [1] * 3, True, [1] * 3, 1).mean((2, 3, 4))

    assert formats(checked(upward, torch.randn(1, 16, 8, 8, 8), torch.randn(16, 32, 3, 3, 3))) == []
