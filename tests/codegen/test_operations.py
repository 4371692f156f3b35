"""Operations of a kernel: what is executed, and how often."""

from __future__ import annotations

import torch
from rooffuse.codegen.cpp_unit import print_function
from rooffuse.codegen.ir import Kernel
from rooffuse.codegen.operations import OPERATION_COST, contraction_flops, kernel_operations

from .kernels import lower


def kernel(fn, *inputs: torch.Tensor) -> Kernel:
    return lower(fn, *inputs).group.kernel


def test_an_operation_counts_once_for_each_point_of_its_scope() -> None:
    # A load and an exponential an element, a sum of each, and a root a row.
    found = kernel_operations(kernel(lambda x: x.exp().sum(-1).sqrt(), torch.randn(5, 40)))
    assert found == 200 * (1 + OPERATION_COST["exp"] + 1) + 5 * OPERATION_COST["sqrt"]


def test_a_product_and_its_sum_are_one_operation() -> None:
    found = kernel_operations(kernel(lambda x, w: x @ w.t(), torch.randn(1, 40), torch.randn(7, 40)))
    assert found == 40 + 7 * 40 * 2  # the vector, then a weight and a product for each


def test_what_a_cut_loop_leaves_out_is_not_executed() -> None:
    halves = kernel(lambda x: torch.cat([x.exp(), x.sin()]) * 2, torch.randn(1000))
    everywhere, cut = kernel_operations(halves), kernel_operations(halves, conditional_load=16)
    heavy = 1000 * (OPERATION_COST["exp"] + OPERATION_COST["sin"])
    assert everywhere > 2 * heavy
    assert heavy < cut < 1.5 * heavy


def test_conditions_that_are_known_before_a_loop_cost_it_nothing() -> None:
    padded = kernel(lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1)) * 2, torch.randn(40, 40))
    assert kernel_operations(padded, conditional_load=16) == 2 * 42 * 42  # a load and a product
    across = kernel(lambda x, y, z: torch.cat([x, y]).reshape(40, 50) * z, *map(torch.randn, (1010, 990, 50)))
    assert kernel_operations(across, conditional_load=16) > 2 * 16 * 2000  # it changes in the middle of a row


def test_matrix_products_count_two_flops_a_product() -> None:
    x, w = torch.randn(20, 64).bfloat16(), torch.randn(24, 64).bfloat16()
    assert contraction_flops(kernel(lambda x, w: (x @ w.t()).relu(), x, w)) == 2 * 20 * 24 * 64
    assert contraction_flops(kernel(lambda x: x.exp().sum(-1), torch.randn(5, 40))) == 0


def test_loops_that_compute_for_long_ask_memory_ahead() -> None:
    x = torch.randn(100_000)
    heavy = print_function(kernel(lambda x: x.sigmoid() * x, x), "f")
    assert "__builtin_prefetch(&i0[block + 256 + l]" in heavy
    assert "prefetch" not in print_function(kernel(lambda x: x * 2 + 1, x), "f")
    assert "prefetch" not in print_function(kernel(lambda x: x.sigmoid(), x[:500].clone()), "f")


def test_rows_ask_for_the_next_one_in_their_heaviest_sweep() -> None:
    text = print_function(kernel(lambda x: x.softmax(-1), torch.randn(64, 1500)), "f")
    before, *steps = text.split("__builtin_prefetch")
    assert len(steps) == 4  # lines of 32 floats in each of two runs of blocks
    assert all(f"+ base) + {1500 + 16 * (k % 2)}], 0, 2);" in s.split("\n")[0] for k, s in enumerate(steps))
    assert "rf_exp" not in before
    assert "rf_exp" in steps[1]
    assert "rf_exp" in steps[3]


def test_sweeps_that_only_read_ask_step_by_step_for_the_next_rows() -> None:
    def product(dtype: torch.dtype, rows: int, columns: int) -> str:
        x, w = torch.ones(1, columns, dtype=dtype), torch.ones(rows, columns, dtype=dtype)
        return print_function(kernel(lambda x, w: torch.nn.functional.linear(x, w), x, w), "f")

    narrow = product(torch.bfloat16, 4096, 1024)
    assert narrow.count("__builtin_prefetch") == 1  # 32 lanes are one line of memory
    step, request, body = narrow.partition("__builtin_prefetch(&i1[((1024 * p0) + base) + 1024], 0, 2);")
    assert request
    assert step.rstrip().endswith("base += 32) {")
    assert body.lstrip().startswith("#pragma omp simd")
    assert "prefetch" not in product(torch.float32, 4096, 1024)  # memory keeps up with a product a number
    assert "+ 512], 0, 2);" in product(torch.bfloat16, 16, 1 << 18)  # the next row would fill the cache


def test_conversions_are_work_in_which_the_next_row_is_on_its_way() -> None:
    def gradient(g: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        total = (g.float() * y.float()).sum(-1, keepdim=True)
        return (y.float() * (g.float() - total)).to(g.dtype)

    def asked(dtype: torch.dtype) -> list[str]:
        text = print_function(kernel(gradient, *(torch.ones(64, 4096, dtype=dtype) for _ in range(2))), "f")
        return [line.split("&")[1][:2] for line in text.split("\n") if "__builtin_prefetch" in line]

    assert asked(torch.bfloat16) == ["o0", "i1", "i0"]  # the first sweep asks for what the second stores
    assert asked(torch.float32) == ["o0", "o0"]  # a step is two lines of memory
