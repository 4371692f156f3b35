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
from dataclasses import dataclass
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


@dataclass
class _Block:
    """A storage, where and how long it was when it was made, and how often it was in use since it was last given."""

    storage: torch.UntypedStorage
    address: int
    nbytes: int
    misses: int = 0

    def references(self) -> int:
        return sys.getrefcount(self.storage)

    def free(self) -> bool:
        """Whether this is the only owner, and the only reference to the Python object, and the memory still the same:
        resizing, and sharing with other processes, exchange it."""
        return (_owners(self.storage._cdata) == 1 and self.references() == _ALONE
                and (self.storage.data_ptr(), self.storage.nbytes()) == (self.address, self.nbytes))


_ALONE = _Block(torch.UntypedStorage(0), 0, 0).references()


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
                    found = torch.empty(0, dtype=dtype, device="cpu").set_(block.storage, 0, size, stride)
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
        made = torch.empty_strided(size, stride, dtype=dtype, device="cpu")
        self._keep(made.untyped_storage(), nbytes)
        return made

    def _keep(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        with self._lock:
            self._blocks.setdefault(nbytes, deque()).append(_Block(storage, storage.data_ptr(), nbytes))
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
