"""Scatters as stores: the same in the interpreter, in C++ and in Triton's interpreter, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.errors import InvalidKernel, NotLowerable
from rooffuse.codegen.index import symbol
from rooffuse.codegen.ir import Axis, Buffer, Compute, Const, Kernel, Load, Nest, Store
from rooffuse.codegen.lower_group import lower_group
from rooffuse.codegen.scatter import check_sums, colliding_axes
from rooffuse.codegen.traffic import kernel_traffic
from rooffuse.codegen.triton_kernel import print_kernel
from rooffuse.codegen.verify import verify
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from .kernels import CppUnit, Lowered, assert_same, run_interpreter, run_triton

aten = torch.ops.aten


def lowered(fn: Callable[..., Any], *inputs: Tensor) -> Lowered:
    """``fn``, which writes into its first input and returns nothing, as one kernel."""

    def only_writes(*args: Tensor) -> tuple[Tensor, ...]:
        fn(*args)
        return ()

    group = lower_group(make_fx(only_writes, tracing_mode="fake")(*inputs).graph)
    verify(group.kernel)
    return Lowered(group, ())


def integers(high: int, *shape: int, low: int = 0) -> Tensor:
    return torch.randint(low, high, shape)


def _heads(cache: Tensor, position: Tensor, k: Tensor) -> None:
    aten.index_put_(cache, [None, None, position], k * torch.rsqrt(k.pow(2).mean(-1, keepdim=True)))


def _beside_totals(x: Tensor, i: Tensor, v: Tensor, totals: Tensor) -> None:
    """Elements added in rows while totals run along them, one after the other as these do."""
    x.scatter_add_(1, i, v * v)
    totals.copy_(v.sin().cumsum(1).cos())


WRITES: dict[str, tuple[Callable[..., Any], Callable[[], list[Tensor]]]] = {
    "rows_added": (lambda x, i, v: x.index_add_(0, i, v * 2),
                   lambda: [torch.randn(9, 65), integers(9, 50), torch.randn(50, 65)]),
    "rows_added_alpha": (lambda x, i, v: x.index_add_(1, i, v.sin(), alpha=3),
                         lambda: [torch.randn(5, 9), integers(9, 31), torch.randn(5, 31)]),
    "long_rows_added": (lambda x, i, v: x.index_add_(0, i, v.exp()),
                        lambda: [torch.randn(3, 1000), integers(3, 40), torch.randn(40, 1000)]),
    "elements_added": (lambda x, i, v: x.scatter_add_(0, i, v.exp()),
                       lambda: [torch.randn(17), integers(17, 1000), torch.randn(1000)]),
    "elements_added_in_rows": (lambda x, i, v: x.scatter_add_(1, i, v * v),
                               lambda: [torch.randn(4, 7), integers(7, 4, 33), torch.randn(4, 33)]),
    "added_beside_totals": (_beside_totals, lambda: [torch.randn(4, 7), integers(7, 4, 333), torch.randn(4, 333),
                                                     torch.randn(4, 333)]),
    "elements_added_down_columns": (lambda x, i, v: x.scatter_add_(0, i, v * v),
                                    lambda: [torch.randn(7, 20), integers(7, 33, 20), torch.randn(33, 20)]),
    "integers_added": (lambda x, i, v: x.index_add_(0, i, v + 1),
                       lambda: [integers(9, 5, 8), integers(5, 40), integers(9, 40, 8)]),
    "doubles_added": (lambda x, i, v: x.index_add_(0, i, v + 1),
                      lambda: [torch.randn(5, 8).double(), integers(5, 40), torch.randn(40, 8).double()]),
    "put_two_indices": (lambda x, i, j, v: aten.index_put_(x, [i, j], v.sin(), True),
                        lambda: [torch.randn(5, 7), integers(5, 30, low=-5), integers(7, 30, low=-7), torch.randn(30)]),
    "put_apart": (lambda x, i, j, v: aten.index_put_(x, [i, None, j], v.sin(), True),
                  lambda: [torch.randn(5, 6, 7), integers(5, 3, 1), integers(7, 4, low=-7), torch.randn(3, 4, 6)]),
    "put_once": (lambda x, i, v: aten.index_put_(x, [None, i], v.sin()),
                 lambda: [torch.randn(3, 9, 4), torch.randperm(9)[:5], torch.randn(3, 5, 4)]),
    "put_at_one_place": (lambda x, i, v: aten.index_put_(x, [i], v.sin()),
                         lambda: [torch.randn(3, 80), torch.tensor([-2]), torch.randn(1, 80)]),
    "copied_rows": (lambda x, i, v: x.index_copy_(1, i, v * 2),
                    lambda: [torch.randn(5, 9), torch.randperm(9)[:4], torch.randn(5, 4)]),
    "scattered": (lambda x, i, v: x.scatter_(1, i, v * 2),
                  lambda: [torch.randn(5, 9), torch.stack([torch.randperm(9)[:4]] * 5), torch.randn(5, 4)]),
    "into_a_view": (lambda x, i, v: x[2].t().index_add_(1, i, v * 2),
                    lambda: [torch.randn(4, 6, 5), integers(6, 30), torch.randn(5, 30)]),
    "normed_rows_into_a_cache": (_heads, lambda: [torch.randn(2, 3, 40, 64), torch.randperm(40)[:7],
                                                  torch.randn(2, 3, 7, 64)]),
    "reduced_rows_added": (lambda x, i, v: x.index_add_(0, i, v.exp().sum(-1)),
                           lambda: [torch.randn(6), integers(6, 40), torch.randn(40, 33)]),
    "counts_of_the_largest": (lambda h, x: h.scatter_add_(0, x.argmax(1).flatten(), torch.ones(3 * 13 * 5)),
                              lambda: [torch.randn(7), torch.randn(3, 7, 13, 5)]),
    "added_at_the_largest": (lambda h, x, v: aten.index_put_(h, [x.argmax(-1), x.argmin(-1)], v.exp(), True),
                             lambda: [torch.randn(19, 19), torch.randn(40, 19), torch.randn(40)]),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> DiskCache:
    return DiskCache(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def kernels() -> dict[str, Lowered]:
    return {name: lowered(fn, *make()) for name, (fn, make) in WRITES.items()}


@pytest.fixture(scope="module")
def unit(kernels: dict[str, Lowered], cache: DiskCache) -> CppUnit:
    return CppUnit(kernels, cache)


@pytest.mark.parametrize("name", WRITES)
def test_all_targets_write_what_eager_writes(name: str, kernels: dict[str, Lowered], unit: CppUnit,
                                             cache: DiskCache) -> None:
    fn, make = WRITES[name]
    torch.manual_seed(3)
    inputs = make()
    expected = [t.clone() for t in inputs]
    fn(*expected)
    assert not torch.equal(expected[0], inputs[0])
    for run in (run_interpreter, lambda k, t: unit.run(name, k, t), lambda k, t: run_triton(k, t, cache)):
        mine = [t.clone() for t in inputs]
        run(kernels[name], mine)
        assert_same(mine, expected)


@pytest.mark.parametrize("name", ["counts_of_the_largest", "added_at_the_largest"])
def test_places_are_found_in_rows_where_something_is_written(name: str, kernels: dict[str, Lowered]) -> None:
    nest, = kernels[name].group.kernel.nests
    assert len(nest.reduction) == 1 and nest.parallel


@pytest.mark.parametrize("name", ["rows_added", "elements_added", "put_apart", "integers_added", "reduced_rows_added"])
def test_triton_compiles_atomic_sums(name: str, kernels: dict[str, Lowered], cache: DiskCache) -> None:
    source = print_kernel(kernels[name].group.kernel)
    for capability in (80, 90):
        assert "atom" in (text := compile_for(source, cache, capability).asm["ptx"]) or "red." in text


def test_cpp_sums_in_order_and_so_gives_eagers_bits(kernels: dict[str, Lowered], unit: CppUnit) -> None:
    inputs = [torch.zeros(17), integers(17, 1000), torch.randn(1000)]
    expected = torch.zeros(17).scatter_add_(0, inputs[1], inputs[2].exp())
    results = []
    for _ in range(3):
        mine = [t.clone() for t in inputs]
        unit.run("elements_added", kernels["elements_added"], mine)
        results.append(mine[0])
    assert all(torch.equal(r, results[0]) for r in results)
    assert_same(results[0], expected)


@pytest.mark.parametrize("bad", [[0, 9], [-1, 3]])
def test_a_place_outside_is_reported_and_nothing_is_written_there(bad: list[int], cache: DiskCache) -> None:
    base = torch.zeros(11, 4)
    inputs = [base[1:10], torch.tensor([0, 1]), torch.ones(2, 4)]
    kernel = lowered(lambda x, i, v: x.index_add_(0, i, v * 2), *inputs)
    inputs[1] = torch.tensor(bad)
    with pytest.raises(IndexError):
        CppUnit({"k": kernel}, cache).run("k", kernel, inputs)
    with pytest.raises(IndexError):
        run_interpreter(kernel, inputs)
    run_triton(kernel, inputs, cache)
    written = torch.zeros(11, dtype=torch.bool)
    written[[k + 1 for k in bad if 0 <= k < 9]] = True
    assert torch.equal(base.abs().sum(1) > 0, written)


def test_what_a_scatter_writes_is_not_read_in_the_same_kernel() -> None:
    x, i = torch.randn(5, 3), torch.tensor([1, 1])
    with pytest.raises(NotLowerable, match="while a scatter writes"):
        lowered(lambda x, i: aten.index_put_(x, [i], x[i] + 1), x, i)


def test_equal_terms_for_one_place_are_not_taken_out_of_their_loop() -> None:
    with pytest.raises(NotLowerable, match="again and again"):
        lowered(lambda x, v: x.index_add_(0, torch.zeros(5, dtype=torch.int64), v.expand(5, 4)), torch.randn(6, 4),
                torch.randn(4))


def _nest(index: str, sizes: dict[str, int], rows: int) -> Nest:
    space = {**{n: symbol(n) for n in sizes}, "v2": symbol("v2")}
    axes = tuple(Axis(symbol(n), s) for n, s in sizes.items())
    first = symbol(next(iter(sizes)))
    return Nest(axes, (
        Load("v0", torch.int64, "i0", first), Const("v1", torch.int64, rows),
        Compute("v2", torch.int64, "bounded", ("v0", "v1")), Const("v3", torch.float32, 1.0),
        Store("o0", eval(index, dict(space)), "v3", None, True)))


@pytest.mark.parametrize("index,sizes,colliding", [
    ("16*v2 + p1", {"p0": 40, "p1": 16}, {"p0"}),
    ("16*v2 + p1", {"p0": 40, "p1": 17}, {"p0", "p1"}),
    ("160*p2 + 16*v2 + p1", {"p0": 40, "p1": 16, "p2": 3}, {"p0"}),
    ("150*p2 + 16*v2 + p1", {"p0": 40, "p1": 16, "p2": 3}, {"p0", "p1", "p2"}),
    ("v2", {"p0": 40}, {"p0"}),
    ("10*p0 + v2", {"p0": 40, "p1": 5}, {"p1"}),
    ("v2*p1", {"p0": 40, "p1": 5}, {"p0", "p1"}),
])
def test_axes_along_which_stores_collide(index: str, sizes: dict[str, int], colliding: set[str]) -> None:
    assert {s.name for s in colliding_axes(_nest(index, sizes, 10))} == colliding


def test_nothing_collides_in_plain_stores() -> None:
    p0 = symbol("p0")
    assert not colliding_axes(Nest((Axis(p0, 5),), (Const("v0", torch.float32, 1.0), Store("o0", p0, "v0"))))


def test_sums_that_a_library_does_better_are_left_to_it() -> None:
    def kernel(dtype: torch.dtype) -> Kernel:
        value = torch.randn(50, 16).to(dtype)
        inputs = [value[:9].clone(), integers(9, 50), value]
        return lowered(lambda x, i, v: x.index_add_(0, i, v * 2), *inputs).group.kernel

    check_sums(kernel(torch.float32), atomic=False, deterministic=True)
    check_sums(kernel(torch.bfloat16), atomic=True, deterministic=False)
    with pytest.raises(NotLowerable, match="rounded after each"):
        check_sums(kernel(torch.bfloat16), atomic=False, deterministic=False)
    with pytest.raises(NotLowerable, match="deterministic"):
        check_sums(kernel(torch.float32), atomic=True, deterministic=True)


def test_truth_values_are_not_added() -> None:
    p0 = symbol("p0")
    nest = Nest((Axis(p0, 5),), (Const("v0", torch.bool, True), Store("o0", p0, "v0", None, True)))
    with pytest.raises(InvalidKernel, match="add up"):
        verify(Kernel("k", (Buffer("o0", torch.bool, 5),), (nest,)))


def test_an_adding_store_reads_what_it_changes() -> None:
    kernel = lowered(lambda x, i, v: x.index_add_(0, i, v * 2), torch.randn(100, 16), integers(100, 50),
                     torch.randn(50, 16)).group.kernel
    rows = 50 * 16 * 4
    assert kernel_traffic(kernel, lambda k, n: True) == (2 * rows + 50 * 8, rows)
