"""Sizes and numbers that depend on what tensors hold: the graph is cut where one is read, and its pieces compiled."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rooffuse.specialise
import torch
from rooffuse.specialise import SpecialisingFunction
from torch import Tensor

from tests.models.eager import STRICT, tensors

Function = Callable[..., Any]
COUNT = 23


@pytest.fixture(autouse=True)
def captured() -> Iterator[None]:
    """Dynamo leaves calls that read sizes or numbers in the graph."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        yield
    torch._dynamo.reset()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is compiled while the test runs, by its kind."""
    made: list[str] = []
    compile_graph = rooffuse.specialise.compile_graph

    def counted(*args: Any, name: str) -> Any:
        made.append(name)
        return compile_graph(*args, name=name)

    monkeypatch.setattr(rooffuse.specialise, "compile_graph", counted)
    return made


def compiled(fn: Function) -> Function:
    return torch.compile(fn, backend="rooffuse", fullgraph=True, options=STRICT)


def chosen_rows(x: Tensor, mask: Tensor) -> Tensor:
    return (x * 2)[mask].exp().sum(-1)


def first_row(x: Tensor, mask: Tensor) -> Tensor:
    """A piece that has one result of several rows, which isn't its first row."""
    return x[mask] + 1


def rows_and_columns(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask].t().softmax(0) @ x[mask]


def same_mask_twice(x: Tensor, mask: Tensor) -> Tensor:
    return (x[mask].sin() * (x + 1)[mask].cos()).mean(-1)


def two_masks(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return x[mask].sum(0) * 2, x[~mask].tanh()


def mask_of_a_mask(x: Tensor, mask: Tensor) -> Tensor:
    kept = x[mask] * 2
    return kept[kept[:, 0] > 0].square() + 1


def elements(x: Tensor, mask: Tensor) -> Tensor:
    return torch.masked_select(x.sin(), mask[:, None]) * 3


def both_dimensions(x: Tensor, mask: Tensor) -> Tensor:
    return x[(x > 0) & mask[:, None]].exp() - 1


def places(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    found = mask.nonzero()
    return found[:, 0] * 2 + 1, x[found.squeeze(-1)].relu()


def places_as_a_tuple(x: Tensor, mask: Tensor) -> Tensor:
    rows, columns = torch.where((x > 0.3) & mask[:, None])
    return x[rows, columns] * (rows + columns)


def distinct(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    values, back, counts = torch.unique((x * 2).round().to(torch.int64) * mask[:, None], return_inverse=True,
                                        return_counts=True)
    return values * 2, back + 1, counts.float() / x.numel()


def repeated(x: Tensor, mask: Tensor) -> Tensor:
    return x.sin().repeat_interleave(mask.long() * 2, 0) * 2


def a_number(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask.sum().item() + x.sum().item()).tanh()


def a_size(x: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum().item()
    torch._check(count >= 0)
    return torch.arange(count) * 2 + x.new_ones(count).cumsum(0)


def written_rows(x: Tensor, mask: Tensor) -> Tensor:
    out = x * 2
    out[mask] = x[mask].exp() + 1
    return out.sin()


def nothing_is_computed(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask]


def returned_as_it_came(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kept = x[mask]
    return kept, kept * 2, x + 1


def experts(x: Tensor, mask: Tensor) -> Tensor:
    """Each expert computes the rows that were sent to it."""
    weights = (x.mT @ x).sin()
    to = (x.sum(-1) * 10).long() % 3
    out = torch.zeros_like(x)
    for k in range(3):
        rows = ((to == k) & mask).nonzero().squeeze(-1)
        out = out.index_add(0, rows, torch.nn.functional.gelu(x[rows] @ (weights + k)))
    return out * 2


FUNCTIONS = (chosen_rows, first_row, rows_and_columns, same_mask_twice, two_masks, mask_of_a_mask, elements,
             both_dimensions, places, places_as_a_tuple, distinct, repeated, a_number, a_size, written_rows,
             nothing_is_computed, returned_as_it_came, experts)
#: How many of the rows are taken; each of these a second time is compiled where the first wasn't.
MASKS = (9, 0, COUNT, 1, 9, 9)


def masks(counts: tuple[int, ...] = MASKS) -> Iterator[Tensor]:
    for count in counts:
        yield torch.randperm(COUNT) < count


def check_same(found: Any, expected: Any) -> None:
    for ours, reference in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    assert type(found) is type(expected)


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_results_are_those_of_eager(fn: Function) -> None:
    run = compiled(fn)
    for mask in masks():
        x = torch.randn(COUNT, 6)
        before, mask_before = x.clone(), mask.clone()
        check_same(run(x, mask), fn(x, mask))
        assert torch.equal(x, before) and torch.equal(mask, mask_before)


@pytest.mark.parametrize("fn", (chosen_rows, first_row, same_mask_twice, two_masks, elements, repeated, written_rows,
                                experts), ids=lambda fn: fn.__name__)
def test_gradients_are_those_of_eager(fn: Function) -> None:
    run = compiled(fn)
    for mask in masks((9, 0, COUNT, 9)):
        x, grads = torch.randn(COUNT, 6), []
        for function in (run, fn):
            leaf = x.clone().requires_grad_()
            sum(t.cos().sum() for t in tensors(function(leaf, mask))).backward()
            grads.append(leaf.grad)
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def changed_around(x: Tensor, mask: Tensor) -> Tensor:
    """Rows are taken after one change and before another."""
    x.add_(1)
    kept = x[mask]
    x.mul_(2)
    return kept * 3


def changed_by_what_was_taken(x: Tensor, mask: Tensor) -> Tensor:
    kept = x[mask].exp()
    x[mask] = kept + 1
    return kept.sum() + x[0]


def changed_by_a_number(x: Tensor, mask: Tensor) -> Tensor:
    x[1:].sub_(x.mean().item())
    mask.logical_not_()
    return x[mask]


@pytest.mark.parametrize("fn", (changed_around, changed_by_what_was_taken, changed_by_a_number),
                         ids=lambda fn: fn.__name__)
def test_inputs_are_changed_as_eager_changes_them(fn: Function) -> None:
    run = compiled(fn)
    for mask in masks():
        x = torch.randn(COUNT, 6)
        ours, reference = [x.clone(), mask.clone()], [x.clone(), mask.clone()]
        check_same((run(*ours), *ours), (fn(*reference), *reference))


def test_results_of_two_calls_do_not_share_memory() -> None:
    run = compiled(first_row)
    inputs = [(torch.randn(COUNT, 6), mask) for mask in masks((9, 9, 9, 9))]
    found = [run(*args) for args in inputs]
    assert len({t.untyped_storage().data_ptr() for t in found}) == len(found)
    for ours, args in zip(found, inputs):
        torch.testing.assert_close(ours, first_row(*args))


def test_what_is_met_again_is_compiled(programs: list[str]) -> None:
    """The part before the size is read has its program at once, the part after it where the size comes again."""
    run, x, seen = compiled(chosen_rows), torch.randn(COUNT, 6), []
    for mask in masks((9, 9, 5, 7, 5, 9, 7)):
        torch.testing.assert_close(run(x, mask), chosen_rows(x, mask))
        seen.append(len(programs))
    assert seen == [1, 2, 2, 2, 3, 3, 4]


def test_a_number_is_met_again_like_a_size(programs: list[str]) -> None:
    run, x, seen = compiled(lambda x, mask: (x * 2 * mask.sum().item()).exp()), torch.randn(6), []
    for mask in masks((3, 4, 3, 5, 4)):
        torch.testing.assert_close(run(x, mask), (x * 2 * mask.sum()).exp())
        seen.append(len(programs))
    assert seen == [1, 1, 2, 2, 3]


def test_sizes_of_inputs_are_compiled_when_they_are_met(programs: list[str]) -> None:
    run = torch.compile(lambda x: x.softmax(-1) * 2, backend="rooffuse", dynamic=True, options=STRICT)
    for count in (5, 9, 5, 7):
        x = torch.randn(count, 6)
        torch.testing.assert_close(run(x), x.softmax(-1) * 2)
    assert len(programs) == 3


def test_sizes_that_were_met_longest_ago_are_forgotten_first(monkeypatch: pytest.MonkeyPatch, programs: list[str]
                                                             ) -> None:
    monkeypatch.setattr(rooffuse.specialise, "MAX_MET", 2)
    run, x, seen = compiled(chosen_rows), torch.randn(COUNT, 6), []
    for mask in masks((3, 4, 5, 3, 5, 4)):
        torch.testing.assert_close(run(x, mask), chosen_rows(x, mask))
        seen.append(len(programs))
    assert seen == [1, 1, 1, 1, 2, 2]


def test_more_sizes_than_are_kept_still_give_right_results(monkeypatch: pytest.MonkeyPatch, programs: list[str],
                                                           caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(rooffuse.specialise, "MAX_SPECIALISATIONS", 2)
    run, x = compiled(chosen_rows), torch.randn(COUNT, 6)
    with caplog.at_level(logging.WARNING, logger="rooffuse.specialise"):
        for mask in masks((3, 3, 4, 4, 5, 5, 5, 3)):
            torch.testing.assert_close(run(x, mask), chosen_rows(x, mask))
    assert len(programs) == 3
    assert sum("combinations of sizes" in r.message for r in caplog.records) == 1


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[list[bool]]:
    """For each graph that is cut, which of its pieces are compiled."""
    made: list[list[bool]] = []
    cut = rooffuse.backend.CutFunction

    def noted(gm: torch.fx.GraphModule, function: Function) -> Any:
        result = cut(gm, function)
        made.append([not isinstance(m, torch.fx.GraphModule) for m in result.module.children()])
        return result

    monkeypatch.setattr(rooffuse.backend, "CutFunction", noted)
    return made


def looked_up(x: Tensor, mask: Tensor) -> Tensor:
    """Places that are no mask choose as many rows as there are places."""
    kept = x[mask]
    return kept[kept.argsort(0)[:, 0]] * 2


def no_size(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, None], x, 0).index_select(0, mask.long()) * 2


@pytest.mark.parametrize(("fn", "expected"), [
    (chosen_rows, [[True, False, True]]), (first_row, [[False, True]]),
    (looked_up, [[False, True]]), (no_size, []), (mask_of_a_mask, [[False, True, False, True]])],
    ids=lambda v: getattr(v, "__name__", ""))
def test_graphs_are_cut_where_a_size_is_read(fn: Function, expected: list[list[bool]], cuts: list[list[bool]]) -> None:
    run = compiled(fn)
    for mask in masks((9, 9)):
        x = torch.randn(COUNT, 6)
        torch.testing.assert_close(run(x, mask), fn(x, mask))
    assert cuts == expected


def test_pieces_have_one_result_or_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that gives one tensor gives all of it, compiled or not."""
    def fn(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        one = x * 2
        kept = one[mask]
        return kept.sin(), kept.cos().sum(0), kept[:1] + 1

    run = compiled(fn)
    for mask in masks((1, 1, 2, 2, COUNT, COUNT, 0, 0)):
        x = torch.randn(COUNT, 1)
        check_same(run(x, mask), fn(x, mask))


def test_a_boxed_call_leaves_its_list_empty() -> None:
    """So that what is in it can be released while the pieces run."""
    def fn(x: Tensor, mask: Tensor) -> tuple[Tensor]:
        return ((x * 2)[mask] + 1,)

    made: list[Any] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        made.append(rooffuse.backend.CutFunction(gm, lambda piece: SpecialisingFunction(
            piece, rooffuse.options.Options(strict=True), "inference")))
        return lambda *args: made[0](list(args))

    x, mask = torch.randn(COUNT, 6), next(masks((9,)))
    from torch._dynamo.backends.common import aot_autograd

    with torch.no_grad():
        torch.compile(fn, backend=aot_autograd(fw_compiler=backend), fullgraph=True)(x, mask)
    assert made[0]._boxed_call
    args = [x, mask]
    found, = made[0](args)
    assert args == []
    torch.testing.assert_close(found, fn(x, mask)[0])
