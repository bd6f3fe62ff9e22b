"""The layers that are measured, as a user of PyTorch Geometric writes them, and with torch.sparse where it can do them.

Legend: N nodes, E edges, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from plait.errors import OptionError
from plait.tools.bench.graphs import BenchGraph
from plait.tools.models import MONET_KERNELS, degree_positions

HEADS = 4


@dataclass(frozen=True, kw_only=True)
class Layer:
    """make(in, out) gives the layer.

    kink: where rounding may take a gradient to another place, so that the check looks at norms: "slope" (leaky ReLU of a value
    near 0), "argmax" (a maximum of nearly equal values), or "".
    """

    make: Callable[[int, int], nn.Module]
    has_edge_position: bool = False
    kink: str = ""


def _heads(layer: type[nn.Module], *, kink: str = "slope", **options: object) -> Layer:
    """4 heads where the width can be shared, else one."""

    def make(width_in: int, width_out: int) -> nn.Module:
        heads = HEADS if width_out % HEADS == 0 else 1
        return layer(width_in, width_out // heads, heads=heads, **options)

    return Layer(make=make, kink=kink)


LAYERS: Mapping[str, Layer] = {
    "gcn": Layer(make=lambda a, b: pyg.GCNConv(a, b)),
    "gcn_plain": Layer(make=lambda a, b: pyg.GCNConv(a, b, normalize=False, add_self_loops=False)),
    "sage": Layer(make=lambda a, b: pyg.SAGEConv(a, b)),
    "sage_max": Layer(make=lambda a, b: pyg.SAGEConv(a, b, aggr="max"), kink="argmax"),
    "gin": Layer(make=lambda a, b: pyg.GINConv(nn.Linear(a, b))),
    "gat": _heads(pyg.GATConv),
    "gat_plain": _heads(pyg.GATConv, add_self_loops=False),
    "gatv2": _heads(pyg.GATv2Conv),
    "gatv2_plain": _heads(pyg.GATv2Conv, add_self_loops=False),
    "gmm": Layer(make=lambda a, b: pyg.GMMConv(a, b, dim=2, kernel_size=MONET_KERNELS), has_edge_position=True),
    "edgeconv": Layer(make=lambda a, b: pyg.EdgeConv(nn.Linear(2 * a, b), aggr="max"), kink="argmax"),
    "transformer": _heads(pyg.TransformerConv, kink=""),
    "resgated": Layer(make=lambda a, b: pyg.ResGatedGraphConv(a, b)),
}


class Stack(nn.Module):
    """Layers of one kind with ReLU between them."""

    def __init__(self, layer: Layer, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer.make(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor, *edges: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x, *edges).relu()
        return self.layers[-1](x, *edges)


def find_layer(name: str) -> Layer:
    if name not in LAYERS:
        raise OptionError(f"model {name!r}: no such model; valid: {', '.join(LAYERS)}")
    return LAYERS[name]


def make_model(name: str, widths: tuple[int, ...]) -> nn.Module:
    """The model with the same weights every time."""
    torch.manual_seed(0)
    return Stack(find_layer(name), widths)


def edges_of(name: str, graph: BenchGraph) -> tuple[Tensor, ...]:
    """What the model takes after x."""
    if find_layer(name).has_edge_position:
        return graph.edge_index, degree_positions(graph.edge_index, graph.num_nodes)
    return (graph.edge_index,)


# torch.sparse


class _Spmm(torch.autograd.Function):
    """A @ x, and A^T @ gradient with the transpose made beforehand."""

    @staticmethod
    def forward(ctx: Any, adjacency: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.transposed = transposed
        return adjacency @ x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ gradients[0]


def _csr(rows: Tensor, columns: Tensor, values: Tensor, num_nodes: int) -> Tensor:
    order = torch.argsort(rows, stable=True)
    indptr = torch.zeros(num_nodes + 1, dtype=torch.int64)
    indptr[1:] = torch.bincount(rows, minlength=num_nodes).cumsum(0)
    return torch.sparse_csr_tensor(indptr, columns[order], values[order], size=(num_nodes, num_nodes), check_invariants=False)


class SparseStack(nn.Module):
    """The same model, sums of neighbours by torch.sparse (MKL); the adjacency, its weights included, is built once."""

    MODELS = ("gcn", "gcn_plain", "sage", "gin")

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        if name not in self.MODELS:
            raise OptionError(f"torch_sparse cannot run {name!r}: only sums with fixed weights ({', '.join(self.MODELS)})")
        self.name = name
        self.model = model
        self.built: tuple[Tensor, Tensor, Tensor] | None = None  # for which edge_index, adjacency, transposed

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        layers: Any = self.model.layers
        for layer in layers[:-1]:
            x = self._layer(layer, x, edge_index).relu()
        return self._layer(layers[-1], x, edge_index)

    def _layer(self, layer: Any, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.name in ("gcn", "gcn_plain"):
            return self._sum(layer.lin(x), edge_index) + layer.bias
        if self.name == "sage":
            return layer.lin_l(self._sum(x, edge_index)) + layer.lin_r(x)
        return layer.nn((1 + layer.eps) * x + self._sum(x, edge_index))

    def _sum(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.built is None or self.built[0] is not edge_index:
            self.built = edge_index, *self._adjacency(edge_index, x.shape[0])
        return _Spmm.apply(self.built[1], self.built[2], x)  # type: ignore[no-untyped-call]

    def _adjacency(self, edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
        weight = torch.ones(edge_index.shape[1])
        if self.name == "gcn":
            edge_index, weight = gcn_norm(edge_index, None, num_nodes)
        if self.name == "sage":
            weight = 1 / torch.bincount(edge_index[1], minlength=num_nodes).clamp(min=1).float()[edge_index[1]]
        src, dst = edge_index
        return _csr(dst, src, weight, num_nodes), _csr(src, dst, weight, num_nodes)
