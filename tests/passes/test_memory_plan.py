"""Memory plans: nothing live overlaps, arenas stay near the lower bound, broken plans are refused."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rooffuse.passes import (
    BufferLife,
    MemoryPlan,
    MemoryPlanError,
    check_plan,
    peak_live_bytes,
    plan_memory,
)


@st.composite
def lifetimes(draw):
    count = draw(st.integers(0, 40))
    lives = []
    for index in range(count):
        first = draw(st.integers(0, 30))
        last = first + draw(st.integers(0, 10))
        nbytes = draw(st.sampled_from((0, 1, 100, 128, 4096, 5000, 100_000)))
        dying = [life.name for life in lives if life.last == first and life.first < first]
        inplace = tuple(name for name in dying if draw(st.booleans()))
        lives.append(BufferLife(f"b{index}", nbytes, first, last, inplace))
    return lives


@settings(max_examples=200, deadline=None)
@given(lifetimes(), st.sampled_from((1, 64, 128)))
def test_random_plans_pass_the_check(lives, alignment):
    plan = plan_memory(lives, alignment)
    check_plan(lives, plan)
    assert all(offset % alignment == 0 for offset in plan.offsets.values())
    assert set(plan.offsets) == {life.name for life in lives}


@settings(max_examples=100, deadline=None)
@given(lifetimes(), st.data())
def test_a_moved_buffer_is_refused(lives, data):
    pairs = [
        (a, b)
        for a in lives
        for b in lives
        if a.name < b.name and a.nbytes and b.nbytes and a.first <= b.last and b.first <= a.last
    ]
    lives = [replace(life, inplace_of=()) for life in lives]
    plan = plan_memory(lives)
    if not pairs:
        return
    left, right = data.draw(st.sampled_from(pairs))
    moved = MemoryPlan(1 << 30, {**plan.offsets, right.name: plan.offsets[left.name]}, {})
    with pytest.raises(MemoryPlanError, match="overlap"):
        check_plan(lives, moved)


def transformer_lifetimes(layers: int, seed: int) -> list[BufferLife]:
    """A residual stream, wide and narrow temporaries and a few long-lived tensors, as a decoder stack has."""
    rng = random.Random(seed)
    lives = []
    step = 0
    width = 4096 * rng.choice((1, 2, 4))
    for layer in range(layers):
        for name, scale, length in (("norm", 1, 2), ("qkv", 3, 2), ("rope", 2, 1), ("att", 1, 2), ("res", 1, 6),
                                    ("norm2", 1, 2), ("gate", 4, 2), ("up", 4, 1), ("act", 4, 1), ("res2", 1, 6)):
            lives.append(BufferLife(f"{name}_{layer}", width * scale + rng.randrange(4) * 128, step, step + length))
            step += 1
        if layer % 3 == 0:
            lives.append(BufferLife(f"long{layer}", width, step, step + 40))
    return lives


@pytest.mark.parametrize("seed", range(5))
def test_arena_is_near_the_lower_bound(seed):
    lives = transformer_lifetimes(40, seed)
    plan = plan_memory(lives)
    check_plan(lives, plan)
    assert peak_live_bytes(lives) <= plan.arena_bytes <= 1.3 * peak_live_bytes(lives)


@pytest.mark.parametrize("seed", range(3))
def test_arena_of_random_lives_is_near_the_lower_bound(seed):
    rng = random.Random(seed)
    lives = []
    for index in range(1000):
        first = rng.randrange(1000)
        lives.append(BufferLife(f"b{index}", rng.randrange(1, 1 << 20), first, first + int(rng.expovariate(0.05))))
    plan = plan_memory(lives)
    check_plan(lives, plan)
    assert plan.arena_bytes <= 1.3 * peak_live_bytes(lives)


def test_five_thousand_buffers_in_under_a_second():
    lives = transformer_lifetimes(500, 0)[:5000]
    start = time.process_time()
    plan = plan_memory(lives)
    assert time.process_time() - start < 1.0
    check_plan(lives, plan)


def test_in_place_takes_over_the_dying_buffer():
    lives = [BufferLife("a", 1000, 0, 1), BufferLife("b", 1000, 1, 2, ("a",)), BufferLife("c", 900, 2, 3, ("b",))]
    plan = plan_memory(lives)
    assert plan.reused == {"b": "a", "c": "b"}
    assert plan.arena_bytes == 1024
    check_plan(lives, plan)


def test_one_donor_serves_one_buffer():
    lives = [BufferLife("a", 100, 0, 1), BufferLife("b", 100, 1, 2, ("a",)), BufferLife("c", 100, 1, 2, ("a",))]
    plan = plan_memory(lives)
    assert plan.reused == {"b": "a"}
    check_plan(lives, plan)


def test_a_larger_buffer_does_not_take_over_a_smaller_one():
    lives = [BufferLife("a", 100, 0, 1), BufferLife("b", 200, 1, 2, ("a",))]
    assert not plan_memory(lives).reused


def test_a_live_donor_is_refused():
    lives = [BufferLife("a", 100, 0, 2), BufferLife("b", 100, 1, 2, ("a",))]
    with pytest.raises(MemoryPlanError, match="'a', which is live until"):
        plan_memory(lives)


def test_an_overlap_names_both_buffers():
    lives = [BufferLife("left", 100, 0, 2), BufferLife("right", 100, 1, 3)]
    with pytest.raises(MemoryPlanError, match=r"'right'.*'left'"):
        check_plan(lives, MemoryPlan(256, {"left": 0, "right": 64}, {}))


def test_a_buffer_outside_of_the_arena_is_refused():
    with pytest.raises(MemoryPlanError, match="not inside the arena"):
        check_plan([BufferLife("a", 100, 0, 0)], MemoryPlan(64, {"a": 0}, {}))


def test_bad_lifetimes_and_names_are_refused():
    with pytest.raises(MemoryPlanError, match="'a'"):
        BufferLife("a", 1, 3, 2)
    with pytest.raises(MemoryPlanError, match="two buffers"):
        plan_memory([BufferLife("a", 1, 0, 0), BufferLife("a", 1, 0, 0)])


def test_the_plan_does_not_depend_on_the_order_of_the_list():
    lives = transformer_lifetimes(10, 1)
    shuffled = list(lives)
    random.Random(3).shuffle(shuffled)
    assert dict(plan_memory(lives).offsets) == dict(plan_memory(shuffled).offsets)
