"""Device code of the workloads' kernels at their GPU shapes: nothing spilled, 16 bytes an access. Needs no GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import triton
from rooffuse.codegen.build_triton import compile_for
from rooffuse.codegen.cache import DiskCache
from rooffuse.codegen.ir import Kernel
from rooffuse.codegen.triton_kernel import TritonSource
from rooffuse.compile import kernel_of, kernel_steps, plan_graph, triton_source
from rooffuse.cost_model import get_device
from rooffuse.options import Options
from rooffuse.passes import aot_decompositions
from rooffuse.targets import target_for

from benchmarks.cases import cases_of
from benchmarks.gpu_shapes import gpu_case, trace

#: Shared memory that a program may have on sm_90, in bytes.
SHARED = 227 * 1024
CASES = {c.name: c for c in cases_of("kernels", "")}
#: Workloads whose tensors aren't loaded 16 bytes at a time: each lane takes one of the two numbers packed in a byte, or
#: every other element of an image, or
#: rows and runs of ten numbers, 20 bytes of which the next ones' don't begin at a multiple of 16.
NARROW = {"linear_int4_m1", "pooled_relu_backward", "few_classes_loss", "group_norm_channels_last"}
#: Kernels that move less are launched in more time than they take, however wide their accesses are.
FEW_BYTES = 1 << 20


def sources(name: str) -> list[tuple[Kernel, TritonSource]]:
    dtypes = CASES[name].dtypes
    case = gpu_case(name, "bf16" if "bf16" in dtypes else dtypes[0])
    target = target_for(get_device("h100"))
    plan = plan_graph(trace(case, aot_decompositions()), target, Options())
    return [(kernel_of(step), triton_source(step, target)) for step in kernel_steps(plan.program)]


def cuobjdump(folder: Path, cubin: bytes, *arguments: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this build of Triton has no cuobjdump")
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    return subprocess.run([str(tool), *arguments, str(path)], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", sorted(CASES))
def test_no_spills_and_wide_accesses(name: str, tmp_path: Path) -> None:
    found = sources(name)
    assert found
    for kernel, source in found:
        compiled = compile_for(source, DiskCache(tmp_path), 90)
        cubin = compiled.asm["cubin"]
        text = cuobjdump(tmp_path, cubin, "--dump-resource-usage")
        used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}
        assert used["STACK"] == used["LOCAL"] == 0, f"{source.text}\nspills: {used}"
        assert compiled.metadata.shared <= SHARED
        if name not in NARROW and sum(b.size * b.dtype.itemsize for b in kernel.buffers) > FEW_BYTES:
            code = cuobjdump(tmp_path, cubin, "-sass")
            widths = re.findall(r"\bLDG\.E\.([A-Z0-9.]*)", code)
            assert any("128" in w for w in widths), f"{source.text}\nhas no load of 16 bytes: {widths}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("backend,architecture,warp", [("cuda", 80, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)])
def test_other_devices(name: str, backend: str, architecture: int | str, warp: int, tmp_path: Path) -> None:
    for _, source in sources(name):
        compiled = compile_for(source, DiskCache(tmp_path), architecture, warp, backend)
        assert compiled.asm["hsaco" if backend == "hip" else "cubin"]
