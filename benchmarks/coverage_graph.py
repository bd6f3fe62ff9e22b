"""The graph that a case of `coverage.py` is about, and what layers are called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

GRAPH_NODES = 25  # nodes per graph, where the graph is a batch of small ones
SCALERS = ["identity", "amplification", "attenuation"]


@dataclass
class Graph:
    """x float32 [N, F] and edges [2, E], with what some layers want besides. extra_counts: further numbers of edges."""

    x: Tensor
    edge_index: Tensor
    generator: torch.Generator
    extra_counts: set[int] = field(default_factory=set)

    @property
    def num_nodes(self) -> int:
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    @property
    def width(self) -> int:
        return self.x.shape[1]

    @property
    def num_graphs(self) -> int:
        return -(-self.num_nodes // GRAPH_NODES)

    def edge_weight(self) -> Tensor:
        return torch.rand(self.num_edges, generator=self.generator)

    def edge_features(self, width: int) -> Tensor:
        return torch.randn(self.num_edges, width, generator=self.generator)

    def positions(self, width: int = 3) -> Tensor:
        return torch.rand(self.num_nodes, width, generator=self.generator)

    def types(self, count: int, of: str = "edge") -> Tensor:
        size = self.num_edges if of == "edge" else self.num_nodes
        types = torch.randint(count, (size,), generator=self.generator)
        if of == "edge":
            self.extra_counts.update(torch.bincount(types, minlength=count).tolist())
        return types

    def batch(self) -> Tensor:
        """Node to graph, sorted, about GRAPH_NODES nodes each; no graph is empty."""
        return torch.arange(self.num_nodes) // GRAPH_NODES

    def local_edges(self) -> Tensor:
        """The same number of edges, none of which leaves its graph of `batch()`."""
        src, dst = self.edge_index
        return torch.stack([(dst // GRAPH_NODES * GRAPH_NODES + src % GRAPH_NODES).clamp(max=self.num_nodes - 1), dst])

    def degree_histogram(self) -> Tensor:
        return torch.bincount(torch.bincount(self.edge_index[1], minlength=self.num_nodes))

    def parts(self) -> tuple[dict[str, Tensor], dict[tuple[str, str, str], Tensor]]:
        """The graph typed: node types a and b, three kinds of edges between them."""
        half = self.num_nodes // 2
        xs = {"a": self.x[:half].clone(), "b": self.x[half : 2 * half].clone()}
        src, dst = self.edge_index % half
        kinds = torch.arange(self.num_edges) % 3
        names = (("a", "to", "b"), ("b", "back", "a"), ("a", "near", "a"))
        edges = {name: torch.stack([src[kinds == kind], dst[kinds == kind]]) for kind, name in enumerate(names)}
        self.extra_counts.update(item.shape[1] for item in edges.values())
        self.extra_counts.update(item.shape[1] + half for item in edges.values())
        return xs, edges


@dataclass(frozen=True)
class Call:
    """A module and what it is called with."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


Case = Callable[[int, Graph], Call]


def mlp(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, b))


def conv(make: Callable[[int, Graph], nn.Module], **extra: Callable[[Graph], Any]) -> Case:
    """A layer called with x, edge_index and what `extra` makes of the graph, by name."""
    return lambda f, g: Call(make(f, g), (g.x, g.edge_index), {name: build(g) for name, build in extra.items()})


def weights(g: Graph) -> Tensor:
    return g.edge_weight()


def edges(width: int) -> Callable[[Graph], Tensor]:
    return lambda g: g.edge_features(width)


def relations(g: Graph) -> Tensor:
    return g.types(4)
