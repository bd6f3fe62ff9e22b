"""Node classifiers built from PyTorch Geometric's layers, as a user would write them.

Legend: N nodes, E edges, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.nn import functional as F

from plait.errors import OptionError

MONET_KERNELS = 3


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model: `width` is the hidden width, all heads together."""

    name: str = "gat"
    layers: int = 2
    width: int = 64
    heads: int = 4
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise OptionError(f"model {self.name!r}: no such model; valid: {', '.join(MODELS)}")
        for key, number in (("layers", self.layers), ("width", self.width), ("heads", self.heads)):
            if number < 1:
                raise OptionError(f"{key}: expected at least 1, got {number}")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout: expected 0 <= dropout < 1, got {self.dropout}")
        if MODELS[self.name].has_heads and self.width % self.heads:
            raise OptionError(f"width: {self.width} cannot be shared by {self.heads} heads; take a multiple of {self.heads}")


# make(in width, out width, spec, is the last layer) -> layer
Make = Callable[[int, int, ModelSpec, bool], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One row of the table of models. Models with heads join them, and average them in the last layer."""

    make: Make
    has_heads: bool = False
    has_edge_position: bool = False


def _attention(layer: type[nn.Module], **options: object) -> Kind:
    def make(width_in: int, width_out: int, spec: ModelSpec, last: bool) -> nn.Module:
        each = width_out if last else width_out // spec.heads
        return layer(width_in, each, heads=spec.heads, concat=not last, dropout=spec.dropout, **options)

    return Kind(make=make, has_heads=True)


def _mlp(width_in: int, width_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width_in, width_out), nn.ReLU(), nn.Linear(width_out, width_out))


MODELS: Mapping[str, Kind] = {
    "gcn": Kind(make=lambda width_in, width_out, spec, last: pyg.GCNConv(width_in, width_out)),
    "sage": Kind(make=lambda width_in, width_out, spec, last: pyg.SAGEConv(width_in, width_out)),
    "gin": Kind(make=lambda width_in, width_out, spec, last: pyg.GINConv(_mlp(width_in, width_out), train_eps=True)),
    "gat": _attention(pyg.GATConv),
    "gatv2": _attention(pyg.GATv2Conv),
    "transformer": _attention(pyg.TransformerConv),
    "monet": Kind(
        make=lambda width_in, width_out, spec, last: pyg.GMMConv(width_in, width_out, dim=2, kernel_size=MONET_KERNELS),
        has_edge_position=True,
    ),
    "edgeconv": Kind(make=lambda width_in, width_out, spec, last: pyg.EdgeConv(nn.Linear(2 * width_in, width_out), aggr="max")),
}


class NodeClassifier(nn.Module):
    """Dropout, layer, ELU, ... and a last layer that gives one score per class."""

    def __init__(self, spec: ModelSpec, num_features: int, num_classes: int) -> None:
        super().__init__()
        widths = [num_features, *[spec.width] * (spec.layers - 1), num_classes]
        make = MODELS[spec.name].make
        self.layers = nn.ModuleList(
            make(width_in, width_out, spec, i == spec.layers - 1)
            for i, (width_in, width_out) in enumerate(itertools.pairwise(widths))
        )
        self.dropout = spec.dropout

    def forward(self, x: Tensor, *edges: Tensor) -> Tensor:
        """x [N, F], edges: edge_index [2, E] and, for monet, edge positions [E, 2] -> scores [N, classes]."""
        for layer in self.layers[:-1]:
            x = F.elu(layer(F.dropout(x, self.dropout, self.training), *edges))
        return self.layers[-1](F.dropout(x, self.dropout, self.training), *edges)


def edge_inputs(spec: ModelSpec, edge_index: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
    """What the model takes after x."""
    if not MODELS[spec.name].has_edge_position:
        return (edge_index,)
    return edge_index, degree_positions(edge_index, num_nodes)


def degree_positions(edge_index: Tensor, num_nodes: int) -> Tensor:
    """MoNet's positions of an edge between its ends (Monti et al. 2017): deg^-1/2 of src and dst, in-degrees -> [E, 2].

    >>> degree_positions(torch.tensor([[0, 1], [1, 1]]), 2).tolist()
    [[1.0, 0.7071067690849304], [0.7071067690849304, 0.7071067690849304]]
    """
    degree = torch.bincount(edge_index[1], minlength=num_nodes).clamp(min=1).float()
    return degree.rsqrt()[edge_index].t().contiguous()
