"""Which seeds are in which batch of which epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plait.errors import OptionError
from plait.sampling.random import key_of


@dataclass(frozen=True, slots=True)
class Position:
    """Where a loader is: `batch` batches of epoch `epoch` have been delivered."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchOrder:
    """How seeds 0 to num_seeds - 1 are put into batches.

    sampler: an iterable of seed numbers, read anew in every epoch; batch_sampler: an iterable of lists of them.
    """

    num_seeds: int
    batch_size: int = 1
    shuffle: bool = False
    drop_last: bool = False
    sampler: Iterable[int] | None = None
    batch_sampler: Iterable[Any] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise OptionError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.shuffle and self.sampler is not None:
            raise OptionError("shuffle and sampler: both say in which order seeds come; give one of them")

    @property
    def num_batches(self) -> int:
        if self.batch_sampler is not None:
            return len(self.batch_sampler)  # type: ignore[arg-type]  # an iterable without a length says so itself
        count = self.num_seeds if self.sampler is None else len(self.sampler)  # type: ignore[arg-type]
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def batches(self, seed: int, epoch: int) -> list[Tensor]:
        """The seed numbers of every batch of an epoch, int64; the same for the same seed and epoch (samplers: as they like)."""
        if self.batch_sampler is not None:
            return [_as_index(batch) for batch in self.batch_sampler]
        if self.sampler is not None:
            order = _as_index(list(self.sampler))
        elif self.shuffle:
            generator = torch.Generator().manual_seed(key_of(seed, epoch) >> 1)
            order = torch.randperm(self.num_seeds, generator=generator)
        else:
            order = torch.arange(self.num_seeds)
        found = list(order.split(self.batch_size)) if len(order) else []
        if found and self.drop_last and len(found[-1]) < self.batch_size:
            found.pop()
        return found


def _as_index(batch: Any) -> Tensor:
    return batch.long() if isinstance(batch, Tensor) else torch.as_tensor(batch, dtype=torch.int64)
