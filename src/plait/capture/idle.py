"""Calls of a model in which nothing of plait runs: after some of a kind, they go to the model itself, without Dynamo.

Where nothing pays, all graphs of a model run as PyTorch runs them (see `capture.worth`), and Dynamo's checks, around every
piece between two graph breaks, are all that is left of compiling: a few percent of a small step. The un-compiled model is
right whatever it is called with, so that a kind need not say everything: shapes, types and modes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

_ENOUGH = 3  # calls of a kind: a model may set itself up in the first, and be compiled from the second on
_MOST = 256  # kinds that are remembered


class _Runs(threading.local):
    """How many compiled graphs this thread has run."""

    count = 0


_RUNS = _Runs()


def note_run() -> None:
    """Says that a compiled graph runs."""
    _RUNS.count += 1


def num_runs() -> int:
    """How many compiled graphs this thread has run so far."""
    return _RUNS.count


class Idle:
    """How often calls of each kind have run nothing of plait, for one model."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.counts: dict[Hashable, int] = {}

    def __contains__(self, leaves: Sequence[Any]) -> bool:
        """Whether nothing runs in a call with these values in its arguments."""
        return bool(self.counts) and self.counts.get(self._kind(leaves), 0) >= _ENOUGH

    def note_call(self, leaves: Sequence[Any], runs_before: int) -> None:
        """Says that the compiled model was called, and what `num_runs` was before."""
        if _RUNS.count != runs_before:
            return
        kind = self._kind(leaves)
        if kind in self.counts or len(self.counts) < _MOST:
            self.counts[kind] = self.counts.get(kind, 0) + 1

    def _kind(self, leaves: Sequence[Any]) -> Hashable:
        training = getattr(self.model, "training", None)
        return (torch.is_grad_enabled(), training, *(_kind_of(item) for item in leaves))


def _kind_of(item: Any) -> Hashable:
    if isinstance(item, Tensor):
        return (type(item), tuple(item.shape), item.dtype, item.requires_grad)
    return type(item), item if isinstance(item, int | float | str) else None
