"""Every kernel shape through three back ends, against eager execution, on poisoned and guarded memory."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.errors import NotLowerable
from rooffuse.cost_model import get_device
from rooffuse.program import inplace_pairs
from rooffuse.targets import target_for

from .cases import BY_NAME, CASES
from .kernels import CppUnit, Lowered, assert_same, lower, lower_case, run_interpreter, run_triton

# Triton's interpreter divides by what lies behind the mask, too.
pytestmark = pytest.mark.filterwarnings(
    "ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning"
)

NAMES = [c.name for c in CASES]
UNIT_SIZE = 40


def lowered(name: str) -> Lowered:
    return lower_case(BY_NAME[name])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> DiskCache:
    return DiskCache(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def units(cache: DiskCache) -> dict[str, CppUnit]:
    """The C++ library that holds each case."""
    return built({n: lowered(n) for n in NAMES}, cache)


def built(kernels: Mapping[str, Lowered], cache: DiskCache) -> dict[str, CppUnit]:
    """Libraries of some kernels each; two compilers run at a time."""
    names = [*kernels]
    parts = [names[k : k + UNIT_SIZE] for k in range(0, len(names), UNIT_SIZE)]
    with ThreadPoolExecutor(2) as pool:
        units = list(pool.map(lambda part: CppUnit({n: kernels[n] for n in part}, cache), parts))
    return {name: unit for part, unit in zip(parts, units) for name in part}


@pytest.fixture(scope="module")
def in_place(cache: DiskCache) -> dict[str, tuple[Lowered, CppUnit]]:
    """The kernels that can write over what they read, in the form that a CPU gets."""
    target = target_for(get_device("cpu"))
    kernels = {}
    for name in NAMES:
        with suppress(NotLowerable):
            kernel = lowered(name)
            kernels[name] = replace(kernel, group=replace(kernel.group, kernel=target.finish(kernel.group.kernel)))
    kernels = {n: k for n, k in kernels.items() if shared_memory(k)}
    units = built(kernels, cache)
    return {n: (k, units[n]) for n, k in kernels.items()}


@pytest.mark.parametrize("name", NAMES)
def test_cpp(name: str, units: dict[str, CppUnit]) -> None:
    inputs = BY_NAME[name].inputs()
    assert_same(units[name].run(name, lowered(name), inputs), BY_NAME[name].fn(*inputs))


@pytest.mark.parametrize("name", NAMES)
def test_interpreter(name: str) -> None:
    inputs = BY_NAME[name].inputs()
    assert_same(run_interpreter(lowered(name), inputs), BY_NAME[name].fn(*inputs))


@pytest.mark.parametrize("name", [c.name for c in CASES if not c.heavy])
def test_triton(name: str, cache: DiskCache) -> None:
    inputs = BY_NAME[name].inputs()
    assert_same(run_triton(lowered(name), inputs, cache), BY_NAME[name].fn(*inputs))


def shared_memory(kernel: Lowered) -> dict[str, str]:
    """For each output that a memory plan may put in place of an input, one such input, no two the same."""
    found: dict[str, str] = {}
    for out, sources in inplace_pairs(kernel.group.kernel).items():
        free = [s for s in sources if s not in found.values()]
        if out in kernel.group.outputs and free:
            found[out] = free[0]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_results_in_the_memory_of_inputs(name: str, in_place: dict[str, tuple[Lowered, CppUnit]], cache: DiskCache
                                         ) -> None:
    inputs = BY_NAME[name].inputs()
    if name in in_place:
        kernel, unit = in_place[name]
        assert_same(unit.run(name, kernel, inputs, shared_memory(kernel)), BY_NAME[name].fn(*inputs))
    kernel = lowered(name)
    if shared_memory(kernel) and not BY_NAME[name].heavy:
        assert_same(run_triton(kernel, inputs, cache, shared=shared_memory(kernel)), BY_NAME[name].fn(*inputs))


@pytest.mark.parametrize(
    "name",
    [
        "softmax_row_20011",
        "layer_norm_20011",
        "argmax_row_20011",
        "statistics_20011",
        "softmax_column_4097",
        "argmin_column_4097",
        "cumsum_with_total_20011",
        "cumsum_column_4097",
        "softmax_70001",
        "layer_norm_70001",
        "entropies_70001",
    ],
)
def test_triton_long_rows(name: str, cache: DiskCache) -> None:
    """Rows beyond what stays in registers are swept in a loop."""
    inputs = BY_NAME[name].inputs()
    assert_same(run_triton(lowered(name), inputs, cache), BY_NAME[name].fn(*inputs))


@pytest.mark.parametrize("name", ["pointwise_129", "softmax_column_31", "sum_ends_33"])
def test_triton_tile_sizes(name: str, cache: DiskCache) -> None:
    """The result doesn't hang on how many programs share the work."""
    inputs = BY_NAME[name].inputs()
    for programs in (1, 3, 264):
        assert_same(run_triton(lowered(name), inputs, cache, programs), BY_NAME[name].fn(*inputs))


def test_gather_out_of_range_is_reported(cache: DiskCache) -> None:
    weight, good, bad = torch.randn(10, 4), torch.tensor([0, 9]), torch.tensor([3, 10])
    kernel = lower(lambda w, i: torch.nn.functional.embedding(i, w), weight, good)
    unit = CppUnit({"embedding": kernel}, cache)
    assert_same(unit.run("embedding", kernel, [weight, good]), weight[good])
    for indices in (bad, torch.tensor([-1, 0])):
        with pytest.raises(IndexError):
            unit.run("embedding", kernel, [weight, indices])
        with pytest.raises(IndexError):
            run_interpreter(kernel, [weight, indices])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_every_operator_can_be_kept(dtype: torch.dtype, cache: DiskCache) -> None:
    """With eager rounding a chain gives eager's very bits; without it, a value nearer to the exact one."""

    def chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((x + y) * x - y) * 3 + x

    torch.manual_seed(0)
    x, y = torch.randn(4, 333).to(dtype), torch.randn(4, 333).to(dtype)
    kernel = lower(chain, x, y, eager_rounding=True)
    results = [CppUnit({"chain": kernel}, cache).run("chain", kernel, [x, y]), run_interpreter(kernel, [x, y])]
    if dtype == torch.float16:  # Triton's interpreter cuts bfloat16 off where devices round
        results.append(run_triton(kernel, [x, y], cache))
    for result in results:
        assert torch.equal(result[0], chain(x, y))
    exact = chain(x.double(), y.double())
    fused = run_interpreter(lower(chain, x, y), [x, y])[0]
    assert (fused - exact).abs().max() < (chain(x, y) - exact).abs().max()
