"""Layers on a matrix of neighbours, nbr int [N, K], as users write them in plain PyTorch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

C = 6  # columns of x

Layer = Callable[[Tensor, Tensor], Tensor]


class Mixed(nn.Module):
    """A function of x, nbr and some linear layers."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, nbr: Tensor) -> Tensor:
        return self.function(x, nbr, *self.parts)


def edge_mlp(x: Tensor, nbr: Tensor, mlp: nn.Module) -> Tensor:
    """DGCNN: a layer of (x_i, x_j - x_i), the largest of each column."""
    own = x.unsqueeze(1).expand(-1, nbr.shape[1], -1)
    return mlp(torch.cat([own, x[nbr] - own], -1)).max(dim=1)[0]


def ties(x: Tensor, nbr: Tensor) -> Tensor:
    """Most entries are 0: who gets the gradient?"""
    values = torch.relu(x[nbr] - 1)
    return values.max(1)[0] + values.amax(1) + values.min(1).values


def attention(x: Tensor, nbr: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> Tensor:
    scores = (q(x)[:, None] * k(x)[nbr]).sum(-1) / C**0.5
    return (scores.softmax(1).unsqueeze(-1) * v(x)[nbr]).sum(1)


def einsum_attention(x: Tensor, nbr: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> Tensor:
    scores = torch.einsum("nd,nkd->nk", q(x), k(x)[nbr])
    return torch.einsum("nk,nkd->nd", scores.softmax(-1), v(x)[nbr])


def product_attention(x: Tensor, nbr: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> Tensor:
    scores = q(x).unsqueeze(1) @ k(x)[nbr].transpose(-1, -2) / C**0.5
    return (scores.softmax(-1) @ v(x)[nbr]).squeeze(1)


def reversed_products(x: Tensor, nbr: Tensor, k: nn.Module) -> Tensor:
    scores = (k(x)[nbr] @ x.unsqueeze(2)).squeeze(2).tanh()
    return (x[nbr].transpose(1, 2) @ scores.unsqueeze(2)).squeeze(2)


def head_attention(x: Tensor, nbr: Tensor, q: nn.Module, k: nn.Module) -> Tensor:
    heads = k(x).view(-1, 2, C // 2)[nbr]
    scores = (q(x).view(-1, 1, 2, C // 2) * heads).sum(-1).log_softmax(1).exp()
    return (scores.unsqueeze(-1) * heads).sum(1).flatten(1)


def vector_attention(x: Tensor, nbr: Tensor, q: nn.Module, mlp: nn.Module) -> Tensor:
    """Point Transformer: weights per column, from an MLP of differences."""
    place = torch.tanh(x[:, None] - x[nbr])
    weights = torch.softmax(mlp(torch.cat([place, q(x)[nbr]], -1)), 1)
    return (weights * (x[nbr] + place)).sum(1)


def masked_mean(x: Tensor, nbr: Tensor) -> Tensor:
    """Rows with fewer neighbours are filled up with a number that is no row."""
    is_there = nbr >= 0
    total = (x[nbr.clamp(min=0)] * is_there.unsqueeze(-1)).sum(1)
    return total / is_there.sum(1, keepdim=True).clamp(min=1)


def normed(x: Tensor, nbr: Tensor, norm: nn.Module) -> Tensor:
    h = norm(torch.relu(x[nbr] - x[:, None]))
    return torch.cat([h.mean(1), h.amin(1), h.sum((1, 2)).unsqueeze(1)], 1)


def by_column(x: Tensor, nbr: Tensor) -> Tensor:
    """A weight for the nearest neighbour, another for the second."""
    weight = torch.linspace(0, 1, nbr.shape[1]).unsqueeze(1)
    return (x[nbr] * weight).sum(1)


def flattened(x: Tensor, nbr: Tensor) -> Tensor:
    rows = x.index_select(0, nbr.reshape(-1)).view(nbr.shape[0], nbr.shape[1], -1)
    return rows.transpose(1, 2).transpose(1, 2).sum(1) / nbr.shape[1]


def twice(x: Tensor, nbr: Tensor) -> Tensor:
    h = torch.tanh(x[nbr].mean(1))
    return h[nbr].max(1)[0] + x


def with_weights(x: Tensor, nbr: Tensor) -> Tensor:
    """The weights are a result too: what is computed per entry is read by what is no reduction."""
    weights = x[nbr].sum(-1).softmax(1)
    return torch.cat([(weights.unsqueeze(-1) * x[nbr]).sum(1), weights.flip(1)], 1)


def clouds(x: Tensor, nbr: Tensor, mlp: nn.Module) -> Tensor:
    """Two point clouds of equal size, [B, N, K]."""
    size, count = x.shape[0] // 2, nbr.shape[1]
    index = nbr[: 2 * size].view(2, size, count) % size + torch.arange(2).view(-1, 1, 1) * size
    points = x[: 2 * size].view(2, size, C)
    near = x[: 2 * size][index.view(-1)].view(2, size, count, C)
    own = points.unsqueeze(2).repeat(1, 1, count, 1)
    return mlp(torch.cat([near - own, own], 3)).max(2)[0]


def layers(seed: int = 0) -> dict[str, nn.Module]:
    """Each made anew, with weights drawn from the seed."""
    torch.manual_seed(seed)

    def linear() -> nn.Module:
        return nn.Linear(C, C)

    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(2 * C, 8), nn.ReLU(), nn.Linear(8, C))

    return {
        "mean": Mixed(lambda x, nbr: x[nbr].mean(1)),
        "edge MLP": Mixed(edge_mlp, mlp()),
        "edge layer": Mixed(edge_mlp, nn.Linear(2 * C, C)),
        "ties": Mixed(ties),
        "attention": Mixed(attention, linear(), linear(), linear()),
        "attention by einsum": Mixed(einsum_attention, linear(), linear(), linear()),
        "attention by products": Mixed(product_attention, linear(), linear(), linear()),
        "products from the right": Mixed(reversed_products, linear()),
        "attention of heads": Mixed(head_attention, linear(), linear()),
        "attention of columns": Mixed(vector_attention, linear(), mlp()),
        "masked mean": Mixed(masked_mean),
        "norm": Mixed(normed, nn.LayerNorm(C)),
        "weights by column": Mixed(by_column),
        "flat index": Mixed(flattened),
        "twice": Mixed(twice),
        "weights returned": Mixed(with_weights),
        "clouds": Mixed(clouds, mlp()),
    }


# --- random functions -------------------------------------------------------------------------------------------------------

# of an entry value [N, K, C], another, a node value [N, C], a weight [C, C]: an entry value
ENTRY_STEPS: tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda a, b, own, weight: a * torch.tanh(own).unsqueeze(1),
    lambda a, b, own, weight: a - b,
    lambda a, b, own, weight: torch.relu(a),
    lambda a, b, own, weight: a @ weight / C,
    lambda a, b, own, weight: torch.cat([a, b], -1)[..., 2 : 2 + C],
    lambda a, b, own, weight: a.softmax(1),
    lambda a, b, own, weight: a.softmax(-1) * b,
    lambda a, b, own, weight: a * (a * b).sum(-1, keepdim=True).tanh(),
    lambda a, b, own, weight: torch.where(b > 0, a, 0.5 * a),
    lambda a, b, own, weight: a - a.mean(1, keepdim=True),
    lambda a, b, own, weight: a.view(*a.shape[:2], 2, C // 2).transpose(2, 3).reshape(a.shape),
    lambda a, b, own, weight: a * torch.arange(a.shape[1]).unsqueeze(1).to(a.dtype),
    lambda a, b, own, weight: torch.tanh(own)[:, None].expand_as(a) + b,
)
# of an entry value and a node value: a node value
NODE_STEPS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda a, own: a.sum(1),
    lambda a, own: a.mean(dim=-2),
    lambda a, own: torch.tanh(a).amax(1),
    lambda a, own: a.max(1)[0],
    lambda a, own: a.min(dim=1).values,
    lambda a, own: a.sum((1, 2)).tanh().unsqueeze(1) * own,
    lambda a, own: torch.einsum("nk,nkd->nd", torch.einsum("nd,nkd->nk", own, a).softmax(1), a),
    lambda a, own: own,
)


def random_layer(seed: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A function of x [N, C], nbr [N, K], features of entries [N, K, C], a weight [C, C]."""
    draw, num_entries, num_nodes = random.Random(seed), 2, 1
    plan: list[tuple[Any, int | None, int]] = []
    for remaining in reversed(range(draw.randint(3, 7))):
        own = draw.randrange(num_nodes)
        if remaining and draw.random() < 0.65:
            plan.append((draw.choice(ENTRY_STEPS), draw.randrange(num_entries), own))
            num_entries += 1
        else:
            plan.append((draw.choice(NODE_STEPS), None, own))
            num_nodes += 1

    def layer(x: Tensor, nbr: Tensor, features: Tensor, weight: Tensor) -> Tensor:
        entries, nodes = [features, x[nbr]], [x]
        for step, other, own in plan:
            if other is None:
                nodes.append(step(entries[-1], nodes[own]))
            else:
                entries.append(step(entries[-1], entries[other], nodes[own], weight))
        return torch.cat(nodes, -1)  # with x, beside whose gradient one that is 0 may be rounding

    return layer
