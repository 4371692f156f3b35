"""Compiles generated Triton modules: for a device without having one, for the local one, or for the interpreter."""
from __future__ import annotations

import functools
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
#: Most kernels that are compiled at once; each takes some memory.
_MOST_AT_ONCE = 16
#: Types whose elements kernels see as bytes.
_BYTES = frozenset({torch.bool, *FLOAT8})

Launcher = Callable[..., None]
_importing = threading.Lock()


def load_module(source: TritonSource, cache: DiskCache) -> ModuleType:
    """Write the module into the cache and import it (Triton reads a function's source from its file)."""
    key = digest("triton", source.text)
    path = cache.get(key, ".py", functools.partial(_write, source.text))
    return _import(path, f"rooffuse_triton_{key[:24]}")


def _write(text: str, path: Path) -> None:
    path.write_text(text)


def _import(path: Path, name: str) -> ModuleType:
    with _importing:  # a module is in the table before its text has run
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


def load_launcher(source: TritonSource, cache: DiskCache, device: torch.device, interpreted: bool = False) -> Launcher:
    """A callable that takes the kernel's tensors in the order of its buffers and launches it on the current stream.

    Compiles for ``device`` (through Triton's own cache on disk), or runs in Triton's interpreter on CPU tensors. Raises
    what Triton raises, which is of many kinds.
    """
    (loaded,) = load_launchers([source], cache, device, interpreted)
    if isinstance(loaded, Exception):
        raise loaded
    return loaded


def load_launchers(sources: Sequence[TritonSource], cache: DiskCache, device: torch.device, interpreted: bool = False
                   ) -> list[Launcher | Exception]:
    """`load_launcher` of each, or what Triton raised for it. They are compiled side by side."""
    if interpreted:
        return [_attempt(_interpreted_launcher, s, cache) for s in sources]
    capability = _attempt(torch.cuda.get_device_capability, device)
    if isinstance(capability, Exception) or not sources:
        return [capability] * len(sources)
    compiling = functools.partial(compile_for, cache=cache, capability=10 * capability[0] + capability[1])
    # Threads will do: Triton's passes, LLVM, the assembler and the driver run without Python's lock.
    with ThreadPoolExecutor(min(len(sources), os.cpu_count() or 1, _MOST_AT_ONCE)) as pool:
        return list(pool.map(lambda s: _attempt(_launcher, functools.partial(compiling, s), s.grid, device), sources))


def _attempt(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:  # Triton's compiler raises many kinds
        return error


def _launcher(compiling: Callable[..., Any], grid: int, device: torch.device) -> Launcher:
    """What launches the kernel that ``compiling`` makes, or the one that it makes where pointers aren't aligned."""
    with torch.cuda.device(device):  # kernels are loaded onto the current one
        # Now, so that the first run doesn't wait and a capture doesn't load.
        kernels = {True: compiling()[(grid, 1, 1)]}

    def launch(*tensors: torch.Tensor) -> None:
        pointers = [t.data_ptr() for t in tensors]
        aligned = not any(p % ALIGNMENT for p in pointers)
        if aligned not in kernels:
            kernels[aligned] = compiling(aligned=aligned)[(grid, 1, 1)]
        kernels[aligned](*pointers)

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
