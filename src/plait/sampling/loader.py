"""What node and link loaders share: epochs, threads, the position to resume from, the batch that goes to the user."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plait.errors import OptionError
from plait.sampling import ahead
from plait.sampling.batch import Sliced, assemble, slice_rows
from plait.sampling.order import BatchOrder, Position
from plait.sampling.pipeline import run_ahead
from plait.sampling.plan import Plan, Sampler, SamplerPool, SamplingOptions, make_plan
from plait.sampling.request import Request
from plait.sampling.source import FeatureOptions, Source, read_source

_log = logging.getLogger(__name__)

_MAX_DEFAULT_THREADS = 8
# Arguments of torch's DataLoader that mean nothing here: there are no worker processes.
_WITHOUT_MEANING = frozenset(
    (
        "persistent_workers",
        "timeout",
        "multiprocessing_context",
        "worker_init_fn",
        "collate_fn",
        "dataset",
        "pin_memory_device",
        "in_order",
    )
)


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Batches and threads.

    batch_size, shuffle, drop_last, sampler, batch_sampler: as in torch's DataLoader.
    threads: that prepare batches; None takes num_workers where that is set, else the processors there are, at most 8; 0
    prepares each batch when it is asked for.  prefetch: batches that may be ready or in work; None is prefetch_factor a thread.
    orderings: "blocks" or "batch": threads also sort the edges as a compiled model on blocks, or on whole batches, needs them.
    seed: of order and picks; None draws one from torch's generator, so that torch.manual_seed fixes it.
    """

    batch_size: int = 1
    shuffle: bool = False
    drop_last: bool = False
    sampler: Iterable[int] | None = None
    batch_sampler: Iterable[Any] | None = None
    threads: int | None = None
    num_workers: int = 0
    prefetch: int | None = None
    prefetch_factor: int | None = None
    seed: int | None = None
    generator: torch.Generator | None = None
    pin_memory: bool = False
    orderings: str | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "num_workers", "prefetch", "prefetch_factor"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise OptionError(f"{name}: expected at least 0, got {value}")
        ahead.check(self.orderings)

    @staticmethod
    def parse(given: dict[str, Any]) -> LoaderOptions:
        """Keyword arguments of a loader; those of DataLoader that have no meaning here are left out."""
        known = {name: value for name, value in given.items() if name not in _WITHOUT_MEANING}
        unknown = sorted(set(known) - set(LoaderOptions.__dataclass_fields__))
        if unknown:
            valid = ", ".join(LoaderOptions.__dataclass_fields__)
            raise OptionError(f"unknown option {', '.join(map(repr, unknown))}; valid options: {valid}")
        if len(known) < len(given):
            _log.info("options without meaning for threads: %s", ", ".join(sorted(set(given) - set(known))))
        return LoaderOptions(**known)

    @property
    def num_threads(self) -> int:
        if self.threads is not None:
            return self.threads
        return self.num_workers or min(len(os.sched_getaffinity(0)), _MAX_DEFAULT_THREADS)

    @property
    def depth(self) -> int:
        """How many batches threads may be ahead of the caller."""
        return self.prefetch or (self.prefetch_factor or 2) * max(self.num_threads, 1)

    def drawn_seed(self) -> int:
        """The seed given, or one from torch's generator."""
        if self.seed is not None:
            return self.seed
        return int(torch.randint(2**62, (), generator=self.generator))


@dataclass(frozen=True, eq=False)
class Prepared:
    """A batch as threads leave it. seeds: what depends on the seeds, as (type's name or None, attribute, value)."""

    sliced: Sliced
    seeds: tuple[tuple[Any, str, Any], ...]
    removed: tuple[tuple[Any, str], ...] = ()


class BatchLoader(ABC):
    """An iterable of batches; every `iter` is the next epoch.

    The batches of an epoch depend on seed and epoch alone, not on threads. `state_dict()` says where the loader is, and after
    `load_state_dict(state)` the next `iter` gives the batches that are left of that epoch.
    """

    def __init__(
        self,
        data: Any,
        sampling: SamplingOptions,
        options: LoaderOptions,
        features: FeatureOptions,
        transform: Callable[[Any], Any] | None,
    ) -> None:
        self.data = data
        self.transform = transform
        self.options = options
        self.source: Source = read_source(data, features)
        self.plan: Plan = make_plan(self.source, sampling)
        self.seed = options.drawn_seed()
        self._samplers = SamplerPool(self.plan)
        self._start = Position()  # of the next `iter`
        self._position = Position()  # of what was delivered

    @abstractmethod
    def prepare(self, sampler: Sampler, key: tuple[int, int, int], index: Tensor) -> Prepared:
        """The batch of the seeds numbered `index` (int64); key: seed, epoch and batch number. Called by threads."""

    @property
    @abstractmethod
    def num_seeds(self) -> int:
        """How many seeds an epoch goes through."""

    @property
    def order(self) -> BatchOrder:
        """How seeds are put into batches."""
        options = self.options
        return BatchOrder(
            num_seeds=self.num_seeds,
            batch_size=options.batch_size,
            shuffle=options.shuffle,
            drop_last=options.drop_last,
            sampler=options.sampler,
            batch_sampler=options.batch_sampler,
        )

    @property
    def batch_size(self) -> int:
        return self.options.batch_size

    @property
    def epoch(self) -> int:
        """The number of the epoch that the next `iter` begins or goes on with."""
        return self._start.epoch

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"  # PyG's

    def __len__(self) -> int:
        return self.order.num_batches

    def __iter__(self) -> Iterator[Any]:
        start = self._start
        self._start = Position(start.epoch + 1)
        self._position = start
        return self._epoch(start)

    def __call__(self, index: Tensor | Sequence[int]) -> Any:
        """The batch of the seeds with these numbers, sampled now; as batch 0 of the epoch that comes next."""
        with self._samplers.lend() as sampler:
            prepared = self.prepare(sampler, (self.seed, self._start.epoch, 0), torch.as_tensor(index).long())
        return self._finish(prepared)

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: seed, epoch, and how many batches of it were delivered."""
        return {"seed": self.seed, "epoch": self._position.epoch, "batch": self._position.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there: the next `iter` gives the rest of that epoch."""
        missing = [name for name in ("seed", "epoch", "batch") if name not in state]
        if missing:
            raise OptionError(f"loader state: {', '.join(missing)} missing; expected what state_dict() returned")
        self.seed = state["seed"]
        self._start = self._position = Position(state["epoch"], state["batch"])

    def _epoch(self, start: Position) -> Iterator[Any]:
        batches = self.order.batches(self.seed, start.epoch)
        seed = self.seed

        def work(sampler: Sampler, number: int) -> Prepared:
            number += start.batch
            try:
                return self.prepare(sampler, (seed, start.epoch, number), batches[number])
            except Exception as error:
                error.add_note(f"while batch {number} of epoch {start.epoch} was prepared")
                raise

        count = len(batches) - start.batch
        options = self.options
        prepared = run_ahead(count, work, self._samplers.lend, num_threads=options.num_threads, depth=options.depth)
        try:
            for number in range(count):
                batch = self._finish(next(prepared))
                done = start.batch + number + 1
                self._position = Position(start.epoch, done) if done < len(batches) else Position(start.epoch + 1)
                yield batch
                del batch  # what the user does not keep returns to the pool before the next one is waited for
        finally:
            prepared.close()  # type: ignore[attr-defined]  # a generator: ends the threads

    def slice(self, sampler: Sampler, request: Request) -> Sliced:
        """Sample, slice what was sampled, and order its edges if asked."""
        sliced = slice_rows(
            self.source,
            sampler.sample(request),
            is_bidirectional=self.plan.is_bidirectional,
            is_induced=self.plan.rules.induced,
        )
        if self.options.orderings is not None:
            ahead.order_ahead(sliced, self.options.orderings)
        return sliced

    def _finish(self, prepared: Prepared) -> Any:
        """In the caller's thread, in order: a transform may draw random numbers."""
        batch = assemble(self.source, prepared.sliced)
        for name, key, value in prepared.seeds:
            setattr(batch if name is None else batch[name], key, value)
        for name, key in prepared.removed:
            store = batch if name is None else batch[name]
            if key in store:
                delattr(store, key)
        if self.options.pin_memory and torch.cuda.is_available() and hasattr(batch, "pin_memory"):
            batch = batch.pin_memory()
        return batch if self.transform is None else self.transform(batch)
