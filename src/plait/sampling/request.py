"""What a sampler is asked, and what it answers, the same for the native and the reference form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Rules:
    """How neighbours are picked, the same for every batch.

    fanouts: int64 [hops, relations], -1 for all neighbours.  replace: with replacement.  disjoint: every seed has a tree of its
    own.  last: the latest neighbours instead of random ones.  induced: the batch has all edges between its nodes.
    """

    fanouts: Ids
    replace: bool = False
    disjoint: bool = False
    last: bool = False
    induced: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One batch. seeds: int64 ids by node type; times: of every seed, by node type, or None; key: of (seed, epoch, batch)."""

    key: int
    seeds: tuple[Ids, ...]
    times: tuple[Ids | None, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Sampled:
    """One batch as it was sampled, before features.

    nodes: int64 [rows] ids by node type, seeds first, then by hop.  trees: int64 [rows] seed of every node, where disjoint.
    edges: int64 [2, E] rows by relation, ascending dst.  edge_ids: int64 [E].
    nodes_per_hop: by node type, seeds included.  edges_per_hop: by relation; as found, also where the batch is induced.
    """

    nodes: tuple[Tensor, ...]
    trees: tuple[Tensor, ...] | None
    edges: tuple[Tensor, ...]
    edge_ids: tuple[Tensor, ...]
    nodes_per_hop: tuple[tuple[int, ...], ...]
    edges_per_hop: tuple[tuple[int, ...], ...]
