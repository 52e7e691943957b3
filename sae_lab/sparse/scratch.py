"""Large memory that is asked of the system once: fresh pages can cost as much as the product that fills them."""

import ctypes
import math
import os
import threading
import weakref

import numpy as np
import torch

SMALL = 2**20  # bytes; below, the ordinary allocator is as quick
SIZES = 16  # how many sizes are remembered at most
SPARE = 16  # pieces of one size that are kept for later at most

KEPT = 2**28  # freed bytes that the C library may keep instead of giving them back, only to ask for them again
ALLOCATED = 2**25  # bytes from which on it asks for each piece; the most that glibc allows

_free: dict[int, list[np.ndarray]] = {}
_lock = threading.RLock()  # re-entrant: a finalizer may run while the lock is held
_largest = 0


def scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """An uninitialised tensor. Its memory is used again when the last tensor or view on it is gone, never before."""
    n = math.prod(shape) * dtype.itemsize
    note(n)
    if n < SMALL or torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    with _lock:
        if not _free.get(n):
            for size in [size for size in _free if not _free[size]] if len(_free) < SIZES else list(_free):
                del _free[size]  # sizes no longer in use do not pile up
        memory = _free[n].pop() if _free.get(n) else np.empty(n + 64, np.uint8)
    same = "int16" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")
    lease = memory[-memory.ctypes.data % 64 :][:n].view(same).reshape(shape)  # on a cache line
    weakref.finalize(lease, _give_back, memory).atexit = False  # torch holds the lease, not the memory
    out = torch.from_numpy(lease)  # no view of another tensor: autograd adds in place only to what nobody else holds
    return out.view(dtype) if dtype == torch.bfloat16 else out


def largest(reset: bool = False) -> int:
    """Bytes of the largest scratch asked for so far, in this process; `reset` starts anew."""
    global _largest
    most, _largest = _largest, 0 if reset else _largest
    return most


def note(n: int) -> None:
    """Counts bytes that were made elsewhere."""
    global _largest
    _largest = max(_largest, n)


def _keep_freed() -> None:
    """A step frees and asks for pieces of megabytes; by default each comes as fresh pages, which cost a tenth of it."""
    known = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & set(os.environ)  # the user has said
    if os.name == "posix" and not known:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)  # glibc has it
        mallopt(-1, KEPT), mallopt(-3, ALLOCATED)  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def _give_back(memory: np.ndarray) -> None:
    with _lock:
        same = _free.setdefault(memory.nbytes - 64, [])
        if len(same) < SPARE:
            same.append(memory)


_keep_freed()
