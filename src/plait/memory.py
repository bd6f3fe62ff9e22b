"""Large buffers that are used again: half the time of a dense step at 400 thousand rows is page faults on fresh ones.

`empty` gives a tensor over a block of a process-wide pool. The tensor's storage holds the only reference to a lease on the
block; when the storage dies, and not before, the lease dies with it and the block is idle again. A tensor the user keeps, or a
view of one, or a NumPy array over one, is therefore never overwritten. Such a storage cannot be resized. With a bound of 0
there is no pool, and all tensors are PyTorch's own.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.config import environment

POOLED_BYTES = 1 << 20  # smaller tensors: the system's allocator keeps their pages anyway
_HUGE_PAGE = 1 << 21
# A block that nobody wanted for so long belongs to work that is over.
_IDLE_AGE_S = 30.0
# How long the bound read from the environment is believed: reading it costs more than giving out a buffer.
_LIMIT_AGE_S = 1.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """idle: kept for reuse; leased: under living tensors; hits, misses: how often a block was reused, or a fresh one mapped."""

    idle_bytes: int
    idle_blocks: int
    leased_bytes: int
    leased_blocks: int
    hits: int
    misses: int


@dataclass(frozen=True, eq=False, slots=True)
class _Block:
    """size: bytes of the class; view: the aligned part of an anonymous mapping, which is unmapped when the view dies."""

    size: int
    view: memoryview


class _Lease(weakref.ref[memoryview]):
    """A weak reference to the memoryview one storage holds, that knows the block under it."""

    __slots__ = ("block",)
    block: _Block


def size_class(num_bytes: int) -> int:
    """The size of the block for so many bytes: eight classes for every power of two, so at most 12.5 % more.

    >>> size_class(1 << 20), size_class((1 << 20) + 1)
    (1048576, 1179648)
    """
    step = 1 << max(num_bytes - 1, 1).bit_length() - 4
    return -(-num_bytes // step) * step


class BufferPool:
    """Idle blocks by size class, the newest of a class first out, the oldest of all first released."""

    def __init__(self, limit_bytes: Callable[[], int]) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.RLock()
        self._serial = itertools.count()
        # By serial number, oldest first, with the time it came back; and the serial numbers of every size, oldest first.
        self._idle: collections.OrderedDict[int, tuple[_Block, float]] = collections.OrderedDict()
        self._classes: dict[int, list[int]] = {}
        self._idle_bytes = 0
        # Finalizers run in any thread at any point, also inside the lock: all they do is two operations that cannot be torn.
        self._leases: dict[int, _Lease] = {}  # by id: a weak reference hashes as what it refers to
        self._returned: collections.deque[_Block] = collections.deque()
        self._hits = self._misses = 0
        self._limit, self._limit_read_s = 0, -math.inf

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised CPU tensor [*shape]; from 1 MiB on over a block of the pool."""
        count = math.prod(shape)
        num_bytes = count * dtype.itemsize
        if num_bytes < POOLED_BYTES:
            return torch.empty(shape, dtype=dtype)
        block = self._take(size_class(num_bytes))
        if block is None:
            return torch.empty(shape, dtype=dtype)  # which says what PyTorch says when memory is short
        view = memoryview(block.view)
        lease = _Lease(view, self._give_back)
        lease.block = block
        self._leases[id(lease)] = lease
        return torch.frombuffer(view, dtype=dtype, count=count).view(*shape)

    def clear(self) -> None:
        """Release every idle block; tensors that live are not touched."""
        with self._lock:
            self._collect()
            released = self._idle
            self._idle = collections.OrderedDict()
            self._classes.clear()
            self._idle_bytes = 0
            self._limit_read_s = -math.inf
        released.clear()

    def stats(self) -> PoolStats:
        """The counts now."""
        with self._lock:
            self._collect()
            leased = [lease.block.size for lease in list(self._leases.values())]
            return PoolStats(self._idle_bytes, len(self._idle), sum(leased), len(leased), self._hits, self._misses)

    def after_fork_in_child(self) -> None:
        """The lock may have been held by a thread that is not here."""
        self._lock = threading.RLock()

    def _give_back(self, lease: _Lease) -> None:
        self._leases.pop(id(lease), None)
        self._returned.append(lease.block)

    def _take(self, size: int) -> _Block | None:
        """An idle block of this size, or a fresh one; None without a pool, or if the system has no memory left."""
        with self._lock:
            self._collect()
            if not self._limit:
                return None
            waiting = self._classes.get(size)
            if waiting:
                serial = waiting.pop()
                self._hits += 1
                self._idle_bytes -= size
                return self._idle.pop(serial)[0]
            self._misses += 1
        try:
            return _map(size)
        except OSError:
            self.clear()
            return None

    def _collect(self) -> None:
        """Take in what was returned; release what is too much or too old. Inside the lock."""
        now_s = time.monotonic()
        while self._returned:
            try:
                block = self._returned.popleft()
            except IndexError:
                break
            serial = next(self._serial)
            self._idle[serial] = (block, now_s)
            self._classes.setdefault(block.size, []).append(serial)
            self._idle_bytes += block.size
        if now_s - self._limit_read_s > _LIMIT_AGE_S:
            self._limit, self._limit_read_s = self._limit_bytes(), now_s
        while self._idle:
            serial, (block, since_s) = next(iter(self._idle.items()))
            if self._idle_bytes <= self._limit and now_s - since_s <= _IDLE_AGE_S:
                return
            del self._idle[serial]
            self._classes[block.size].remove(serial)
            self._idle_bytes -= block.size


def _map(size: int) -> _Block:
    """A fresh private mapping, on huge pages: 2 MiB of zeros by one fault instead of 512."""
    if size < 2 * _HUGE_PAGE:
        return _Block(size, memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))
    mapping = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = torch.frombuffer(mapping, dtype=torch.uint8, count=1).data_ptr()
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them: ordinary pages do
            mapping.madvise(mmap.MADV_HUGEPAGE)
    skip = -address % _HUGE_PAGE
    return _Block(size, memoryview(mapping)[skip : skip + size])


POOL = BufferPool(lambda: environment().pool_bytes)
os.register_at_fork(after_in_child=POOL.after_fork_in_child)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor [*shape] of this dtype; from 1 MiB on over a buffer of the process-wide pool."""
    return POOL.empty(shape, dtype)


def clear() -> None:
    """Release the idle buffers of the process-wide pool."""
    POOL.clear()


def stats() -> PoolStats:
    """Counts of the process-wide pool."""
    return POOL.stats()
