"""`STRUCTURE`: what was computed from index tensors alone, kept between steps and found again by content."""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from plait.config import environment


@dataclass(frozen=True, slots=True)
class CacheStats:
    """entries and bytes held; hits and misses since the process began or `clear`."""

    entries: int
    bytes: int
    hits: int
    misses: int


# How much is held before a single entry has been missed after it was dropped, see `StructureCache`.
_INITIAL_BYTES = 128 << 20
_NUM_GHOSTS = 4096


class StructureCache:
    """What was computed from index tensors alone: least recently used first out, bounded in bytes; the newest group stays.

    The bound starts at 128 MiB and grows, up to the limit, by the size of every entry that is asked for after it was dropped: a
    few graphs seen again and again get the room they need by their third round, and graphs that never come back (edges drawn
    anew at every step) don't fill memory that nobody will read.
    """

    def __init__(self, limit_bytes: Callable[[], int]) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.RLock()
        self._entries: collections.OrderedDict[Hashable, tuple[Any, int, Hashable]] = collections.OrderedDict()
        self._ghosts: collections.OrderedDict[Hashable, int] = collections.OrderedDict()  # dropped keys and their bytes
        self._bytes = self._hits = self._misses = 0
        self._room = _INITIAL_BYTES

    def get(self, key: Hashable) -> Any | None:
        """The value put under this key, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self._misses += 1
                self._room += self._ghosts.pop(key, 0)
                return None
            self._entries.move_to_end(key)
            self._hits += 1
            return found[0]

    def put(self, key: Hashable, value: Any, nbytes: int, group: Hashable = None) -> None:
        """Keep a value of so many bytes, and drop the least recently used ones above the bound, but none of this group.

        group: what a step needs together, so that a graph larger than the bound is not built again at every step.
        """
        limit = self._limit_bytes()
        dropped = []  # freed after the lock is: a destructor may be long, or come back here
        with self._lock:
            self._room = max(min(self._room, limit), min(_INITIAL_BYTES, limit))
            replaced = self._entries.pop(key, None)
            if replaced is not None:
                self._bytes -= replaced[1]
                dropped.append(replaced[0])
            self._entries[key] = (value, nbytes, group)
            self._bytes += nbytes
            dropped += self._trim(key)
            while len(self._ghosts) > _NUM_GHOSTS:
                self._ghosts.popitem(last=False)

    def _trim(self, newest: Hashable) -> list[Any]:
        """Take out what is above the bound; the values, for the caller to free."""
        dropped: list[Any] = []
        group = self._entries[newest][2]
        # All keys are listed only when something must go: a put that fits costs the same however much is held.
        for key in list(self._entries) if self._bytes > self._room else ():
            value, nbytes, its_group = self._entries[key]
            if key == newest or (group is not None and its_group == group):
                continue
            if self._bytes <= self._room:
                break
            del self._entries[key]
            self._bytes -= nbytes
            self._ghosts[key] = nbytes
            dropped.append(value)
        return dropped

    def clear(self) -> None:
        """Drop everything, also what was learnt about how much room is needed."""
        with self._lock:
            dropped = self._entries
            self._entries = collections.OrderedDict()
            self._ghosts.clear()
            self._bytes = self._hits = self._misses = 0
            self._room = _INITIAL_BYTES
        dropped.clear()

    def stats(self) -> CacheStats:
        """The counts now."""
        with self._lock:
            return CacheStats(len(self._entries), self._bytes, self._hits, self._misses)

    def after_fork_in_child(self) -> None:
        """The lock may have been held by a thread that is not here."""
        self._lock = threading.RLock()


STRUCTURE = StructureCache(lambda: environment().graph_bytes)
os.register_at_fork(after_in_child=STRUCTURE.after_fork_in_child)
