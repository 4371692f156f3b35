"""What there is one of for each short row, as a loss has, is summed over strips of rows and never goes to memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.errors import NotLowerable
from rooffuse.codegen.ir import Reduce
from rooffuse.codegen.lower_strips import FEWEST_STRIPS
from rooffuse.codegen.triton_kernel import print_kernel
from rooffuse.cost_model import get_device
from rooffuse.targets import target_for
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from .kernels import assert_same, lower, run_interpreter, run_triton
from .test_triton_build import resources


def parts(x: Tensor, rows: int) -> Tensor:
    return x.reshape(-1, rows)


def loss(x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of cross-entropies, and how many labels count."""
    wanted = label >= 0
    found = F.log_softmax(x.float(), 1).gather(1, label.clamp(0).unsqueeze(1)).squeeze(1)
    return parts(torch.where(wanted, -found, 0.0), 8).sum(1), parts(wanted, 8).sum(1)


def entropies(x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    p = x.softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    return parts(entropy, 4).sum(1), parts(entropy, 4).amax(1)


def beside_each_row(x: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norms with their sums and smallest, and what each row is divided by them."""
    norm = x.square().sum(-1).sqrt()
    return parts(norm, 16).sum(1), parts(norm, 16).amin(1), x / (norm + 1)[:, None]


def of_each_class(x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of each class and their largest squares, over parts of all pixels of all images."""
    p = x.softmax(1)
    n, c, h, w = x.shape
    return p.reshape(n, c, 4, h // 4, w).sum((0, 3, 4)), (p * p).reshape(n, c, 4, h // 4, w).amax((0, 3, 4))


STRIPS = FEWEST_STRIPS
CASES: dict[str, tuple[Callable[..., tuple[Tensor, ...]], tuple[int, ...]]] = {
    "classes": (loss, (8 * STRIPS, 10)),
    "one class": (loss, (8 * STRIPS, 2)),
    "classes of pixels": (loss, (4, 5, 2 * STRIPS)),
    "classes of pixels in rows": (loss, (2, 19, 4, STRIPS)),
    "entropies": (entropies, (4 * (STRIPS + 3), 65)),
    "sums of classes": (of_each_class, (3, 5, 8, 33)),
    "norms": (beside_each_row, (16 * STRIPS, 33)),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_eager_execution(name: str, tmp_path: Path) -> None:
    fn, shape = CASES[name]
    x = torch.randn(shape)
    inputs = [x, torch.randint(-1, shape[1], (shape[0], *shape[2:]))]
    lowered = lower(fn, *inputs)
    (nest,) = lowered.group.kernel.nests
    assert nest.strip and any(isinstance(s, Reduce) and s.strip for s in nest.body)
    used = [inputs[k] for k in range(2)]
    assert_same(run_interpreter(lowered, used), fn(*inputs))
    assert_same(run_triton(lowered, used, DiskCache(tmp_path)), fn(*inputs))


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_registers_hold_the_rows(capability: int, tmp_path: Path) -> None:
    with FakeTensorMode():
        inputs = torch.empty(512, 1000, 19, dtype=torch.bfloat16), torch.empty(512, 1000, dtype=torch.int64)
        kernel = lower(lambda x, t: loss(x.flatten(0, 1), t.flatten()), *inputs).group.kernel
    compiled = compile_for(print_kernel(kernel), DiskCache(tmp_path), capability)
    used = resources(compiled.asm["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


def test_few_results_and_processors_keep_rows_apart() -> None:
    few = torch.randn(8 * (STRIPS - 1), 10), torch.zeros(8 * (STRIPS - 1), dtype=torch.int64)
    with pytest.raises(NotLowerable):
        lower(loss, *few)
    many = lower(loss, torch.randn(8 * STRIPS, 10), torch.zeros(8 * STRIPS, dtype=torch.int64)).group.kernel
    apart = lower(of_each_class, torch.randn(3, 300, 64, 33), torch.zeros(3)).group.kernel
    for kernel, reason in ((many, "summed on the way"), (apart, "leap in memory")):
        with pytest.raises(NotLowerable, match=reason):
            target_for(get_device("cpu")).finish(kernel)
