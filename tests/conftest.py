"""Fixtures for the whole test tree: golden files, and a kernel cache that no other run has filled."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers, each with as many threads as there are processors: those that wait for work leave them to others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing with them")


@pytest.fixture(scope="session", autouse=True)
def _private_kernel_cache() -> Iterator[None]:
    """Kernels are built anew for each run, unless ROOFFUSE_CACHE_DIR names a folder to keep them in."""
    if "ROOFFUSE_CACHE_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="rooffuse-tests-") as folder:
        os.environ["ROOFFUSE_CACHE_DIR"] = folder
        yield
        del os.environ["ROOFFUSE_CACHE_DIR"]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As with any number but one: torch then gives fp32 convolutions to oneDNN whatever their size, and the price of
    arithmetic is another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)`` compares ``text`` with the file ``golden/name`` beside the test."""
    folder: Path = request.path.parent / "golden"

    def check(name: str, text: str) -> None:
        path = folder / name
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            folder.mkdir(exist_ok=True)
            path.write_text(text)
            return
        assert path.exists(), f"{path} is missing: run pytest with --update-golden and look at what it wrote"
        assert text == path.read_text(), f"{path} differs: if that is meant, run pytest with --update-golden"

    return check
