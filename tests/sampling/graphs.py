"""Random graphs to sample from, small and awkward: repeated edges, self-loops, isolated nodes, one node of huge degree."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from plait.sampling.request import Request, Rules
from plait.sampling.topology import Relation, Topology, build_relation


def edges_between(num_src: int, num_dst: int, num_edges: int, generator: torch.Generator) -> Tensor:
    """int64 [2, E]; a quarter of the edges points to node 0."""
    src = torch.randint(num_src, (num_edges,), generator=generator)
    dst = torch.randint(num_dst, (num_edges,), generator=generator)
    dst[torch.rand(num_edges, generator=generator) < 0.25] = 0
    return torch.stack([src, dst])


def one_type(
    num_nodes: int, num_edges: int, generator: torch.Generator, *, timed: bool = False, weighted: bool = False
) -> Topology:
    """A graph of one node type and one edge type."""
    return Topology((num_nodes,), (relation((num_nodes, num_nodes), (0, 0), num_edges, generator, timed, weighted),))


def two_types(generator: torch.Generator, *, timed: bool = False, weighted: bool = False) -> Topology:
    """Thirty users and twenty items; edges in both directions, and from item to item."""
    sizes = (30, 20)
    ends = ((0, 1), (1, 0), (1, 1))
    return Topology(sizes, tuple(relation(sizes, pair, 150, generator, timed, weighted) for pair in ends))


def relation(
    sizes: tuple[int, int], ends: tuple[int, int], num_edges: int, generator: torch.Generator, timed: bool, weighted: bool
) -> Relation:
    src, dst = ends
    time = torch.randint(20, (num_edges,), generator=generator) if timed else None
    weight = torch.rand(num_edges, generator=generator).round(decimals=1) if weighted else None
    edge_index = edges_between(sizes[src], sizes[dst], num_edges, generator)
    return build_relation(edge_index, (src, sizes[src]), (dst, sizes[dst]), edge_time=time, weight=weight)


def rules(topology: Topology, fanouts: list[int], **options: bool) -> Rules:
    """The same fan-outs for every relation."""
    return Rules(np.repeat(np.array(fanouts, np.int64)[:, None], len(topology.relations), axis=1), **options)


def request(topology: Topology, num_seeds: int, *, key: int = 1, timed: bool = False) -> Request:
    """Seeds of every type, the first of them twice."""
    generator = np.random.default_rng(key)
    seeds = tuple(generator.integers(0, size, num_seeds) for size in topology.num_nodes)
    for ids in seeds:
        ids[-1] = ids[0]
    times = tuple(generator.integers(0, 20, num_seeds) if timed else None for _ in seeds)
    return Request(key, seeds, times)
