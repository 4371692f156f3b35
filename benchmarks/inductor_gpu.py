"""Inductor's schedule for a GPU that isn't there, in a process of its own, since torch is made to believe in one.

    python -m benchmarks.inductor_gpu CASE DTYPE       prints one JSON object

A workload of the suite ``kernels`` is traced on fake CPU tensors of the GPU's shapes; the graph's values are then
declared to lie on ``cuda:0``, and Inductor's joint-graph and post-grad passes, its scheduler and its Triton printer run
on it. Nothing is executed. Bytes are Inductor's own count for its schedule: each buffer once for every kernel that
touches it, later sweeps over a row not counted. Uses private parts of torch; seen working with 2.13.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.fx import GraphModule

#: Figures of an H100 SXM as its driver reports them.
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, gcnArchName="",
    regs_per_multiprocessor=1 << 16, max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32,
    L2_cache_size=50 << 20, shared_memory_per_block=48 << 10, shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10)


class _Driver:
    """What Triton asks its driver while code is generated."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 10 * PROPERTIES.major + PROPERTIES.minor, PROPERTIES.warp_size)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Inside of the block torch and Triton see one H100."""
    from torch._dynamo.device_interface import CudaInterface
    from triton.runtime.driver import driver

    capability = (PROPERTIES.major, PROPERTIES.minor)
    in_torch = {"is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
                "get_device_properties": lambda *_: PROPERTIES, "get_device_capability": lambda *_: capability,
                "_lazy_init": lambda: None, "synchronize": lambda *_: None}
    in_dynamo = {"is_available": lambda: True, "is_triton_capable": lambda *_: True, "current_device": lambda: 0,
                 "get_device_properties": lambda *_: PROPERTIES, "raise_if_triton_unavailable": lambda *_: None,
                 "get_compute_capability": lambda *_: 10 * PROPERTIES.major + PROPERTIES.minor}
    with ExitStack() as stack:
        for name, value in in_torch.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, value in in_dynamo.items():
            stack.enter_context(mock.patch.object(CudaInterface, name, staticmethod(value)))
        stack.enter_context(mock.patch.object(CudaInterface.Worker, "get_device_properties",
                                              staticmethod(lambda *_: PROPERTIES)))
        stack.enter_context(mock.patch.object(torch.version, "cuda", "13.0"))
        driver.set_active(_Driver())  # for good: going back would load CUDA's library, which isn't there
        yield


def _on_gpu(value: Any) -> Any:
    """The same fake tensors on ``cuda:0``."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils._pytree import tree_map_only

    def move(fake: FakeTensor) -> FakeTensor:
        with torch._C._DisableTorchDispatch():
            meta = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device="meta")
        return FakeTensor(fake.fake_mode, meta, torch.device("cuda", 0))

    return tree_map_only(FakeTensor, move, value)


def _declare_on_gpu(gm: GraphModule) -> None:
    for node in gm.graph.nodes:
        node.meta.pop("tensor_meta", None)
        if "val" in node.meta:
            node.meta["val"] = _on_gpu(node.meta["val"])
        if node.kwargs.get("device") is not None:
            node.update_kwarg("device", torch.device("cuda", 0))
    gm.recompile()


def inductor_schedule(name: str, dtype: str) -> dict[str, int]:
    """``launches`` (Triton kernels and library calls) and ``bytes`` of Inductor's schedule for one workload."""
    from torch._inductor.compile_fx import _recursive_joint_graph_passes, _recursive_post_grad_passes
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    from .facts import inductor_launches
    from .gpu_shapes import gpu_case, trace

    case = gpu_case(name, dtype)
    gm = trace(case, select_decomp_table())
    with V.set_fake_mode(case.mode), torch.no_grad():
        _recursive_joint_graph_passes(gm)  # registers its patterns with the real device's functions first
        _declare_on_gpu(gm)
        args = [_on_gpu(a) for a in case.args]
        with pretended_gpu():
            _recursive_post_grad_passes(gm, is_inference=True)
            lowering = GraphLowering(gm, example_inputs=args, is_inference=True)
            with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
                lowering.run(*args)
                printed = lowering.codegen()[0]
                moved = lowering.count_bytes()[0]
    return {"launches": inductor_launches(str(getattr(printed, "value", printed))), "bytes": int(moved)}


if __name__ == "__main__":
    print(json.dumps(inductor_schedule(sys.argv[1], sys.argv[2])))
