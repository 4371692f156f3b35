"""Grouping as before/expected pairs: which nodes end up in one launch, and which merges are refused and why."""
from __future__ import annotations

import torch
from rooffuse.codegen.ir import Compute
from rooffuse.compile import kernel_steps
from rooffuse.cost_model import get_device
from rooffuse.pricing import GroupPricer
from rooffuse.step_prices import step_estimate
from rooffuse.units import Units

from tests.fuser.graphs import grouped, groups_of, planned, trace


def test_a_pointwise_chain_is_one_kernel():
    groups = groups_of(grouped(lambda x: (x * 2 + 1).relu().exp(), torch.empty(64, 64)))
    assert groups == [["mul", "add", "relu", "exp"]]


def test_a_norm_is_one_kernel_with_its_residual():
    def norm(x, residual, weight):
        h = x + residual
        return h, h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-6) * weight

    grouping = grouped(norm, torch.empty(512, 1024), torch.empty(512, 1024), torch.empty(1024))
    assert len(grouping.groups) == 1
    assert [n.name for n in grouping.groups[0].outputs] == ["add", "mul_2"]


def test_a_library_call_between_keeps_groups_apart():
    grouping = grouped(lambda x, w: ((x + 1) @ w).relu(), torch.empty(64, 64), torch.empty(64, 64))
    assert groups_of(grouping) == [["add"], ["mm"], ["relu"]]
    assert [g.fused for g in grouping.groups] == [True, False, True]


def test_a_merge_that_would_close_a_cycle_is_refused_with_its_reason():
    def diamond(x, w):
        h = x + 1
        return h * (h @ w).relu()

    grouping = grouped(diamond, torch.empty(256, 256), torch.empty(256, 256))
    assert groups_of(grouping) == [["add"], ["mm"], ["relu", "mul"]]
    assert any("has to run between" in r.reason for r in grouping.refusals)
    assert all(r.seconds > 0 for r in grouping.refusals)


def test_jointly_cyclic_groups_are_refused():
    # {a, d} and {b, c} are each convex, but a -> (mm) -> b and c -> (mm) -> d together make a cycle.
    def crossed(x, y, w):
        a, c = x + 1, y + 1
        b = (a @ w) * y
        d = (c @ w) * x
        return a, b, c, d

    args = [torch.empty(64, 64)] * 3
    grouping = grouped(crossed, *args)
    order = {n: k for k, g in enumerate(grouping.groups) for n in g.nodes}
    for group in grouping.groups:
        for node in group.nodes:
            for source in node.all_input_nodes:
                assert source not in order or order[source] <= order[node]
    assert len(grouping.groups) >= 4


def test_independent_kernels_that_share_an_input_run_side_by_side():
    grouping = grouped(lambda x: (x + 1, x * 2), torch.empty(1024, 1024))
    assert len(grouping.groups) == 1


def test_a_reduction_of_a_reduction_over_other_axes_is_refused():
    grouping = grouped(lambda x: ((x - x.amax(-1, keepdim=True)).exp()).prod(0), torch.empty(64, 128))
    assert len(grouping.groups) == 2
    assert grouping.refusals


def test_sums_along_rows_and_down_columns_are_one_group():
    grouping = grouped(lambda x: ((x - x.amax(-1, keepdim=True)).exp()).sum(0), torch.empty(64, 128))
    assert len(grouping.groups) == 1
    assert [a.size for a in grouping.groups[0].lowered.kernel.nests[0].strip] == [64]


def test_rows_are_not_reduced_again_for_each_column_of_a_product() -> None:
    """On a CPU, whose loops would go through all of a row for each: eight of them took three times the library's."""
    def fn(x, w):
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)) @ w.T

    for rows, kernels in ((1, 1), (8, 2)):
        plan = planned(fn, torch.empty(rows, 4096), torch.empty(768, 4096), device="cpu")
        assert len(plan.grouping.groups) == kernels


def test_constants_are_made_inside_of_kernels():
    grouping = grouped(lambda x: x + torch.arange(64) + torch.ones(64), torch.empty(8, 64))
    assert len(grouping.groups) == 1
    assert not grouping.groups[0].extracted or len(grouping.groups[0].extracted.inputs) == 1


def test_arithmetic_on_positions_is_done_where_it_is_needed():
    def fn(x, y):
        place = torch.arange(64)
        mask = (place[:, None] - place[None, :] < 7) & (place[:, None] >= place)
        return torch.where(mask, x @ x.mT, 0.0), torch.where(mask, y, 0.0).sum(-1)

    grouping = grouped(fn, torch.empty(8, 64, 64), torch.empty(512, 64, 64))
    assert [g.fused for g in grouping.groups].count(True) <= 2
    assert not any(n.meta["val"].dtype == torch.bool for g in grouping.groups for n in g.outputs)


def test_positions_that_are_returned_are_stored():
    place = grouped(lambda x: (x + (torch.arange(64) * 3 + 1), torch.arange(64) * 3 + 1), torch.empty(8, 64))
    assert torch.int64 in {n.meta["val"].dtype for g in place.groups for n in g.outputs}


def test_a_mutated_input_is_not_read_after_it_is_written():
    def step(cache, x):
        y = cache * 2
        cache.copy_(x)
        return y

    grouping = grouped(step, torch.empty(64), torch.empty(64))
    position = {n.name: k for k, g in enumerate(grouping.groups) for n in g.nodes}
    assert position["mul"] <= position["copy_"]


def test_random_calls_keep_their_order():
    grouping = grouped(lambda x: torch.rand_like(x) + torch.rand_like(x) * 2, torch.empty(64))
    names = [n.name for g in grouping.groups for n in g.nodes if "rand" in n.name]
    assert names == ["rand_like", "rand_like_1"]


def test_identical_layers_are_grouped_alike_and_lowered_once():
    def layers(x, w):
        for _ in range(6):
            h = torch.nn.functional.silu(x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6))
            x = x + h @ w
        return x

    grouping = grouped(layers, torch.empty(64, 64), torch.empty(64, 64))
    keys = {g.extracted.key for g in grouping.groups if g.extracted is not None}
    assert sum(g.fused for g in grouping.groups) == 7
    assert len(keys) <= 3


def test_a_cheap_producer_is_computed_in_each_consumer():
    def fn(x, w):
        wide = x.float()
        a = wide * 2
        b = (w @ w) + wide
        return a, b

    grouping = grouped(fn, torch.empty(1024, 1024, dtype=torch.bfloat16), torch.empty(1024, 1024))
    fused = [[n.name for n in g.nodes] for g in grouping.groups if g.fused]
    assert fused == [["_to_copy", "mul"], ["_to_copy", "add"]] or fused == [["_to_copy", "mul", "add"]]
    assert all(o.name != "_to_copy" for g in grouping.groups for o in g.outputs)


def test_an_expensive_producer_is_stored():
    def fn(x, w):
        h = x + w + w.t() + x.t()
        return h * 2, (w @ w) + h

    grouping = grouped(fn, torch.empty(1024, 1024), torch.empty(1024, 1024))
    computed = [n.name for g in grouping.groups for n in g.nodes]
    assert len(computed) == len(set(computed))


def half(*shape):
    return torch.empty(shape, dtype=torch.bfloat16)


def launches(fn, *args, device="h100"):
    plan = planned(fn, *args, device=device)
    return [([n.name for n in g.nodes], g.fused) for g in plan.grouping.groups]


def test_a_product_takes_its_epilogue_along_where_bytes_bound_it():
    args = half(8192, 1024), half(1024, 1024), half(8192, 1024)
    assert launches(lambda x, w, r: (x @ w).relu() + r, *args) == [(["mm", "relu", "add"], True)]


def test_products_of_one_input_are_computed_together_with_what_joins_them():
    args = half(16, 4096), half(4096, 8192), half(4096, 8192)
    found = launches(lambda x, gate, up: torch.nn.functional.silu(x @ gate) * (x @ up), *args)
    assert len(found) == 1
    assert found[0][1]


def test_a_product_alone_and_one_bound_by_its_flops_are_library_calls():
    assert launches(lambda x, w: x @ w, half(64, 512), half(512, 512)) == [(["mm"], False)]
    found = launches(lambda x, w: (x @ w).relu(), half(8192, 8192), half(8192, 8192))
    assert found == [(["mm"], False), (["relu"], True)]


def test_a_product_on_a_cpu_is_a_library_call():
    args = torch.empty(64, 512), torch.empty(512, 512)
    assert launches(lambda x, w: (x @ w).relu(), *args, device="cpu") == [(["mm"], False), (["relu"], True)]


def test_few_rows_on_a_cpu_join_a_kernel_where_the_weights_run_along_the_sum():
    def layer(x, w):
        return (x.sigmoid() @ w).relu()

    x, weight = torch.empty(4, 512), torch.empty(512, 512)
    assert [fused for _, fused in launches(layer, x, weight.t(), device="cpu")] == [True]
    assert [fused for _, fused in launches(layer, x, weight, device="cpu")] == [True, False, True]
    assert [fused for _, fused in launches(layer, x[:1], weight, device="cpu")] == [True]


def test_a_quantised_weight_is_multiplied_as_it_is_stored():
    weight = torch.empty(4096, 4096, dtype=torch.int8)
    found = launches(lambda x, w, s: (x @ w.to(x.dtype).t()) * s, half(8, 4096), weight, half(4096))
    assert len(found) == 1
    assert found[0][1]


def test_a_recurrence_whose_steps_are_stacked_is_one_kernel():
    def loop(a, b):
        state, states = torch.zeros_like(a[:, 0]), []
        for t in range(12):
            state = a[:, t] * state + b[:, t]
            states.append(state * 2)
        return torch.stack(states, 1)

    grouping = grouped(loop, torch.empty(2, 12, 256, 16), torch.empty(2, 12, 256, 16))
    assert len(grouping.groups) == 1
    kernel = grouping.groups[0].lowered.kernel
    assert len(kernel.nests) == 1 and "where" not in str(kernel)


def test_a_stack_that_is_only_stored_does_not_multiply_the_price_of_its_steps():
    def loop(a, b, read):
        state, states = torch.zeros_like(a[:, 0]), []
        for t in range(12):
            state = a[:, t] * state + b[:, t]
            states.append(state)
        return torch.stack(states, 1).exp() if read else torch.stack(states, 1)

    def operations(read):
        gm = trace(lambda a, b: loop(a, b, read), *torch.empty(2, 2, 12, 256, 16))
        units = Units(gm.graph)
        return GroupPricer(units, get_device("h100")).cost(set(units.units), ()).flops

    elements = 2 * 12 * 256 * 16
    assert operations(False) < 3 * elements
    assert operations(True) > 12 * elements


def predicted(fn, *args, device="cpu"):
    plan = planned(fn, *args, device=device)
    (step,) = kernel_steps(plan.program)
    return step_estimate(step, plan.target)


def test_a_kernel_is_predicted_by_its_operations_where_they_take_longer_than_its_bytes():
    x = torch.empty(1 << 20)
    assert predicted(lambda x: x + 1, x).bound == "memory"
    heavy = predicted(lambda x: x.exp().sin().exp().sin().exp(), x)
    assert heavy.bound == "compute"
    assert heavy.compute_s > 3 * predicted(lambda x: x.exp(), x).compute_s


def test_an_index_made_of_places_is_computed_where_it_is_used():
    def embedded(words, table, weight):
        rows = words + torch.nn.functional.embedding(torch.arange(4096) % 512, table)
        return rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-6) * weight

    plan = planned(embedded, torch.empty(4096, 1024), torch.empty(512, 1024), torch.empty(1024))
    assert [op for s in kernel_steps(plan.program) for op in _operations(s)].count("remainder") == 0
    assert len(plan.program.steps) == 1


def test_windows_and_what_is_around_them_are_one_kernel():
    def stem(x, y):
        return torch.nn.functional.max_pool2d(x.relu(), 3, 2, 1) + torch.nn.functional.interpolate(y, scale_factor=2)

    plan = planned(stem, torch.empty(8, 32, 64, 64), torch.empty(8, 32, 16, 16))
    assert len(plan.program.steps) == 1


def test_rows_are_quantised_without_a_wide_copy():
    def quantised(x):
        scale = x.abs().amax(-1, keepdim=True).float() / 448
        return (x.float() / scale).to(torch.float8_e4m3fn), scale

    plan = planned(quantised, torch.empty(4096, 4096, dtype=torch.bfloat16))
    (step,) = kernel_steps(plan.program)
    assert sum(b.size * b.dtype.itemsize for b in _kernel(step).buffers) == 4096 * (4096 * (2 + 1) + 4)


def _kernel(step):
    return step.group.lowered.kernel


def _operations(step):
    return [s.op for s in _kernel(step).statements() if isinstance(s, Compute)]


def updates(*tensors):
    for average, value in zip(tensors[:2], tensors[2:], strict=True):
        average.lerp_(value, 0.1)


def large_results(*tensors):
    return [x.exp() for x in tensors]


def test_updates_of_large_parameters_share_a_launch_as_large_results_do():
    large = [torch.empty(*sizes) for sizes in ((4096, 4096), (1000, 3000), (4096, 4096), (1000, 3000))]
    assert len(kernel_steps(planned(updates, *large, device="h100").program)) == 1
    assert len(kernel_steps(planned(large_results, *large, device="h100").program)) == 1
