"""Features on pages of 2 MiB: a row somewhere in a large tensor is found without a walk through the page tables.

The kernel is advised to do so (MADV_COLLAPSE, Linux 6.1); contents and addresses stay as they are. NumPy advises it for its own
large arrays, PyTorch does not: its tensors come on pages of 4 KiB.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import pathlib

import numpy as np
import torch
from torch import Tensor

MIN_BYTES = 32 << 20  # the processor remembers where smaller tensors' pages are
_HUGE_PAGE = 1 << 21
_PIECE = 16 * _HUGE_PAGE
_MADV_COLLAPSE = 25
_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PAGEMAP = pathlib.Path("/proc/self/pagemap")
# Of a page, in the pagemap: it is there, it belongs to this process alone, it is of a file or shared memory.
_PRESENT, _EXCLUSIVE, _FILE = (np.uint64(1 << bit) for bit in (63, 56, 61))


def advise(rows: Tensor) -> int:
    """Put a tensor on huge pages as far as it costs no memory: the bytes that are on them afterwards.

    Only memory that is this process's alone and wholly there: not files, not shared memory, not what a fork shares with its
    parent, not what was never written. Whatever the kernel refuses stays as it is.
    """
    if rows.layout is not torch.strided:
        return 0
    num_bytes = rows.numel() * rows.itemsize
    if num_bytes < MIN_BYTES or not rows.is_cpu or not rows.is_contiguous() or not _are_allowed():
        return 0
    begin = -(-rows.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
    end = (rows.data_ptr() + num_bytes) // _HUGE_PAGE * _HUGE_PAGE
    done = 0
    try:
        with _PAGEMAP.open("rb") as pagemap:
            for piece in range(begin, end, _PIECE):
                size = min(_PIECE, end - piece)
                pagemap.seek(piece // mmap.PAGESIZE * 8)
                pages = np.frombuffer(pagemap.read(size // mmap.PAGESIZE * 8), np.uint64)
                if not _is_private(pages):
                    continue
                if _madvise()(piece, size, _MADV_COLLAPSE):
                    break  # an older kernel, or memory in pieces too small
                done += size
    except OSError:
        return done
    return done


def _is_private(pages: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> bool:
    wanted = _PRESENT | _EXCLUSIVE
    return bool(((pages & (wanted | _FILE)) == wanted).all())


def _are_allowed() -> bool:
    """Whether there are pages of 2 MiB, and the machine's owner has not forbidden them."""
    try:
        return mmap.PAGESIZE == 4096 and "[never]" not in _SETTING.read_text()
    except OSError:
        return False


@functools.lru_cache(maxsize=1)
def _madvise() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
