"""The sampler in NumPy: what sampler.cpp does, in the order of its steps, and what runs where there is no compiler.

Uniform picks are vectorised over the nodes of a hop; weighted ones go node by node, which is slow on large batches.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.sampling import random
from plait.sampling.request import Ids, Request, Rules, Sampled
from plait.sampling.topology import Relation, Topology


class ReferenceSampler:
    """Samples batches of one graph; the same result as NativeSampler, bit for bit."""

    def __init__(self, topology: Topology, rules: Rules) -> None:
        self.topology = topology
        self.rules = rules

    def sample(self, request: Request) -> Sampled:
        """One batch."""
        return _Batch(self.topology, self.rules, request).run()

    def close(self) -> None:
        """Nothing to release."""


class _Batch:
    """The growing node and edge lists of one batch."""

    def __init__(self, topology: Topology, rules: Rules, request: Request) -> None:
        self.topology, self.rules, self.request = topology, rules, request
        self.disjoint = rules.disjoint
        self.nodes: list[Ids] = [np.asarray(seeds, np.int64) for seeds in request.seeds]
        self.trees: list[Ids] = []
        first = 0
        for seeds in request.seeds:
            self.trees.append(np.arange(first, first + len(seeds)))
            first += len(seeds)
        given = [times for times in request.times if times is not None]
        self.tree_times: Ids | None = np.concatenate(given) if given else None
        self.edges: list[list[tuple[Ids, Ids, Ids]]] = [[] for _ in topology.relations]  # (src, dst, positions)

    def run(self) -> Sampled:
        hops = len(self.rules.fanouts)
        begin = [0] * len(self.nodes)
        end = [len(ids) for ids in self.nodes]
        nodes_per_hop = [[count] for count in end]
        edges_per_hop: list[list[int]] = [[] for _ in self.topology.relations]
        for hop in range(hops):
            for number, relation in enumerate(self.topology.relations):
                rows = np.arange(begin[relation.dst_type], end[relation.dst_type])
                edges_per_hop[number].append(self.expand(number, relation, int(self.rules.fanouts[hop, number]), rows))
            for node_type, ids in enumerate(self.nodes):
                begin[node_type], end[node_type] = end[node_type], len(ids)
                nodes_per_hop[node_type].append(end[node_type] - begin[node_type])
        if self.rules.induced:
            self.edges = [[self.induce(relation)] for relation in self.topology.relations]
        return self.result(nodes_per_hop, edges_per_hop)

    def expand(self, number: int, relation: Relation, fanout: int, rows: Ids) -> int:
        """Pick neighbours of these rows, and append the edges and the nodes they lead to; the number of edges."""
        begin, count = self.valid(relation, rows)
        keys = random.draw(random.draw(random.words(self.request.key), random.words(number)), rows.astype(np.uint64))
        if fanout < 0:
            takes_all = np.ones(len(rows), bool)
        elif self.rules.replace and not self.rules.last:
            takes_all = count == 0
        else:
            takes_all = count <= fanout
        everything = np.flatnonzero(takes_all)
        partly = np.flatnonzero(~takes_all)
        picked = self.pick(relation, keys[partly], begin[partly], count[partly], max(fanout, 0))
        # both parts together, by row; inside a row as they were picked
        owner = np.concatenate([np.repeat(everything, count[everything]), np.repeat(partly, picked.shape[1])])
        offsets = np.concatenate([_ranges(count[everything]), picked.ravel()])
        order = np.argsort(owner, kind="stable")
        owner, offsets = owner[order], offsets[order]
        self.append(number, relation, rows[owner], begin[owner] + offsets)
        return len(owner)

    def valid(self, relation: Relation, rows: Ids) -> tuple[Ids, Ids]:
        """For every row, where its edges begin and how many are not later than its seed."""
        ids = self.nodes[relation.dst_type][rows]
        begin, end = relation.indptr[ids], relation.indptr[ids + 1]
        if relation.time is None or self.tree_times is None:
            return begin, end - begin
        limits = self.tree_times[self.trees[relation.dst_type][rows]]
        low, high = begin.copy(), end.copy()
        while (low < high).any():  # bisection, in all rows at once
            middle = (low + high) // 2
            open_ = low < high
            early = open_ & (relation.time[np.where(open_, middle, 0)] <= limits)
            low = np.where(early, middle + 1, low)
            high = np.where(open_ & ~early, middle, high)
        return begin, low - begin

    def pick(self, relation: Relation, keys: random.Words, begin: Ids, n: Ids, k: int) -> Ids:
        """k of n for every row, as offsets [rows, k]."""
        if self.rules.last:
            return n[:, None] - k + np.arange(k)
        if relation.weight is not None and relation.cumulative is not None:
            one = _weighted_with if self.rules.replace else _weighted_without
            picks = [
                one(relation.weight[b : b + c], relation.cumulative[b : b + c], key, k)
                for b, c, key in zip(begin.tolist(), n.tolist(), keys, strict=True)
            ]
            return np.array(picks, np.int64).reshape(len(keys), k)
        if self.rules.replace:
            return random.below(random.draw(keys[:, None], np.arange(k, dtype=np.uint64)), n.astype(np.uint64)[:, None])
        return _floyd(keys, n, k)

    def append(self, number: int, relation: Relation, dst: Ids, positions: Ids) -> None:
        """Number the nodes at the other end, new ones in the order in which they are met, and keep the edges."""
        ids = relation.indices[positions].astype(np.int64)
        trees = self.trees[relation.dst_type][dst] if self.disjoint else np.zeros(len(ids), np.int64)
        known = len(self.nodes[relation.src_type])
        everyone = np.concatenate([self.keys(relation.src_type), trees << 32 | ids])
        _, first, inverse = np.unique(everyone, return_index=True, return_inverse=True)
        fresh = np.sort(first[first >= known])  # where each new node is met first
        row_of = first.copy()
        row_of[first >= known] = known + np.searchsorted(fresh, first[first >= known])
        self.edges[number].append((row_of[inverse[known:]], dst, positions))
        self.nodes[relation.src_type] = np.concatenate([self.nodes[relation.src_type], ids[fresh - known]])
        if self.disjoint:
            self.trees[relation.src_type] = np.concatenate([self.trees[relation.src_type], trees[fresh - known]])

    def keys(self, node_type: int) -> Ids:
        """What tells the nodes of a batch apart: the id, and the tree where trees are disjoint."""
        return self.trees[node_type] << 32 | self.nodes[node_type] if self.disjoint else self.nodes[node_type]

    def induce(self, relation: Relation) -> tuple[Ids, Ids, Ids]:
        """All edges between nodes of the batch that a seed's time allows."""
        rows = np.arange(len(self.nodes[relation.dst_type]))
        begin, count = self.valid(relation, rows)
        dst, positions = np.repeat(rows, count), np.repeat(begin, count) + _ranges(count)
        ids = relation.indices[positions].astype(np.int64)
        wanted = self.trees[relation.dst_type][dst] << 32 | ids if self.disjoint else ids
        known, rows_of = np.unique(self.keys(relation.src_type), return_index=True)
        place = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
        inside = known[place] == wanted if len(known) else np.zeros(len(wanted), bool)
        return rows_of[place[inside]], dst[inside], positions[inside]

    def result(self, nodes_per_hop: list[list[int]], edges_per_hop: list[list[int]]) -> Sampled:
        edges, edge_ids = [], []
        for relation, parts in zip(self.topology.relations, self.edges, strict=True):
            src, dst, positions = (_joined([part[i] for part in parts]) for i in range(3))
            edges.append(torch.from_numpy(np.stack([src, dst])))
            edge_ids.append(_tensor(positions if relation.edge_id is None else relation.edge_id[positions]))
        return Sampled(
            nodes=tuple(_tensor(ids) for ids in self.nodes),
            trees=tuple(_tensor(trees) for trees in self.trees) if self.disjoint else None,
            edges=tuple(edges),
            edge_ids=tuple(edge_ids),
            nodes_per_hop=tuple(tuple(counts) for counts in nodes_per_hop),
            edges_per_hop=tuple(tuple(counts) for counts in edges_per_hop),
        )


def _tensor(values: NDArray[np.int64] | NDArray[np.int32]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


def _joined(parts: list[Ids]) -> Ids:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _ranges(counts: Ids) -> Ids:
    """0 to count - 1 for every count, one after the other.

    >>> _ranges(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _floyd(keys: random.Words, n: Ids, k: int) -> Ids:
    """k of n without replacement for every row, all sets equally likely (R. Floyd): [rows, k]."""
    picks = np.empty((len(keys), k), np.int64)
    for t in range(k):
        j = n - k + t
        drawn = random.below(random.draw(keys, random.words(t)), (j + 1).astype(np.uint64))
        taken = (picks[:, :t] == drawn[:, None]).any(axis=1)
        picks[:, t] = np.where(taken, j, drawn)
    return picks


def _unit(key: np.uint64, counter: int) -> float:
    return float(random.unit(random.draw(random.words(key), random.words(counter)))[0])


def _weighted_with(weight: NDArray[np.float64], cumulative: NDArray[np.float64], key: np.uint64, k: int) -> list[int]:
    picks: list[int] = []
    counter = 0
    while len(picks) < k:
        pick = int(np.searchsorted(cumulative, _unit(key, counter) * cumulative[-1], side="right"))
        counter += 1
        if pick < len(weight):  # rounding can reach the end: drawn again then
            picks.append(pick)
    return picks


def _weighted_without(weight: NDArray[np.float64], cumulative: NDArray[np.float64], key: np.uint64, k: int) -> list[int]:
    """One after the other, each in proportion to its weight among those that are left."""
    n, total, taken = len(weight), float(cumulative[-1]), 0.0
    picks: list[int] = []
    for t in range(k):
        u = _unit(key, t)
        left = total - taken
        pick = n
        if left >= total * 2.0**-20:
            v = u * left
            for p in sorted(picks):  # step over what is taken
                if v < (cumulative[p - 1] if p else 0.0):
                    break
                v += weight[p]
            pick = int(np.searchsorted(cumulative, v, side="right"))
        if pick == n or pick in picks:  # no digits left, or rounding hit a taken one
            pick = _scan_left(weight, set(picks), u)
        picks.append(pick)
        taken += float(weight[pick])
    return picks


def _scan_left(weight: NDArray[np.float64], taken: set[int], u: float) -> int:
    """Looks through the weights that are left, one by one: exact however small those are beside the taken ones."""
    free = [i for i in range(len(weight)) if i not in taken]
    left = 0.0
    for i in free:
        left += float(weight[i])
    v, total = u * left, 0.0
    for i in free:
        total += float(weight[i])
        if total > v:
            return i
    return free[-1]
