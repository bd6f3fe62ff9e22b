"""The graph of a launch's last call, known again by the tensors themselves.

A lookup by content costs tens of microseconds when the caches are cold, which is the time of a kernel on a small graph. Index
maps that plait made (`graph.is_frozen`) cannot change while they live, so the same tensors mean the same ordering.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from plait import graph

# the ordering, whether edge tensors are sorted like it, and the tensors of the program with those in their sorted form
Found = tuple[graph.Ordering, bool, Sequence[Tensor]]

# After so many calls the caches are asked again, which tells them that the entry is in use.
_CALLS = 64


@dataclass(eq=False, slots=True)
class LastGraph:
    """What was found for the last maps. Only weak references: what the bounded caches drop is gone here too.

    slots: which of the program's tensors were exchanged for sorted ones, with both.
    """

    num_rows: int
    sizes: tuple[int, ...]
    rows: weakref.ref[Tensor] | None
    maps: tuple[weakref.ref[Tensor], ...]
    ordering: weakref.ref[graph.Ordering]
    slots: tuple[tuple[int, weakref.ref[Tensor], weakref.ref[Tensor]], ...]
    calls: int = field(default=0)

    @staticmethod
    def remember(
        num_rows: int,
        rows: Tensor | None,
        maps: Sequence[Tensor],
        sizes: Sequence[int],
        ordering: graph.Ordering,
        slots: Sequence[int],
        tensors: Sequence[Tensor],
        read: Sequence[Tensor],
    ) -> LastGraph | None:
        """None if some map is not plait's own: the user can write to it."""
        if not all(map(graph.is_frozen, maps)) or (rows is not None and not graph.is_frozen(rows)):
            return None
        return LastGraph(
            num_rows,
            tuple(sizes),
            weakref.ref(rows) if rows is not None else None,
            tuple(map(weakref.ref, maps)),
            weakref.ref(ordering),
            tuple((slot, weakref.ref(tensors[slot]), weakref.ref(read[slot])) for slot in slots),
        )

    def of(
        self,
        num_rows: int,
        rows: Tensor | None,
        maps: Sequence[Tensor],
        sizes: Sequence[int],
        tensors: Sequence[Tensor],
    ) -> Found | None:
        """What was found, if these are the same tensors."""
        if num_rows != self.num_rows or sizes != self.sizes or rows is not (self.rows and self.rows()):
            return None
        for item, known in zip(maps, self.maps, strict=True):
            if item is not known():
                return None
        self.calls += 1
        ordering = self.ordering()
        if ordering is None or self.calls > _CALLS:
            return None
        if not self.slots:
            return ordering, False, tensors
        read = list(tensors)
        for slot, given, exchanged in self.slots:
            in_order = exchanged()
            if tensors[slot] is not given() or in_order is None:
                return None
            read[slot] = in_order
        return ordering, True, read
