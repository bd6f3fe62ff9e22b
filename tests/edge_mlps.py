"""Layers whose messages are made by products of edge values: the cases of tile kernels, in the form of `tests.models`."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from torch import Tensor, nn

from tests.awkward import RandomGraph
from tests.models import IN_CHANNELS, OUT_CHANNELS, Case, Inputs, node_features

C = OUT_CHANNELS
EDGE_DIM = 3


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Sequential:
    """Linear layers with an activation (and a norm before it) between them."""
    parts: list[nn.Module] = []
    for number, (a, b) in enumerate(itertools.pairwise(widths)):
        parts.append(nn.Linear(a, b))
        if number < len(widths) - 2:
            parts += [nn.LayerNorm(b), activation()] if norm else [activation()]
    return nn.Sequential(*parts)


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def with_edge_features(graph: RandomGraph, seed: int) -> Inputs:
    """x [N, F], edge_index [2, E], edge_attr [E, EDGE_DIM]; both floats ask for their gradient."""
    return _draw(graph.num_nodes, IN_CHANNELS, seed=seed), graph.edge_index, _draw(graph.num_edges, EDGE_DIM, seed=seed + 1)


def with_positions(graph: RandomGraph, seed: int) -> Inputs:
    """x [N, F], edge_index [2, E], pos [N, 3]."""
    return _draw(graph.num_nodes, IN_CHANNELS, seed=seed), graph.edge_index, _draw(graph.num_nodes, 3, seed=seed + 1)


def sum_over(values: Tensor, index: Tensor, num_rows: int) -> Tensor:
    return values.new_zeros(num_rows, *values.shape[1:]).index_add(0, index, values)


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = pyg.PointNetConv(mlp(IN_CHANNELS + 3, 10, C), mlp(C, C), add_self_loops=False)

    def forward(self, x: Tensor, edge_index: Tensor, pos: Tensor) -> Tensor:
        result: Tensor = self.layer(x, pos, edge_index)
        return result


class ContinuousFilter(nn.Module):
    """SchNet: messages are scaled by a function of the distance, written out in radial functions."""

    def __init__(self, num_radial: int = 7, width: int = 10) -> None:
        super().__init__()
        self.filter = nn.Sequential(nn.Linear(num_radial, width), nn.Softplus(), nn.Linear(width, width))
        self.before, self.after = nn.Linear(IN_CHANNELS, width, bias=False), nn.Linear(width, C)
        self.register_buffer("centres", torch.linspace(0.0, 3.0, num_radial))

    def forward(self, x: Tensor, edge_index: Tensor, pos: Tensor) -> Tensor:
        src, dst = edge_index
        distance = ((pos[src] - pos[dst]).pow(2).sum(-1) + 1e-6).sqrt()
        radial = torch.exp(-2.0 * (distance.unsqueeze(-1) - self.centres).pow(2))
        cutoff = 0.5 * (torch.cos(distance * 0.3) + 1.0)
        weight = self.filter(radial) * cutoff.unsqueeze(-1)
        result: Tensor = self.after(sum_over(self.before(x)[src] * weight, dst, x.shape[0]))
        return result


class Equivariant(nn.Module):
    """EGNN: messages of both ends and their distance; positions move along the edges."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.message = nn.Sequential(*mlp(2 * IN_CHANNELS + 1, width, width, activation=nn.SiLU), nn.SiLU())
        self.move = mlp(width, width, 1, activation=nn.SiLU)
        self.update = mlp(IN_CHANNELS + width, width, C, activation=nn.SiLU)

    def forward(self, x: Tensor, edge_index: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        num_nodes = x.shape[0]
        along = pos[dst] - pos[src]
        distance = along.pow(2).sum(-1, keepdim=True)
        message = self.message(torch.cat([x[dst], x[src], distance], -1))
        moved = pos + sum_over(along * self.move(message), dst, num_nodes) / num_nodes
        return self.update(torch.cat([x, sum_over(message, dst, num_nodes)], -1)), moved


class NormedMessages(nn.Module):
    """No paper has it: a deep message function with norms, gated by its own mean."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.message = mlp(2 * IN_CHANNELS + EDGE_DIM, width, width, C, activation=nn.GELU, norm=True)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        src, dst = edge_index
        message = self.message(torch.cat([x[src], x[dst] * x[src], edge_attr], -1))
        gate = torch.sigmoid(message.mean(-1, keepdim=True))
        return sum_over(gate * torch.tanh(message), dst, x.shape[0])


class EdgeUpdate(nn.Module):
    """New edge features from both ends and the old ones, which the user gets, and their sums."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp(2 * IN_CHANNELS + EDGE_DIM, 10, C)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        edges = F.relu(self.layer(torch.cat([x[src], x[dst], edge_attr], -1)))
        return sum_over(edges, dst, x.shape[0]), edges


class Decoder(nn.Module):
    """A number per edge from both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp(2 * IN_CHANNELS, 10, 10, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        result: Tensor = torch.sigmoid(self.layer(torch.cat([x[src], x[dst]], -1)))
        return result


class WithAttributes(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        result: Tensor = self.layer(x, edge_index, edge_attr=edge_attr)
        return result


N = IN_CHANNELS
EDGE_MLPS: dict[str, Case] = {
    "EdgeConv_mlp_max": Case(lambda: pyg.EdgeConv(mlp(2 * N, 10, C), aggr="max"), node_features),
    "EdgeConv_mlp_mean": Case(lambda: pyg.EdgeConv(mlp(2 * N, 10, 9, C), aggr="mean"), node_features),
    "EdgeConv_norm_max": Case(lambda: pyg.EdgeConv(mlp(2 * N, 10, C, norm=True), aggr="max"), node_features),
    "PointNetConv": Case(PointNet, with_positions),
    "CGConv": Case(lambda: pyg.CGConv(N, EDGE_DIM), with_edge_features),
    "GINEConv": Case(lambda: WithAttributes(pyg.GINEConv(mlp(N, C), edge_dim=EDGE_DIM)), with_edge_features),
    "GATv2Conv_edges": Case(lambda: WithAttributes(pyg.GATv2Conv(N, C, heads=2, edge_dim=EDGE_DIM)), with_edge_features),
    "TransformerConv_edges": Case(
        lambda: WithAttributes(pyg.TransformerConv(N, C, heads=2, edge_dim=EDGE_DIM)), with_edge_features
    ),
    "ContinuousFilter": Case(ContinuousFilter, with_positions),
    "Equivariant": Case(Equivariant, with_positions),
    "NormedMessages": Case(NormedMessages, with_edge_features),
    "EdgeUpdate": Case(EdgeUpdate, with_edge_features),
    "Decoder": Case(Decoder, node_features),
}
