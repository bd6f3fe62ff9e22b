"""Three layers that no paper has, written after the kernels: nothing in the compiler can know them.

docs/made-up-layers.md shows what becomes of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.utils import scatter, softmax

from tests.awkward import RandomGraph
from tests.models import IN_CHANNELS, OUT_CHANNELS, Case, Inputs

EDGE_DIM = 4
NUM_RELATIONS = 2


class EchoConv(nn.Module):
    """Sent, heard, and answered: a message MLP with layer norm is reduced at the receivers; what a receiver heard goes back
    along the edge, gated by how far the message lay from it; the senders take the largest and the mean of the answers."""

    def __init__(self, channels: int, width: int, out: int) -> None:
        super().__init__()
        self.message = nn.Sequential(
            nn.Linear(2 * channels + EDGE_DIM, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width)
        )
        self.gate = nn.Linear(width, 1)
        self.out = nn.Linear(3 * width + channels, out)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        src, dst = edge_index
        num_nodes = x.size(0)
        message = self.message(torch.cat([x[src], x[dst] * x[src], edge_attr], -1))
        heard = scatter(message, dst, 0, num_nodes, "mean")
        surprise = message - heard[dst]
        answer = torch.tanh(heard[dst]) * torch.sigmoid(self.gate(surprise.square()))
        loudest = scatter(answer, src, 0, num_nodes, "max")
        usual = scatter(answer, src, 0, num_nodes, "mean")
        return self.out(torch.cat([x, heard, loudest, usual], -1))


class RivalryConv(nn.Module):
    """Gated attention with a sign over two relations: friends attract and rivals repel. The weights of each relation sum to one
    in a row of their own, and the row's balance between the two decides how much either counts."""

    def __init__(self, channels: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.value = nn.Linear(channels, heads * width)
        self.query, self.key = nn.Linear(channels, heads * width), nn.Linear(channels, heads * width)
        self.tone = nn.Parameter(torch.randn(NUM_RELATIONS, heads))

    def forward(self, x: Tensor, edge_index: Tensor, relation: Tensor) -> Tensor:
        src, dst = edge_index
        num_nodes, shape = x.size(0), (-1, self.heads, self.width)
        value = self.value(x).view(shape)
        match = (self.query(x).view(shape)[dst] * self.key(x).view(shape)[src]).sum(-1) / self.width**0.5
        score = match + self.tone[relation]
        is_rival = (relation == 1).unsqueeze(-1)
        parts = []
        for mask, sign in ((~is_rival, 1.0), (is_rival, -1.0)):
            strength = softmax(score.masked_fill(~mask, -30.0), dst, num_nodes=num_nodes) * mask
            parts.append((sign, strength, scatter(torch.sigmoid(score) * mask, dst, 0, num_nodes, "sum")))
        total = parts[0][2] + parts[1][2] + 1e-6
        weight = sum(sign * strength * (balance / total)[dst] for sign, strength, balance in parts)
        out = scatter(value[src] * weight.unsqueeze(-1), dst, 0, num_nodes, "sum")  # type: ignore[union-attr]
        return (out * torch.sigmoid(value)).flatten(1)


class TransportConv(nn.Module):
    """Every edge carries its sender's row in a frame of its own: the row plus a correction of low rank, read from what the edge
    and both ends know, h + U (s(e) * (V h)), and then compared with the receiver's; rows are averaged by how well they fit."""

    def __init__(self, channels: int, rank: int, out: int) -> None:
        super().__init__()
        self.lin = nn.Linear(channels, out)
        self.down, self.up = nn.Linear(out, rank, bias=False), nn.Linear(rank, out, bias=False)
        self.scale = nn.Sequential(nn.Linear(2 * channels + EDGE_DIM, rank), nn.Tanh(), nn.Linear(rank, rank))
        self.sharpness = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        num_nodes = x.size(0)
        h = self.lin(x)
        scale = self.scale(torch.cat([x[src], x[dst], edge_attr], -1))
        carried = h[src] + self.up(scale * self.down(h)[src])
        misfit = (carried - h[dst]).square().mean(-1, keepdim=True)
        weight = torch.exp(-F.softplus(self.sharpness) * misfit)
        mean = scatter(weight * carried, dst, 0, num_nodes, "sum") / (scatter(weight, dst, 0, num_nodes, "sum") + 1e-3)
        tension = scatter(misfit, src, 0, num_nodes, "sum")
        return F.elu(mean) + h, tension


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def with_edge_features(graph: RandomGraph, seed: int) -> Inputs:
    """x [N, F], edge_index [2, E], edge_attr [E, EDGE_DIM]."""
    return _draw(graph.num_nodes, IN_CHANNELS, seed=seed), graph.edge_index, _draw(graph.num_edges, EDGE_DIM, seed=seed + 1)


def with_relations(graph: RandomGraph, seed: int) -> Inputs:
    """x [N, F], edge_index [2, E], relation [E]."""
    relation = torch.randint(NUM_RELATIONS, (graph.num_edges,), generator=torch.Generator().manual_seed(seed + 1))
    return _draw(graph.num_nodes, IN_CHANNELS, seed=seed), graph.edge_index, relation


MADE_UP_LAYERS: dict[str, Case] = {
    "EchoConv": Case(lambda: EchoConv(IN_CHANNELS, 16, OUT_CHANNELS), with_edge_features),
    "RivalryConv": Case(lambda: RivalryConv(IN_CHANNELS, 2, OUT_CHANNELS), with_relations),
    "TransportConv": Case(lambda: TransportConv(IN_CHANNELS, 4, 16), with_edge_features),
}
