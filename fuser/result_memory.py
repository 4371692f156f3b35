"""Memory of large results on the CPU, written again once nobody refers to it any more.

C libraries return large blocks to the system when they are freed, and a system hands out zeroed pages one fault at a
time: of the 20 ms that a softmax with 64 MB of results took on two cores 14 were faults, whichever compiler it was.
Here freed results are kept, as the framework's allocators for GPUs do, and given to the next result of as many bytes.
"""
from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

#: Smallest results that are kept: what is below stays in the C library's hands.
LEAST_BYTES = 1 << 20
#: The part of the machine's memory that may be kept.
KEPT_PART = 1 / 8
#: How often in a row a block may be found in use: who holds a result for longer keeps it, and it is forgotten here.
_MOST_MISSES = 16
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

# How many own a storage, its Python object counted once; the framework's CUDA graph trees ask for it in the same way.
_owners = torch._C._storage_Use_Count
_Layout = tuple[Sequence[int], Sequence[int], torch.dtype]


class _Block:
    """A tensor in memory that is kept, where and how long its storage was when it was made, and how often it was in use
    since it was last given. What is given shares the storage, not the tensor: finding that out, and making it, has to
    take little time after a kernel has filled the caches with other things."""

    __slots__ = ("address", "layout", "misses", "nbytes", "owner", "storage", "tensor")

    def __init__(self, tensor: Tensor, layout: _Layout) -> None:
        self.tensor, self.layout, self.storage = tensor, layout, tensor.untyped_storage()
        self.owner, self.address, self.nbytes = self.storage._cdata, self.storage.data_ptr(), self.storage.nbytes()
        self.misses = 0

    def free(self) -> bool:
        """Whether nothing else owns it or refers to its Python object, and the memory is still the same: resizing, and
        sharing with other processes, exchange it."""
        return (_owners(self.owner) == _OWNERS and sys.getrefcount(self.storage) == _REFERENCES
                and self.storage.data_ptr() == self.address and self.storage.nbytes() == self.nbytes)

    def lend(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of that layout in this memory, with a version of its own."""
        inference = torch.is_inference_mode_enabled()
        if (size, stride, dtype) != self.layout or inference:
            made = torch.empty(0, dtype=dtype, device="cpu").set_(self.storage, 0, size, stride)
            if inference:  # such a tensor couldn't be given outside of that mode
                return made
            self.tensor, self.layout = made, (size, stride, dtype)
        return self.tensor.data


_ALONE = _Block(torch.empty(0), ((0,), (1,), torch.float32))
_OWNERS, _REFERENCES = _owners(_ALONE.owner), sys.getrefcount(_ALONE.storage)


def memory_limit() -> int:
    """Bytes that this process may use: the machine's, or its control group's if those are fewer."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # there is none, or it is "max"
        return machine


class ResultMemory:
    """Blocks by size, the sizes from the longest unused to the last used; at most ``limit`` bytes in all."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._blocks: OrderedDict[int, deque[_Block]] = OrderedDict()
        # Python may collect garbage inside, and a finaliser take memory itself.
        self._lock = threading.RLock()

    def take(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, nbytes: int) -> Tensor:
        """A tensor, not initialised, whose elements span ``nbytes`` bytes that nobody else refers to."""
        with self._lock:
            blocks = self._blocks.get(nbytes) or deque()
            for _ in range(len(blocks)):  # from the longest unused to the last used
                if not blocks:
                    break
                block = blocks.popleft()
                if block.free():
                    found = block.lend(size, stride, dtype)
                    block.misses = 0
                    blocks.append(block)
                    if nbytes in self._blocks:
                        self._blocks.move_to_end(nbytes)
                    return found
                block.misses += 1
                if block.misses < _MOST_MISSES:
                    blocks.append(block)
                else:
                    self.bytes -= nbytes
        with torch.inference_mode(False):
            block = _Block(torch.empty_strided(size, stride, dtype=dtype, device="cpu"), (size, stride, dtype))
        made = block.lend(size, stride, dtype)
        self._keep(block, nbytes)
        return made

    def _keep(self, block: _Block, nbytes: int) -> None:
        with self._lock:
            self._blocks.setdefault(nbytes, deque()).append(block)
            self._blocks.move_to_end(nbytes)
            self.bytes += nbytes
            while self.bytes > self.limit:
                oldest = next(iter(self._blocks))
                if self._blocks[oldest]:
                    self._blocks[oldest].popleft()
                    self.bytes -= oldest
                else:
                    del self._blocks[oldest]

    def clear(self) -> None:
        """Keep nothing; what results still own stays theirs."""
        with self._lock:
            self._blocks.clear()
            self.bytes = 0


#: The process's: blocks that one program's results leave are as good for another's.
RESULTS = ResultMemory(int(KEPT_PART * memory_limit()))


def empty_cache() -> None:
    """Give the memory of released results back to the system (those of the CPU; GPUs have the framework's cache)."""
    RESULTS.clear()
