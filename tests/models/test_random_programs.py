"""Random programs against eager execution, a fixed few here and more behind the ``slow`` marker.

``python -m tests.models.random_runs`` looks for new ones and makes what goes wrong smaller.
"""

from __future__ import annotations

import pytest

from .random_programs import random_program
from .random_runs import INTERPRETED, differences, program_of, reproducer


def _check(seed: int, triton: bool) -> None:
    program, target = program_of(seed, triton), INTERPRETED if triton else None
    assert not differences(program, target), reproducer(program, target)


def test_a_seed_is_always_the_same_program() -> None:
    assert random_program(3).text == random_program(3).text != random_program(4).text


@pytest.mark.parametrize("seed", [*range(6), 286])  # the last one crashed by g++'s strength reduction
def test_cpp_kernels(seed: int) -> None:
    _check(seed, False)


@pytest.mark.parametrize("seed", range(3))
def test_triton_kernels(seed: int) -> None:
    _check(seed, True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_more_cpp_kernels(seed: int) -> None:
    _check(seed, False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 150))
def test_more_triton_kernels(seed: int) -> None:
    _check(seed, True)
