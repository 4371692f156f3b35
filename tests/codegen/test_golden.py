"""What three well-known kernels look like: loop IR, C++ and Triton. ``pytest --update-golden`` writes them anew."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rooffuse.codegen.cpp_unit import print_function
from rooffuse.codegen.triton_kernel import print_kernel

from .cases import BY_NAME
from .kernels import lower_case

KERNELS = {"softmax": "softmax_row_1000", "residual_rms_norm": "residual_rms_norm", "rope": "rope"}


def texts(case: str) -> str:
    """IR, C++ function and the Triton function without its module's prelude."""
    kernel = lower_case(BY_NAME[case]).group.kernel
    triton = print_kernel(kernel, programs_wanted=264).text
    return "\n\n".join([str(kernel), print_function(kernel, "kernel"), triton[triton.index("def kernel(") :]])


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_as_recorded(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"{name}.txt", texts(KERNELS[name]))


def test_output_is_the_same_in_every_process() -> None:
    """Cache keys are made of these texts: no set's order may get into them."""
    code = (
        "from tests.codegen.test_golden import KERNELS, texts\n"
        "from tests.codegen.cases import BY_NAME\n"
        "print('\\n'.join(texts(n) for n in [*KERNELS.values(), 'statistics_31', 'concat', 'two_sizes', 'index_two']))"
    )
    root = str(Path(__file__).parents[2])
    found = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        found.append(
            subprocess.run(
                [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
            ).stdout
        )
    assert found[0] == found[1] and len(found[0]) > 1000
