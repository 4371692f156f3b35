"""Memory plan and steps of whole programs."""
from __future__ import annotations

import pytest
import torch
from rooffuse.passes import BufferLife, MemoryPlanError, check_plan
from rooffuse.program import KernelStep, inplace_pairs, make_program

from tests.fuser.graphs import lower_group, planned, trace


def test_fused_module_computes_what_the_graph_does():
    def model(x, w, b):
        h = torch.nn.functional.layer_norm(x @ w, (32,)) + b
        return h.softmax(-1), h.view(4, -1)

    args = [torch.randn(8, 32), torch.randn(32, 32), torch.randn(32)]
    plan = planned(model, *args)
    for ours, reference in zip(plan.fused.module(*args), model(*args)):
        torch.testing.assert_close(ours, reference)


def test_buffers_that_die_give_their_memory_to_later_ones():
    def chain(x, w):
        for _ in range(8):
            x = (x @ w).relu()
        return x

    plan = planned(chain, torch.empty(64, 64), torch.empty(64, 64))
    one = 64 * 64 * 4
    assert plan.program.plan.arena_bytes <= 2 * one
    assert plan.program.plan.reused


def test_outputs_are_never_in_the_arena():
    plan = planned(lambda x, w: ((x @ w).relu(), x + 1), torch.empty(64, 64), torch.empty(64, 64))
    returned = set(plan.fused.module.graph.output_node().all_input_nodes)
    assert returned and not returned & set(plan.program.planned)


def test_a_view_that_escapes_keeps_its_base_out_of_the_arena():
    plan = planned(lambda x, w: (x @ w).view(-1), torch.empty(8, 8), torch.empty(8, 8))
    assert not plan.program.planned


def test_in_place_needs_one_index_for_all_accesses():
    same = lower_group(trace(lambda x: x * 2, torch.empty(8, 8)).graph).kernel
    assert inplace_pairs(same) == {"o0": ("i0",)}
    flipped = lower_group(trace(lambda x: x.flip(0) * 2, torch.empty(8, 8)).graph).kernel
    assert inplace_pairs(flipped) == {"o0": ()}
    transposed = lower_group(trace(lambda x: x.t() + x, torch.empty(8, 8)).graph).kernel
    assert inplace_pairs(transposed) == {"o0": ()}


def test_in_place_waits_for_the_last_sweep_over_the_input():
    def norm(x):
        return x + 1, x / x.sum(-1, keepdim=True)

    kernel = lower_group(trace(norm, torch.empty(8, 64)).graph).kernel
    pairs = inplace_pairs(kernel)
    first, last = pairs["o0"], pairs["o1"]
    assert last == ("i0",)  # stored in the sweep that reads the input for the last time
    assert first == ()  # stored one sweep earlier, when the input is still needed


def test_in_place_is_nothing_that_the_next_row_of_a_strip_reads_again():
    def sums(x, scale):
        y = x * 2
        rows = x * scale
        return y, rows.sum(0), (y + rows).sum(-1)

    kernel = lower_group(trace(sums, torch.empty(64, 13), torch.empty(8, 1, 1)).graph).kernel
    assert any(nest.strip for nest in kernel.nests)
    assert inplace_pairs(kernel)["o0"] == ()


def test_verify_checks_the_plan(monkeypatch):
    import rooffuse.program as program

    plan = planned(lambda x, w: ((x + 1) @ w).relu() @ w, torch.empty(8, 8), torch.empty(8, 8))

    def broken(lives, alignment=128):
        sound = program.MemoryPlan(1024, {life.name: 0 for life in lives}, {})
        return sound

    monkeypatch.setattr(program, "plan_memory", broken)
    with pytest.raises(MemoryPlanError):
        make_program(plan.fused, verify=True)
    make_program(plan.fused, verify=False)


def test_overlap_check_is_independent():
    lives = [BufferLife("a", 256, 0, 2), BufferLife("b", 256, 1, 3)]
    from rooffuse.passes import MemoryPlan

    with pytest.raises(MemoryPlanError, match=r"a.*b|b.*a"):
        check_plan(lives, MemoryPlan(256, {"a": 0, "b": 0}, {}))


def test_kernels_get_their_arguments_in_the_order_of_their_buffers():
    plan = planned(lambda x, y: x * 2 - y, torch.empty(8), torch.empty(8))
    (step,) = [s for s in plan.program.steps if isinstance(s, KernelStep)]
    assert len(step.arguments) == len(step.group.lowered.kernel.buffers) == 3


def test_a_result_stored_in_pieces_takes_no_input_s_memory():
    x = torch.empty(8, 8)
    parts = lower_group(trace(lambda x: torch.cat([x[4:] * 2, x[:4]]), x).graph).kernel
    assert inplace_pairs(parts) == {"o0": ()}
    halves = lower_group(trace(lambda x: torch.stack([x[0] + x[1], x[1]]), torch.empty(2, 8)).graph).kernel
    assert inplace_pairs(halves) == {"o0": ()}
