"""What caches are asked to keep: rows that are swept again and what rows share, and only where something is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.eviction import KEPT_BYTES
from rooffuse.codegen.triton_kernel import print_kernel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from .kernels import lower
from .test_triton_build import cuobjdump


def accesses(fn: Callable[..., Tensor], *shapes: tuple[int, ...]) -> list[tuple[str, str]]:
    """``(what is accessed, policy)`` in the order of the text."""
    with FakeTensorMode():
        text = print_kernel(lower(fn, *[torch.empty(s) for s in shapes]).group.kernel).text
    kernel = text[text.rindex("@triton.jit"):]
    found = []
    for line in kernel.splitlines():
        if match := re.search(r"tl\.(?:load|store)\((\w+)", line):
            policy = re.search(r'eviction_policy="(\w+)"', line)
            found.append((match[1], policy[1] if policy else ""))
    return found


def test_a_row_that_is_swept_again_is_kept_and_its_results_stream() -> None:
    found = accesses(lambda x, w: F.softmax(x, -1) * w, (8, 70000), (70000,))
    assert [p for b, p in found if b == "i0"] == ["evict_last", "evict_last", "evict_first"]
    assert [p for b, p in found if b == "i1"] == ["evict_last"]
    assert [p for b, p in found if b == "o0"] == ["evict_first"]


@pytest.mark.parametrize("fn", [lambda x: x.exp() + 1, lambda x: x.amax(-1), lambda x: F.softmax(x[:, :256], -1)])
def test_what_is_read_once_is_left_to_the_cache(fn: Callable[[Tensor], Tensor]) -> None:
    assert {p for _, p in accesses(fn, (64, 70000))} == {""}


def test_what_rows_share_is_kept_unless_it_is_large() -> None:
    assert accesses(lambda x, w: x * w, (4096, 512), (512,)) == [("i0", ""), ("i1", "evict_last"), ("o0", "")]
    large = KEPT_BYTES // 4 // 1024 + 1
    assert accesses(lambda x, w: x * w, (4, large, 1024), (large, 1024)) == [("i0", ""), ("i1", ""), ("o0", "")]
    assert accesses(lambda x, w: x * w, (1, 1024), (1024,)) == [("i0", ""), ("i1", ""), ("o0", "")]


def test_the_policies_reach_the_instructions(tmp_path: Path) -> None:
    with FakeTensorMode():
        source = print_kernel(lower(lambda x: F.softmax(x, -1), torch.empty(64, 70000)).group.kernel)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compile_for(source, DiskCache(tmp_path), 90).asm["cubin"])
    text = subprocess.run([cuobjdump(), "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    loads = re.findall(r"LDG\.E\.(E[LF])\b", text)
    assert set(loads) == {"EL", "EF"}
    assert "STG.E.EF" in text
