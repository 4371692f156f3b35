"""Compiles generated Triton modules: for a device without having one, for the local one, or for the interpreter."""
from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .cache import DiskCache, digest
from .float8 import FLOAT8, for_hardware
from .triton_kernel import TritonSource

#: Bytes to which pointers are assumed to be aligned; a call with others takes a second kernel without the assumption.
ALIGNMENT = 16
#: Types whose elements kernels see as bytes.
_BYTES = frozenset({torch.bool, *FLOAT8})


def load_module(source: TritonSource, cache: DiskCache) -> ModuleType:
    """Write the module into the cache and import it (Triton reads a function's source from its file)."""
    key = digest("triton", source.text)
    path = cache.get(key, ".py", functools.partial(_write, source.text))
    return _import(path, f"rooffuse_triton_{key[:24]}")


def _write(text: str, path: Path) -> None:
    path.write_text(text)


def _import(path: Path, name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def compile_for(source: TritonSource, cache: DiskCache, capability: int | str, warp_size: int = 32,
                backend: str = "cuda", aligned: bool = True) -> Any:
    """Triton's compiled kernel for a target such as ``90`` (sm_90); needs no device. With ``backend="hip"`` the
    capability is an architecture name such as ``"gfx942"``."""
    import triton
    from triton.backends.compiler import GPUTarget

    module = load_module(replace(source, text=for_hardware(source.text, backend, capability)), cache)
    function = getattr(module, source.entry)
    attributes = {(k,): [["tt.divisibility", ALIGNMENT]] for k in range(len(source.signature))} if aligned else {}
    ast = triton.compiler.ASTSource(fn=function, signature=dict(source.signature), constexprs={}, attrs=attributes)
    options = {"num_warps": source.warps, "enable_fp_fusion": source.contracted}
    if source.stages is not None:
        options["num_stages"] = source.stages
    return triton.compile(ast, target=GPUTarget(backend, capability, warp_size), options=options)


def load_launcher(source: TritonSource, cache: DiskCache, device: torch.device,
                  interpreted: bool = False) -> Callable[..., None]:
    """A callable that takes the kernel's tensors in the order of its buffers and launches it on the current stream.

    Compiles for ``device`` (through Triton's own cache on disk), or runs in Triton's interpreter on CPU tensors.
    """
    if interpreted:
        return _interpreted_launcher(source, cache)
    major, minor = torch.cuda.get_device_capability(device)

    @functools.lru_cache(maxsize=2)
    def kernel(aligned: bool) -> Callable[..., None]:
        return compile_for(source, cache, 10 * major + minor, aligned=aligned)[(source.grid, 1, 1)]

    kernel(True)  # compiled now, so that the first run doesn't wait and a capture doesn't compile

    def launch(*tensors: torch.Tensor) -> None:
        pointers = [t.data_ptr() for t in tensors]
        kernel(not any(p % ALIGNMENT for p in pointers))(*pointers)

    return launch


def _interpreted_launcher(source: TritonSource, cache: DiskCache) -> Callable[..., None]:
    from .triton_interpreted import interpreting

    text = source.text.replace("from triton.language.extra import libdevice",
                               "from rooffuse.codegen import triton_interpreted as libdevice")
    path = cache.get(digest("triton interpreter", text), ".py", functools.partial(_write, text))
    with interpreting():
        function = getattr(_import(path, f"rooffuse_interpreted_{path.stem[:24]}"), source.entry)

    def launch(*tensors: torch.Tensor) -> None:
        flat = [torch.as_strided(t, (t.untyped_storage().nbytes() // t.element_size() - t.storage_offset(),), (1,),
                                 t.storage_offset()) for t in tensors]
        with interpreting():
            function[(source.grid,)](*[f.view(torch.uint8) if f.dtype in _BYTES else f for f in flat])

    return launch
