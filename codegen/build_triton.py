"""Compiles generated Triton modules: for a device without having one, for the local one, or for the interpreter."""
from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .cache import DiskCache, digest
from .triton_kernel import TritonSource


def load_module(source: TritonSource, cache: DiskCache) -> ModuleType:
    """Write the module into the cache and import it (Triton reads a function's source from its file)."""
    key = digest("triton", source.text)
    path = cache.get(key, ".py", lambda p: Path(p).write_text(source.text) and None)
    name = f"rooffuse_triton_{key[:24]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def compile_for(source: TritonSource, cache: DiskCache, capability: int, warp_size: int = 32, backend: str = "cuda") -> Any:
    """Triton's compiled kernel for a target such as ``90`` (sm_90); needs no device. With ``backend="hip"`` the
    capability is an architecture name such as ``"gfx942"``."""
    import triton
    from triton.backends.compiler import GPUTarget

    function = getattr(load_module(source, cache), source.entry)
    attributes = {(k,): [["tt.divisibility", 16]] for k in range(len(source.signature))}
    ast = triton.compiler.ASTSource(fn=function, signature=dict(source.signature), constexprs={}, attrs=attributes)
    return triton.compile(ast, target=GPUTarget(backend, capability, warp_size), options={"num_warps": source.warps})


def fingerprint(source: TritonSource) -> str:
    """Short name of the generated text, for logs."""
    return hashlib.sha256(source.text.encode()).hexdigest()[:12]
