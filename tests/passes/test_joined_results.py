"""Library results are written where a concatenation of them has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import rooffuse
import rooffuse.compile
import torch
from conftest import targets
from rooffuse.compile import Plan
from rooffuse.joining import with_joined_results
from rooffuse.passes.graph import storage_roots
from rooffuse.program import CallStep, KernelStep
from rooffuse.result_memory import RESULTS
from rooffuse.step_prices import step_price
from torch import Tensor

from tests.fuser.graphs import planned
from tests.models.eager import STRICT, tensors

cat, stack = torch.cat, torch.stack
DEVICES = ("cpu", "h100")
TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (3e-2, 3e-2)}

Function = Callable[..., Any]


def sides(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((x @ a, x @ b), -1)


def rows(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((x @ a, (x * 2) @ a))


def with_bias(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((torch.addmm(x[:, :1], x, a, beta=0.5, alpha=2), x @ b), 1)


def batches(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    several = stack((x, x - 1, x.sin()))
    return cat((torch.bmm(several, a.expand(3, -1, -1)), torch.bmm(several, b.expand(3, -1, -1))), -1)


def added_batches(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    several, weights = stack((x, x - 1)), a.expand(2, -1, -1)
    return cat((torch.baddbmm(a[0], several, weights, beta=3, alpha=0.5), torch.bmm(several + 1, weights)))


def stacked(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return stack((x @ a, (x + 1) @ a))


def stacked_inside(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return stack((x @ a, (x + 1) @ a), -2)


def through_views(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat(((x @ a).view(-1, 3, 8), (x @ b).view(-1, 5, 8)), 1)


def through_a_dimension_of_one(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat(((x @ a).unsqueeze(1), ((x + 1) @ a).unsqueeze(1)), 1)


def through_permutations(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Heads come first in the products and after the rows in the result."""
    heads, weights = stack((x, x - 1, x.sin(), x.cos())), a.expand(4, -1, -1)
    return cat((torch.bmm(heads, weights).view(2, 2, -1, 24).permute(2, 0, 1, 3),
                torch.bmm(heads + 1, weights).transpose(0, 1).view(-1, 2, 2, 24)))


def narrow_rows(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """No access to rows of 23 elements is as wide as can be, wherever they begin."""
    return cat((x @ a[:, :23], x @ b[:, :39]), -1)


WHOLE = (sides, rows, with_bias, batches, added_batches, stacked, stacked_inside, through_views,
         through_a_dimension_of_one, through_permutations, narrow_rows)


def before(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((x.sin(), x @ a, x @ b), -1)


def neighbours(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((x @ b, x.sin(), x.cos()), -1)


def between(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return stack((x @ a, a[0] + x[:, :1], (x + 1) @ a))


def a_kernels_part(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat(((x @ a).relu(), x @ b), -1)


def one_is_returned(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ a
    return cat((y, x @ b), -1), y


def one_is_returned_as_a_view(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ a
    return cat((y, x @ b), -1), y.t()


def one_is_there_twice(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x @ a
    return cat((y, y, x @ b), -1)


def one_is_read_by_a_kernel(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ a
    return cat((y, x @ b), -1), y.sin()


def one_of_a_batch(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((x @ a, torch.bmm(stack((x, x + 1)), a.expand(2, -1, -1))[1]))


#: How many products are told where to write; one kernel copies the parts that are left.
IN_PART = {before: 2, neighbours: 1, between: 2, a_kernels_part: 1, one_is_returned: 1, one_is_returned_as_a_view: 1,
           one_is_there_twice: 1, one_is_read_by_a_kernel: 1, one_of_a_batch: 1}


def all_are_returned(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    y, z = x @ a, x @ b
    return cat((y, z), -1), y, z


def of_another_type(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((x @ a, (x @ b).to(torch.float64)), -1)


def not_stored(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((x @ a, x @ b), -1).relu()


def inside_of_a_kernel(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((x @ a, x @ b), -1).softmax(-1)


def two_runs_are_left(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((x.sin(), x @ a, x.cos()), -1)


def misaligned_rows(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat((x[:, :3].sin(), x @ a), -1)


def elements_apart(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return stack((x @ a, (x + 1) @ a), -1)


def rows_that_cannot_be_viewed(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Elements that are next to each other in the product aren't in the result."""
    return cat(((x @ a).view(-1, 2, 12), (x @ b).view(-1, 2, 20)), -1)


def columns_become_rows(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat(((x @ a).t(), (x @ b).t()))


def spread_out(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cat(((x @ a).expand(2, -1, -1), (x @ a * 2).expand(2, -1, -1)), -1)


def mostly_a_kernels(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A kernel that reads the result makes it, and reads it no more where a product has written it."""
    y = cat((x + 1, x * 2, x - 3, x @ a[:, :12]), -1)
    return y, y.softmax(-1)


STAY = (all_are_returned, of_another_type, not_stored, inside_of_a_kernel, two_runs_are_left, misaligned_rows,
        elements_apart, rows_that_cannot_be_viewed, columns_become_rows, spread_out, mostly_a_kernels)


def mostly_products(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = cat((x.sin(), x @ a, x @ b), -1)
    return y, y.softmax(-1)


def steps(x: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    """States of 16 that products read on the way to the next one."""
    h, states = x, []
    for k in range(4):
        h = torch.tanh((x * k) @ a[:, :16] + h @ b[:, :16])
        states.append(h)
    return states


def recurrence(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return stack(steps(x, a, b), 1)


def recurrence_and_last(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    states = steps(x, a, b)
    return stack(states), states[-1] * 2


def states_side_by_side(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """All of which a later product reads again."""
    first = torch.tanh(x @ a[:, :16])
    second = torch.tanh(first @ a[:, :16])
    third = torch.tanh(second @ b[:, :16] + first @ b[:, 16:32])
    return cat((first, second, third), -1)


RECURRENCES = (recurrence, recurrence_and_last, states_side_by_side)
#: What is run, and what of it in bfloat16, too.
RUN = (*WHOLE, *IN_PART, *RECURRENCES, mostly_products, elements_apart, rows_that_cannot_be_viewed, misaligned_rows,
       mostly_a_kernels)
HALF = (sides, rows, with_bias, added_batches, through_permutations, narrow_rows, between, *RECURRENCES)


def made(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [t.to(dtype) for t in (torch.randn(count, 16), torch.randn(16, 24) / 4, torch.randn(16, 40) / 4)]


def moved_bytes(plan: Plan) -> int:
    return sum(int(step_price(s, plan.target).cost.bytes) for s in plan.program.steps
               if isinstance(s, KernelStep | CallStep))


def kernels(plan: Plan) -> int:
    return sum(isinstance(s, KernelStep) for s in plan.program.steps)


def plan_without(fn: Function, *inputs: Tensor, device: str) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooffuse.compile, "with_joined_results", lambda *_: None)
        return planned(fn, *inputs, device=device)


def named(fn: Function) -> str:
    return fn.__name__


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fn", WHOLE, ids=named)
def test_nothing_is_concatenated_where_products_make_all_parts(fn: Function, device: str) -> None:
    plan, plain = (maker(fn, *made(37), device=device) for maker in (planned, plan_without))
    found = targets(plan.graph)
    assert found.count("aten.empty_strided.default") == 1
    assert sum(name.endswith("mm.out") for name in found) == 2
    assert not {"aten.cat.default", "aten.copy_.default"} & set(found[found.index("aten.empty_strided.default"):])
    assert kernels(plan) == kernels(plain) - 1 and moved_bytes(plan) < moved_bytes(plain)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("fn", "count"), IN_PART.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_one_kernel_copies_the_other_parts(fn: Function, count: int, device: str) -> None:
    plan, plain = (maker(fn, *made(37), device=device) for maker in (planned, plan_without))
    found = targets(plan.graph)
    assert sum(name.endswith("mm.out") for name in found) == count
    assert found.count("aten.copy_.default") == 1
    assert kernels(plan) == kernels(plain) and moved_bytes(plan) < moved_bytes(plain)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fn", STAY, ids=named)
def test_other_concatenations_stay(fn: Function, device: str) -> None:
    plain = plan_without(fn, *made(37), device=device)
    assert with_joined_results(plain.graph, plain.grouping, True) is None


def test_a_launch_more_is_worth_what_it_spares() -> None:
    """A kernel that reads the result might have made it, too. Few rows are moved in less time than a launch takes."""
    for count, moved in ((37, 0), (1 << 17, 2)):
        found = targets(planned(mostly_products, *made(count), device="h100").graph)
        assert sum(name.endswith("mm.out") for name in found) == moved


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fn", RECURRENCES, ids=named)
def test_what_products_read_as_well_is_stored_in_place_and_read_from_there(fn: Function, device: str) -> None:
    """Only the result's memory is written by kernels but for factors of products; no state has memory of its own."""
    plan, plain = (maker(fn, *made(37), device=device) for maker in (planned, plan_without))
    graph = plan.graph.graph
    memory, = graph.find_nodes(op="call_function", target=torch.ops.aten.empty_strided.default)
    roots, states = storage_roots(graph), 3 if fn is states_side_by_side else 4
    copies = graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)
    assert len(copies) == states and all(roots[n] is memory for n in copies)
    products = graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
    assert sum(roots[n.args[0]] is memory for n in products) == 3
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default):
        assert all(n not in products for n in node.users)
    assert moved_bytes(plan) < moved_bytes(plain)


def test_states_that_other_kernels_read_keep_their_memory() -> None:
    def fn(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        first = torch.tanh(x @ a[:, :16])
        return stack((first, torch.tanh(first @ b[:, :16] + first)), 1)

    plain = plan_without(fn, *made(37), device="cpu")
    assert kernels(plain) == 2 and with_joined_results(plain.graph, plain.grouping, True) is None
    torch._dynamo.reset()
    inputs = made(37)
    torch.testing.assert_close(torch.compile(fn, backend="rooffuse", options=STRICT)(*inputs), fn(*inputs))


@pytest.mark.parametrize(("fn", "count", "dtype"),
                         [*((fn, 7, torch.float32) for fn in RUN),
                          *((fn, 37, torch.bfloat16) for fn in HALF),
                          *((fn, 1, torch.float32) for fn in (rows, stacked_inside, added_batches, recurrence))],
                         ids=lambda v: getattr(v, "__name__", str(v)))
def test_results_are_those_of_eager(fn: Function, count: int, dtype: torch.dtype) -> None:
    """In memory that holds what an earlier call left there."""
    torch._dynamo.reset()
    run, (rtol, atol) = torch.compile(fn, backend="rooffuse", options=STRICT), TOLERANCE[dtype]
    for _ in range(3):
        inputs = made(count, dtype)
        torch.testing.assert_close(run(*inputs), fn(*inputs), rtol=rtol, atol=atol, check_stride=True)


@pytest.mark.parametrize("fn", (sides, with_bias, added_batches, through_permutations, rows_that_cannot_be_viewed,
                                recurrence, states_side_by_side), ids=named)
def test_gradients_are_those_of_eager(fn: Function) -> None:
    torch._dynamo.reset()
    run = torch.compile(fn, backend="rooffuse", options=STRICT)
    for _ in range(2):
        inputs, found = made(11), []
        for function in (run, fn):
            leaves = [t.clone().requires_grad_() for t in inputs]
            sum(t.sin().sum() for t in tensors(function(*leaves))).backward()
            found.append([t.grad for t in leaves])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_gradients_of_parts_are_written_where_the_whole_has_them() -> None:
    """The gradient of what is split is a concatenation."""
    def fn(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return (left @ a[:8]).sin().sum() + (right @ b[8:]).cos().sum()

    grads = torch.func.grad(fn)
    assert sum(name.endswith("mm.out") for name in targets(planned(grads, *made(37), device="cpu").graph)) == 2


@pytest.mark.parametrize("fn", (sides, recurrence, before), ids=named)
def test_results_of_two_calls_do_not_share_memory(fn: Function) -> None:
    torch._dynamo.reset()
    run, inputs = torch.compile(fn, backend="rooffuse", options=STRICT), [made(37) for _ in range(3)]
    found = [run(*args) for args in inputs]
    assert len({t.untyped_storage().data_ptr() for t in found}) == 3
    for result, args in zip(found, inputs):
        torch.testing.assert_close(result, fn(*args), rtol=1e-4, atol=1e-4)


def test_large_results_lie_in_memory_that_earlier_ones_left() -> None:
    torch._dynamo.reset()
    run, inputs = torch.compile(sides, backend="rooffuse", options=STRICT), made(8192)
    rooffuse.empty_cache()
    place = run(*inputs).data_ptr()
    assert RESULTS.bytes == 4 * 8192 * 64 and run(*inputs).data_ptr() == place
    rooffuse.empty_cache()


@pytest.mark.parametrize("device", DEVICES)
def test_memory_is_planned_unless_the_caller_gets_it(device: str) -> None:
    for fn, inner in ((sides, False), (lambda x, a, b: sides(x, a, b) @ b.new_ones(64, 8), True)):
        program = planned(fn, *made(37), device=device).program
        memory, = program.fused.module.graph.find_nodes(op="call_function",
                                                        target=torch.ops.aten.empty_strided.default)
        assert (memory in program.planned) == inner and (memory in program.fresh) != inner
        assert program.plan.arena_bytes >= 4 * 37 * 64 * inner


def test_planned_memory_does_not_outlive_its_readers() -> None:
    """One after the other, each with its own place while it is read."""
    def fn(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        for k in range(3):
            x = (sides(x, a, b).view(-1, 4, 16) @ a[:, :16] + k).view(-1, 64)[:, :16].contiguous()
        return x

    arena = planned(fn, *made(37), device="cpu").program.plan.arena_bytes
    assert arena < 4 * 37 * 64 * 4
    torch._dynamo.reset()
    run = torch.compile(fn, backend="rooffuse", options=STRICT)
    for _ in range(3):
        inputs = made(37)
        torch.testing.assert_close(run(*inputs), fn(*inputs), rtol=1e-4, atol=1e-4)
