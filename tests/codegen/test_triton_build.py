"""Generated Triton kernels compile for three generations of devices, none of which is needed, without spilling."""

from __future__ import annotations

import re
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
from rooffuse.codegen import build_triton
from rooffuse.codegen.build_triton import compile_for, load_launchers
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.triton_kernel import print_kernel
from rooffuse.cost_model import get_device
from rooffuse.targets import target_for
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from .cases import BY_NAME, rms_norm, rope
from .kernels import lower, lower_case
from .row_parts import norm_backward

CAPABILITIES = (80, 90, 100)
#: A kernel of each shape: pointwise, row kept in registers, looped row, columns, gather, masks, several nests.
CASES = [
    "pointwise_1000",
    "softmax_row_1000",
    "layer_norm_4097",
    "statistics_20011",
    "argmax_row_65",
    "softmax_column_1000",
    "sum_column_4097",
    "argmin_column_65",
    "transpose_129",
    "label_log_probability_300",
    "sum_all_20011",
    "embedding",
    "index_two",
    "concat",
    "concat_types",
    "pad",
    "two_sizes",
    "masked_softmax",
    "pointwise_int32",
    "pointwise_uint8",
    "arg_int64",
    "truth_reduced",
    "pointwise_bfloat16",
    "softmax_float16",
    "to_truth_bfloat16",
    "constants_with_their_sum",
    "scalar_and_row",
    "cumsum_row_1000",
    "cumsum_with_total_20011",
    "cumsum_column_1000",
    "philox",
]


def cuobjdump() -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not path.exists():
        pytest.skip("this build of Triton has no cuobjdump")
    return str(path)


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack and local bytes of the one kernel in ``cubin``."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    text = subprocess.run(
        [cuobjdump(), "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    assert "REG" in found, text
    return found


@pytest.mark.parametrize("name", CASES)
def test_compiles_without_spills(name: str, tmp_path: Path) -> None:
    source = print_kernel(lower_case(BY_NAME[name]).group.kernel)
    for capability in CAPABILITIES:
        used = resources(compile_for(source, DiskCache(tmp_path), capability).asm["cubin"], tmp_path)
        assert used["LOCAL"] == 0 and used["STACK"] == 0, f"{name} spills on sm_{capability}: {used}"
        assert used["REG"] <= 255


@pytest.mark.parametrize(
    "name, fn, shapes",
    [
        ("softmax", lambda x: F.softmax(x, -1), [(4096, 4096)]),
        ("rms_norm", rms_norm, [(4096, 4096), (4096, 4096), (4096,)]),
        ("rope", rope, [(2, 32, 2048, 128), (2048, 128), (2048, 128)]),
        ("cross_entropy", lambda x: F.log_softmax(x, -1), [(256, 32000)]),
        ("column_sum", lambda x: x.sum(0), [(4096, 4096)]),
        ("norm_backward", norm_backward, [(3072, 8192), (3072, 8192), (8192,)]),
    ],
)
def test_real_sizes_do_not_spill(name: str, fn, shapes, tmp_path: Path) -> None:
    with FakeTensorMode():
        inputs = [torch.empty(s, dtype=torch.bfloat16) for s in shapes]
    source = print_kernel(lower(fn, *inputs).group.kernel)
    for capability in (80, 90, 100):
        used = resources(compile_for(source, DiskCache(tmp_path), capability).asm["cubin"], tmp_path)
        assert used["LOCAL"] == 0 and used["STACK"] == 0, f"{name} spills on sm_{capability}: {used}"


def test_long_rows_of_several_inputs_do_not_spill(tmp_path: Path) -> None:
    """A single sweep keeps nothing, and yet all that it loads is in registers at once: long rows are looped over."""
    def likelihoods(x: Tensor, y: Tensor) -> Tensor:
        return ((1 - y.sigmoid()) * x - (x.clamp(max=0) - torch.log1p((-x.abs()).exp()))).sum(-1)

    with FakeTensorMode():
        source = print_kernel(lower(likelihoods, torch.empty(512, 24576), torch.empty(512, 24576)).group.kernel)
    for capability in (80, 90, 100):
        used = resources(compile_for(source, DiskCache(tmp_path), capability).asm["cubin"], tmp_path)
        assert used["LOCAL"] == 0 and used["STACK"] == 0, f"spills on sm_{capability}: {used}"


def test_windows_that_share_numbers_along_an_axis_do_not_spill(tmp_path: Path) -> None:
    """A program goes along the images, and has nine taps of each of its places at a time beside what those share."""
    def largest(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mean, scale, weight, bias = (v[:, None, None] for v in (mean, scale, weight, bias))
        return F.max_pool2d(((x - mean) * torch.rsqrt(scale + 1e-5) * weight + bias).relu(), 3, 2, 1)

    target = target_for(get_device("h100"))
    with FakeTensorMode():
        channels = [torch.empty(64) for _ in range(4)]
        kernel = lower(largest, torch.empty(64, 64, 112, 112, dtype=torch.bfloat16), *channels).group.kernel
    finished = target.finish(kernel)
    assert finished != kernel
    for capability in (80, 90, 100):
        source = print_kernel(finished, programs_wanted=target.programs)
        used = resources(compile_for(source, DiskCache(tmp_path), capability).asm["cubin"], tmp_path)
        assert used["LOCAL"] == 0 and used["STACK"] == 0, f"spills on sm_{capability}: {used}"


def test_kernels_compile_side_by_side_and_unaligned_pointers_get_their_own(tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """What is launched on a device, without one: the compiled kernel takes down what it is called with."""
    compiled: list[tuple[str, bool]] = []
    launched: list[tuple[bool, tuple[int, ...], tuple[int, ...]]] = []

    class Kernel:
        def __init__(self, aligned: bool) -> None:
            self.aligned = aligned

        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda *pointers: launched.append((self.aligned, grid, pointers))

    def compiling(source: object, cache: object, capability: int, aligned: bool = True) -> Kernel:
        assert capability == 90
        if source is broken:
            raise ValueError("no such type")
        compiled.append((source.text, aligned))
        return Kernel(aligned)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(build_triton, "compile_for", compiling)
    source = print_kernel(lower_case(BY_NAME["pointwise_1000"]).group.kernel)
    others = [replace(source, text=f"{source.text}# {k}\n") for k in range(5)]
    broken = replace(source, text="broken")
    loaded = load_launchers([*others, broken], DiskCache(tmp_path), torch.device("cuda", 0))
    assert isinstance(loaded[-1], ValueError) and sorted(compiled) == sorted((s.text, True) for s in others)
    flat = torch.zeros(64)
    assert flat.data_ptr() % build_triton.ALIGNMENT == 0
    for tensor, aligned in ((flat, True), (flat[1:], False), (flat[2:], False), (flat[4:], True)):
        loaded[3](tensor, flat)
        assert launched.pop() == (aligned, (source.grid, 1, 1), (tensor.data_ptr(), flat.data_ptr()))
    assert compiled[5:] == [(others[3].text, False)]
