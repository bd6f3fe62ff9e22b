"""Graphs that break things: no edges, one node, self-loops, repeated edges, isolated nodes, one huge degree, equal sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomGraph:
    """A graph as a test passes it: src and dst int64 [E] in the user's order, entries below num_nodes."""

    num_nodes: int
    src: Tensor
    dst: Tensor

    @property
    def num_edges(self) -> int:
        return self.src.numel()

    @property
    def edge_index(self) -> Tensor:
        return torch.stack([self.src, self.dst])


def graph_of(num_nodes: int, edges: list[tuple[int, int]]) -> RandomGraph:
    """A graph from (src, dst) pairs."""
    index = torch.tensor(edges, dtype=torch.int64).view(-1, 2)
    return RandomGraph(num_nodes, index[:, 0].contiguous(), index[:, 1].contiguous())


def random_graph(num_nodes: int, num_edges: int, seed: int) -> RandomGraph:
    """Independent uniform ends: self-loops, repeated edges and isolated nodes happen by themselves."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(max(num_nodes, 1), (2, num_edges if num_nodes else 0), generator=generator)
    return RandomGraph(num_nodes, ends[0].contiguous(), ends[1].contiguous())


def hub_graph(num_nodes: int, num_edges: int, seed: int, *, incoming: bool = True) -> RandomGraph:
    """One node has nearly all incoming (or outgoing) edges: longer than any chunk a kernel splits rows into."""
    plain = random_graph(num_nodes, num_edges, seed)
    ends = plain.dst.clone()
    ends[: num_edges - num_edges // 20] = num_nodes // 2
    shuffled = ends[torch.randperm(num_edges, generator=torch.Generator().manual_seed(seed + 1))]
    return RandomGraph(num_nodes, plain.src, shuffled) if incoming else RandomGraph(num_nodes, shuffled, plain.src)


def sorted_by_dst(graph: RandomGraph) -> RandomGraph:
    order = graph.dst.argsort(stable=True)
    return RandomGraph(graph.num_nodes, graph.src[order], graph.dst[order])


AWKWARD: dict[str, RandomGraph] = {
    "no_nodes": graph_of(0, []),
    "one_node_no_edges": graph_of(1, []),
    "one_node_self_loop": graph_of(1, [(0, 0)]),
    "one_node_many_self_loops": graph_of(1, [(0, 0)] * 5),
    "no_edges": graph_of(4, []),
    "one_edge": graph_of(3, [(2, 1)]),
    "isolated_nodes": graph_of(9, [(1, 3), (3, 1), (1, 5)]),
    "self_loops": graph_of(4, [(0, 0), (1, 2), (1, 1), (3, 3), (2, 1)]),
    "repeated_edges": graph_of(3, [(0, 1), (0, 1), (2, 1), (0, 1), (2, 0), (2, 0)]),
    "as_many_edges_as_nodes": random_graph(7, 7, 1),
    "as_many_edges_as_nodes_identity": graph_of(5, [(i, i) for i in range(5)]),
    "last_rows_empty": graph_of(6, [(5, 0), (4, 0), (3, 1)]),
    "already_sorted": sorted_by_dst(random_graph(20, 90, 2)),
    "reversed": graph_of(6, [(i, 5 - i) for i in range(6)]),
    "random": random_graph(30, 200, 3),
    "huge_in_degree": hub_graph(40, 6000, 4),
    "huge_out_degree": hub_graph(40, 6000, 5, incoming=False),
}
