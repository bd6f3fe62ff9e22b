"""Negative edges: nodes drawn for the ends of pairs that are, most likely, no edges.

As in PyG, what is drawn may happen to be an edge: on sparse graphs that is rare, and looking every pair up is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.errors import OptionError
from plait.sampling import random
from plait.sampling.request import Ids

MODES = ("binary", "triplet")


@dataclass(frozen=True, eq=False)
class NegativeSampling:
    """mode "binary": pairs of drawn nodes, labelled 0.  "triplet": drawn dst nodes for every src.

    amount: negatives for every positive.  src_weight, dst_weight: [nodes], how likely each is drawn; None is uniform.
    """

    mode: str
    amount: float = 1
    src_weight: Tensor | None = None
    dst_weight: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"neg_sampling: expected {' or '.join(map(repr, MODES))}, got {self.mode!r}")
        if not self.amount > 0:
            raise OptionError(f"neg_sampling: expected a positive amount, got {self.amount}")
        if self.is_triplet and self.amount != math.ceil(self.amount):
            raise OptionError(f"neg_sampling: triplets need a whole amount, got {self.amount}")

    @property
    def is_triplet(self) -> bool:
        return self.mode == "triplet"

    def num_negatives(self, num_positives: int) -> int:
        return math.ceil(num_positives * self.amount)

    @staticmethod
    def cast(given: Any) -> NegativeSampling | None:
        """From PyG's NegativeSampling, a name, a dictionary or a tuple of arguments."""
        if given is None or isinstance(given, NegativeSampling):
            return given
        if isinstance(given, str):
            return NegativeSampling(given)
        if isinstance(given, dict):
            return NegativeSampling(**given)
        if isinstance(given, (tuple, list)):
            return NegativeSampling(*given)
        mode = getattr(given.mode, "value", given.mode)
        return NegativeSampling(mode, given.amount, given.src_weight, given.dst_weight)


class NodeDraw:
    """Draws nodes of one type in proportion to weights, none later than a time."""

    def __init__(self, num_nodes: int, weight: Tensor | None, time: Ids | None, what: str) -> None:
        if num_nodes == 0:
            raise OptionError(f"neg_sampling: there are no nodes to draw a {what} from")
        if weight is not None and weight.numel() != num_nodes:
            raise OptionError(f"neg_sampling: {what}_weight has {weight.numel()} entries for {num_nodes} nodes")
        self._num_nodes = num_nodes
        # earliest first: the nodes that a time allows are then a beginning of the order
        self._order = None if time is None else np.argsort(time, kind="stable")
        self._time = None if time is None or self._order is None else time[self._order]
        self._cumulative: NDArray[np.float64] | None = None
        if weight is not None:
            weights = weight.double().numpy()
            self._cumulative = np.cumsum(weights if self._order is None else weights[self._order])

    def draw(self, key: int, latest: Ids | None, count: int) -> Tensor:
        """`count` nodes, int64; the i-th is not later than latest[i], or is the earliest there is where all are later."""
        words = random.draw(random.words(key), np.arange(count, dtype=np.uint64))
        allowed = np.full(count, self._num_nodes)
        if self._time is not None and latest is not None:
            allowed = np.maximum(np.searchsorted(self._time, latest, side="right"), 1)
        if self._cumulative is None:
            places = random.below(words, allowed.astype(np.uint64))
        else:
            target = random.unit(words) * self._cumulative[allowed - 1]
            places = np.minimum(np.searchsorted(self._cumulative, target, side="right"), allowed - 1)
        return torch.from_numpy(places if self._order is None else self._order[places])
