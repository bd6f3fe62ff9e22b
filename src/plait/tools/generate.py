"""Seeded generators: edges of known degree distribution, features, splits.

Legend: N nodes, E edges, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def features(num_nodes: int, width: int, seed: int) -> Tensor:
    """Standard normal float32 [N, F]."""
    return torch.randn(num_nodes, width, generator=torch.Generator().manual_seed(seed))


def powerlaw_edges(num_nodes: int, num_edges: int, seed: int) -> Tensor:
    """Both ends drawn with weights u^-0.6, u uniform: degrees follow a power law -> int64 [2, E]."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.rand(num_nodes, generator=random) ** -0.6
    src, dst = (torch.multinomial(weight, num_edges, replacement=True, generator=random) for _ in range(2))
    return torch.stack([src, dst])


def rmat_edges(num_nodes: int, num_edges: int, seed: int) -> Tensor:
    """Recursive matrix graph (Chakrabarti et al. 2004) with quadrants 0.57, 0.19, 0.19, 0.05 -> int64 [2, E]."""
    random = torch.Generator().manual_seed(seed)
    scale = max(1, (num_nodes - 1).bit_length())
    parts: list[Tensor] = []
    missing = num_edges
    while missing > 0:
        edges = torch.zeros(2, missing + missing // 2 + 64, dtype=torch.int64)
        for _ in range(scale):
            draw = torch.rand(edges.shape[1], generator=random)
            edges[0] = 2 * edges[0] + (draw >= 0.76)
            edges[1] = 2 * edges[1] + (((draw >= 0.57) & (draw < 0.76)) | (draw >= 0.95))
        # the matrix has 2^scale rows; edges outside the graph are drawn again
        inside = edges[:, (edges < num_nodes).all(0)][:, :missing]
        parts.append(inside)
        missing -= inside.shape[1]
    return torch.cat(parts, 1) if parts else torch.empty(2, 0, dtype=torch.int64)


EDGE_GENERATORS: Mapping[str, Callable[[int, int, int], Tensor]] = {"rmat": rmat_edges, "powerlaw": powerlaw_edges}


def random_split(num_nodes: int, shares: tuple[float, float], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """train, val, test: all nodes in a random order, cut at the two shares; each part has at least one node."""
    order = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(seed))
    num_train, num_val = (max(1, round(share * num_nodes)) for share in shares)
    return order[:num_train], order[num_train : num_train + num_val], order[num_train + num_val :]


def class_split(y: Tensor, train_per_class: int, val_per_class: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """train, val, test: so many nodes of each class, the rest is test; nodes with a negative label are in none."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, val, test = [], [], []
    for label in range(int(y.max()) + 1):
        members = order[y[order] == label]
        cut = train_per_class, train_per_class + val_per_class
        if len(members) < cut[1] + 1:  # a small class is shared out by thirds
            cut = len(members) // 3, 2 * (len(members) // 3)
        train.append(members[: cut[0]])
        val.append(members[cut[0] : cut[1]])
        test.append(members[cut[1] :])
    return torch.cat(train), torch.cat(val), torch.cat(test)
