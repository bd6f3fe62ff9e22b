"""What `coverage.py` examines: convolutions, aggregations, pooling, norms, typed graphs and models of PyTorch Geometric.

A case builds a module and what it is called with, for a width of features and a graph. Dropout is off: two runs must agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.nn import aggr

GRAPH_NODES = 25  # nodes per graph, where the graph is a batch of small ones


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


SCALERS = ["identity", "amplification", "attenuation"]

CONVOLUTIONS: dict[str, Case] = {
    "SimpleConv": conv(lambda f, g: pyg.SimpleConv(aggr="mean")),
    "GCNConv": conv(lambda f, g: pyg.GCNConv(f, f)),
    "GCNConv, edge weights": conv(lambda f, g: pyg.GCNConv(f, f), edge_weight=weights),
    "ChebConv": conv(lambda f, g: pyg.ChebConv(f, f, K=3)),
    "SAGEConv, mean": conv(lambda f, g: pyg.SAGEConv(f, f)),
    "SAGEConv, max": conv(lambda f, g: pyg.SAGEConv(f, f, aggr="max")),
    "SAGEConv, softmax": conv(lambda f, g: pyg.SAGEConv(f, f, aggr="softmax")),
    "SAGEConv, project": conv(lambda f, g: pyg.SAGEConv(f, f, project=True)),
    "SAGEConv, pair": lambda f, g: Call(
        pyg.SAGEConv((f, f), f), ((g.x, g.x[: g.num_nodes // 2].clone()), g.edge_index % (g.num_nodes // 2))
    ),
    "GraphConv": conv(lambda f, g: pyg.GraphConv(f, f), edge_weight=weights),
    "GatedGraphConv": conv(lambda f, g: pyg.GatedGraphConv(f, num_layers=2)),
    "ResGatedGraphConv": conv(lambda f, g: pyg.ResGatedGraphConv(f, f)),
    "ResGatedGraphConv, edge_dim": conv(lambda f, g: pyg.ResGatedGraphConv(f, f, edge_dim=8), edge_attr=edges(8)),
    "GATConv": conv(lambda f, g: pyg.GATConv(f, f // 4, heads=4)),
    "GATConv, edge_dim": conv(lambda f, g: pyg.GATConv(f, f // 4, heads=4, edge_dim=8), edge_attr=edges(8)),
    "GATConv, pair": lambda f, g: Call(
        pyg.GATConv((f, f), f // 4, heads=4, add_self_loops=False),
        ((g.x, g.x[: g.num_nodes // 2].clone()), g.edge_index % (g.num_nodes // 2)),
    ),
    "GATv2Conv": conv(lambda f, g: pyg.GATv2Conv(f, f // 4, heads=4)),
    "GATv2Conv, edge_dim": conv(lambda f, g: pyg.GATv2Conv(f, f // 4, heads=4, edge_dim=8), edge_attr=edges(8)),
    "TransformerConv": conv(lambda f, g: pyg.TransformerConv(f, f // 4, heads=4)),
    "TransformerConv, edge_dim": conv(lambda f, g: pyg.TransformerConv(f, f // 4, heads=4, edge_dim=8), edge_attr=edges(8)),
    "AGNNConv": conv(lambda f, g: pyg.AGNNConv()),
    "TAGConv": conv(lambda f, g: pyg.TAGConv(f, f, K=2)),
    "GINConv": conv(lambda f, g: pyg.GINConv(mlp(f, f))),
    "GINEConv": conv(lambda f, g: pyg.GINEConv(mlp(f, f)), edge_attr=lambda g: g.edge_features(g.width)),
    "GINEConv, edge_dim": conv(lambda f, g: pyg.GINEConv(mlp(f, f), edge_dim=8), edge_attr=edges(8)),
    "ARMAConv": conv(lambda f, g: pyg.ARMAConv(f, f, num_stacks=2, num_layers=2)),
    "SGConv": conv(lambda f, g: pyg.SGConv(f, f, K=2)),
    "SSGConv": conv(lambda f, g: pyg.SSGConv(f, f, alpha=0.1, K=2)),
    "APPNP": conv(lambda f, g: pyg.APPNP(K=3, alpha=0.1)),
    "MFConv": conv(lambda f, g: pyg.MFConv(f, f)),
    "RGCNConv": conv(lambda f, g: pyg.RGCNConv(f, f, num_relations=4), edge_type=relations),
    "RGCNConv, bases": conv(lambda f, g: pyg.RGCNConv(f, f, num_relations=4, num_bases=2), edge_type=relations),
    "RGCNConv, blocks": conv(lambda f, g: pyg.RGCNConv(f, f, num_relations=4, num_blocks=4), edge_type=relations),
    "FastRGCNConv": conv(lambda f, g: pyg.FastRGCNConv(f, f, num_relations=4), edge_type=relations),
    "RGATConv": conv(lambda f, g: pyg.RGATConv(f, f // 4, num_relations=4, heads=4), edge_type=relations),
    "SignedConv": lambda f, g: Call(pyg.SignedConv(f, f, first_aggr=True), (g.x, g.edge_index, g.edge_index.flip(0))),
    "DNAConv": lambda f, g: Call(pyg.DNAConv(f, heads=2), (g.x.view(g.num_nodes, 1, -1).repeat(1, 3, 1), g.edge_index)),
    "PointNetConv": lambda f, g: Call(pyg.PointNetConv(mlp(f + 3, f)), (g.x, g.positions(), g.edge_index)),
    "GMMConv": conv(lambda f, g: pyg.GMMConv(f, f, dim=2, kernel_size=3), edge_attr=edges(2)),
    "GMMConv, separate": conv(
        lambda f, g: pyg.GMMConv(f, f, dim=2, kernel_size=3, separate_gaussians=True), edge_attr=edges(2)
    ),
    "NNConv": conv(lambda f, g: pyg.NNConv(f, f, nn.Linear(4, f * f)), edge_attr=edges(4)),
    "CGConv": conv(lambda f, g: pyg.CGConv(f, dim=8), edge_attr=edges(8)),
    "EdgeConv, linear": conv(lambda f, g: pyg.EdgeConv(nn.Linear(2 * f, f))),
    "EdgeConv, MLP": conv(lambda f, g: pyg.EdgeConv(mlp(2 * f, f))),
    "EdgeConv, MLP, mean": conv(lambda f, g: pyg.EdgeConv(mlp(2 * f, f), aggr="mean")),
    "PPFConv": lambda f, g: Call(pyg.PPFConv(mlp(f + 4, f)), (g.x, g.positions(), g.positions(), g.edge_index)),
    "FeaStConv": conv(lambda f, g: pyg.FeaStConv(f, f, heads=2)),
    "PointTransformerConv": lambda f, g: Call(pyg.PointTransformerConv(f, f), (g.x, g.positions(), g.edge_index)),
    "HypergraphConv": conv(lambda f, g: pyg.HypergraphConv(f, f)),
    "HypergraphConv, attention": conv(
        lambda f, g: pyg.HypergraphConv(f, f // 4, use_attention=True, heads=4), hyperedge_attr=lambda g: g.x.flip(0)
    ),
    "LEConv": conv(lambda f, g: pyg.LEConv(f, f)),
    "PNAConv": conv(lambda f, g: pyg.PNAConv(f, f, ["mean", "min", "max", "std"], SCALERS, g.degree_histogram())),
    "PNAConv, edge_dim": conv(
        lambda f, g: pyg.PNAConv(f, f, ["mean", "max", "std"], SCALERS[:2], g.degree_histogram(), edge_dim=8),
        edge_attr=edges(8),
    ),
    "ClusterGCNConv": conv(lambda f, g: pyg.ClusterGCNConv(f, f)),
    "GENConv": conv(lambda f, g: pyg.GENConv(f, f, aggr="softmax", learn_t=True)),
    "GENConv, powermean": conv(lambda f, g: pyg.GENConv(f, f, aggr="powermean", learn_p=True)),
    "GENConv, edge_dim": conv(lambda f, g: pyg.GENConv(f, f, edge_dim=8), edge_attr=edges(8)),
    "GCN2Conv": lambda f, g: Call(pyg.GCN2Conv(f, alpha=0.1), (g.x, g.x.flip(0), g.edge_index)),
    "PANConv": conv(lambda f, g: pyg.PANConv(f, f, filter_size=2)),
    "WLConvContinuous": conv(lambda f, g: pyg.WLConvContinuous()),
    "FiLMConv": conv(lambda f, g: pyg.FiLMConv(f, f)),
    "SuperGATConv": conv(lambda f, g: pyg.SuperGATConv(f, f // 4, heads=4, is_undirected=True)),
    "FAConv": lambda f, g: Call(pyg.FAConv(f), (g.x, g.x.flip(0), g.edge_index)),
    "EGConv": conv(lambda f, g: pyg.EGConv(f, f, aggregators=["sum", "mean", "max", "std"])),
    "PDNConv": conv(lambda f, g: pyg.PDNConv(f, f, edge_dim=8, hidden_channels=16), edge_attr=edges(8)),
    "GeneralConv": conv(lambda f, g: pyg.GeneralConv(f, f, attention=True, heads=2)),
    "HEATConv": lambda f, g: Call(
        pyg.HEATConv(f, f // 4, 3, 4, 8, 8, 8, heads=4),
        (g.x, g.edge_index, g.types(3, "node"), g.types(4), g.edge_features(8)),
    ),
    "LGConv": conv(lambda f, g: pyg.LGConv()),
    "PointGNNConv": lambda f, g: Call(
        pyg.PointGNNConv(mlp(f, 3), mlp(f + 3, f), mlp(f, f)), (g.x, g.positions(), g.edge_index)
    ),
    "GPSConv": conv(lambda f, g: pyg.GPSConv(f, pyg.GINConv(mlp(f, f)), heads=1, attn_type="performer")),
    "AntiSymmetricConv": conv(lambda f, g: pyg.AntiSymmetricConv(f)),
    "DirGNNConv": conv(lambda f, g: pyg.DirGNNConv(pyg.SAGEConv(f, f))),
    "MixHopConv": conv(lambda f, g: pyg.MixHopConv(f, f)),
    "MeshCNNConv": lambda f, g: Call(
        pyg.MeshCNNConv(f, f), (g.x, torch.stack([torch.arange(4 * g.num_nodes) % g.num_nodes, four_neighbours(g)]))
    ),
}


def four_neighbours(g: Graph) -> Tensor:
    return torch.arange(g.num_nodes).repeat_interleave(4)


# --- aggregations: of messages (edges to nodes), or of the nodes of small graphs where that is what they are for -----------


def of_messages(make: Callable[[int], Any]) -> Case:
    return conv(lambda f, g: pyg.SimpleConv(aggr=make(f)))


def of_graphs(make: Callable[[int], nn.Module]) -> Case:
    return lambda f, g: Call(make(f), (g.x, g.batch()), {"dim_size": g.num_graphs})


AGGREGATIONS: dict[str, Case] = {
    "sum": of_messages(lambda f: aggr.SumAggregation()),
    "mean": of_messages(lambda f: aggr.MeanAggregation()),
    "max": of_messages(lambda f: aggr.MaxAggregation()),
    "min": of_messages(lambda f: aggr.MinAggregation()),
    "mul": of_messages(lambda f: aggr.MulAggregation()),
    "var": of_messages(lambda f: aggr.VarAggregation()),
    "std": of_messages(lambda f: aggr.StdAggregation()),
    "softmax": of_messages(lambda f: aggr.SoftmaxAggregation()),
    "softmax, learned": of_messages(lambda f: aggr.SoftmaxAggregation(learn=True, channels=f)),
    "softmax, semi-gradient": of_messages(lambda f: aggr.SoftmaxAggregation(semi_grad=True)),
    "powermean": of_messages(lambda f: aggr.PowerMeanAggregation()),
    "powermean, learned": of_messages(lambda f: aggr.PowerMeanAggregation(learn=True, channels=f)),
    "median": of_messages(lambda f: aggr.MedianAggregation()),
    "quantile": of_messages(lambda f: aggr.QuantileAggregation([0.25, 0.75])),
    "variance preserving": of_messages(lambda f: aggr.VariancePreservingAggregation()),
    "multi: mean, max, std": of_messages(lambda f: aggr.MultiAggregation(["mean", "max", "std"])),
    "multi: sum, min, var, softmax": of_messages(lambda f: aggr.MultiAggregation(["sum", "min", "var", "softmax"])),
    "multi, summed": of_messages(lambda f: aggr.MultiAggregation(["mean", "max", "std"], mode="sum")),
    "degree scalers": conv(
        lambda f, g: pyg.SimpleConv(aggr=aggr.DegreeScalerAggregation(["mean", "max", "std"], SCALERS, g.degree_histogram()))
    ),
    "attentional": of_messages(lambda f: aggr.AttentionalAggregation(nn.Linear(f, 1))),
    "deep sets": of_messages(lambda f: aggr.DeepSetsAggregation(mlp(f, f), mlp(f, f))),
    "sum of graphs": of_graphs(lambda f: aggr.SumAggregation()),
    "std of graphs": of_graphs(lambda f: aggr.StdAggregation()),
    "softmax of graphs": of_graphs(lambda f: aggr.SoftmaxAggregation(learn=True)),
    "attentional, of graphs": of_graphs(lambda f: aggr.AttentionalAggregation(nn.Linear(f, 1), mlp(f, f))),
    "Set2Set": of_graphs(lambda f: aggr.Set2Set(f, processing_steps=2)),
    "LSTM": of_graphs(lambda f: aggr.LSTMAggregation(f, f)),
    "GRU": of_graphs(lambda f: aggr.GRUAggregation(f, f)),
    "sort": of_graphs(lambda f: aggr.SortAggregation(k=5)),
    "MLP": of_graphs(lambda f: aggr.MLPAggregation(f, f, GRAPH_NODES, num_layers=1)),
    "set transformer": of_graphs(lambda f: aggr.SetTransformerAggregation(f)),
    "graph multiset transformer": of_graphs(lambda f: aggr.GraphMultisetTransformer(f, k=4)),
    "patch transformer": of_graphs(lambda f: aggr.PatchTransformerAggregation(f, f, 4, 16)),
    "equilibrium": of_graphs(lambda f: aggr.EquilibriumAggregation(f, f, [16], grad_iter=2)),
    "LCM": of_graphs(lambda f: aggr.LCMAggregation(f, f)),
}


# --- pooling and norms ------------------------------------------------------------------------------------------------------


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, run: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.parts = nn.ModuleList(parts)

    def forward(self, *args: Any) -> Any:
        return self.run(*self.parts, *args)


def pool(make: Callable[[int], nn.Module]) -> Case:
    """Pooling layers that take x, edge_index and batch; the first output and the edges' values are the results."""
    return lambda f, g: Call(
        Applied(lambda layer, x, index, batch: layer(x, index, batch=batch)[0], make(f)), (g.x, g.local_edges(), g.batch())
    )


POOLING: dict[str, Case] = {
    "global_add_pool": lambda f, g: Call(Applied(pyg.global_add_pool), (g.x, g.batch(), g.num_graphs)),
    "global_mean_pool": lambda f, g: Call(Applied(pyg.global_mean_pool), (g.x, g.batch(), g.num_graphs)),
    "global_max_pool": lambda f, g: Call(Applied(pyg.global_max_pool), (g.x, g.batch(), g.num_graphs)),
    "TopKPooling": pool(lambda f: pyg.TopKPooling(f)),
    "SAGPooling": pool(lambda f: pyg.SAGPooling(f)),
    "ASAPooling": pool(lambda f: pyg.ASAPooling(f)),
    "MemPooling": lambda f, g: Call(pyg.MemPooling(f, f, heads=2, num_clusters=4), (g.x, g.batch())),
}


def norm(make: Callable[[int], nn.Module]) -> Case:
    return lambda f, g: Call(make(f), (g.x, g.batch()))


NORMS: dict[str, Case] = {
    "BatchNorm": lambda f, g: Call(pyg.BatchNorm(f), (g.x,)),
    "LayerNorm, graph": lambda f, g: Call(pyg.LayerNorm(f), (g.x,)),
    "LayerNorm, graph, batch": norm(lambda f: pyg.LayerNorm(f)),
    "LayerNorm, node": lambda f, g: Call(pyg.LayerNorm(f, mode="node"), (g.x,)),
    "GraphNorm": norm(lambda f: pyg.GraphNorm(f)),
    "PairNorm": norm(lambda f: pyg.PairNorm()),
    "InstanceNorm": norm(lambda f: pyg.InstanceNorm(f, affine=True, track_running_stats=True)),
    "GraphSizeNorm": norm(lambda f: pyg.GraphSizeNorm()),
    "MeanSubtractionNorm": norm(lambda f: pyg.MeanSubtractionNorm()),
    "MessageNorm": lambda f, g: Call(pyg.MessageNorm(learn_scale=True), (g.x, g.x.flip(0))),
    "DiffGroupNorm": lambda f, g: Call(pyg.DiffGroupNorm(f, groups=4), (g.x,)),
    "HeteroBatchNorm": lambda f, g: Call(pyg.HeteroBatchNorm(f, 3), (g.x, g.types(3, "node"))),
    "HeteroLayerNorm": lambda f, g: Call(pyg.HeteroLayerNorm(f, 3), (g.x, g.types(3, "node"))),
}


# --- typed graphs -----------------------------------------------------------------------------------------------------------

_KINDS = (("a", "to", "b"), ("b", "back", "a"), ("a", "near", "a"))
_METADATA = (["a", "b"], list(_KINDS))


class TwoLayers(nn.Module):
    """A homogeneous model for `to_hetero`."""

    def __init__(self, f: int) -> None:
        super().__init__()
        self.first = pyg.SAGEConv((-1, -1), f)
        self.second = pyg.GATConv((-1, -1), f // 4, heads=4, add_self_loops=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)  # type: ignore[no-any-return]


def typed(make: Callable[[int], nn.Module]) -> Case:
    def build(f: int, g: Graph) -> Call:
        xs, typed_edges = g.parts()
        model = make(f)
        with torch.no_grad():
            model(xs, typed_edges)  # lazy weights take their sizes
        return Call(model, (xs, typed_edges))

    return build


TYPED: dict[str, Case] = {
    "HeteroConv, SAGE": typed(lambda f: pyg.HeteroConv({kind: pyg.SAGEConv((f, f), f) for kind in _KINDS})),
    "HeteroConv, GAT": typed(
        lambda f: pyg.HeteroConv({kind: pyg.GATConv((f, f), f // 4, heads=4, add_self_loops=False) for kind in _KINDS})
    ),
    "HeteroConv, mixed": typed(
        lambda f: pyg.HeteroConv(
            {
                _KINDS[0]: pyg.SAGEConv((f, f), f),
                _KINDS[1]: pyg.GATv2Conv((f, f), f, add_self_loops=False),
                _KINDS[2]: pyg.GCNConv(f, f),
            },
            aggr="mean",
        )
    ),
    "to_hetero": typed(lambda f: pyg.to_hetero(TwoLayers(f), _METADATA, aggr="sum")),
    "HGTConv": typed(lambda f: pyg.HGTConv(f, f, _METADATA, heads=4)),
    "HANConv": typed(lambda f: pyg.HANConv(f, f, _METADATA, heads=4)),
}


# --- models ---------------------------------------------------------------------------------------------------------------


class GivenEdges(nn.Module):
    """SchNet's `interaction_graph` for edges that are given: PyG's own search for neighbours needs another package."""

    def __init__(self, edge_index: Tensor) -> None:
        super().__init__()
        self.register_buffer("edge_index", edge_index)

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = self.edge_index
        return self.edge_index, (pos[src] - pos[dst]).norm(dim=-1)


class GivenTriplets(nn.Module):
    """DimeNet++ on edges and triplets that are given: PyG's own `triplets` needs another package."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, pos: Tensor, edge_index: Tensor, pairs: Tensor, batch: Tensor) -> Tensor:
        model: Any = self.model
        j, i = edge_index
        idx_kj, idx_ji = pairs
        dist = (pos[i] - pos[j]).pow(2).sum(dim=-1).sqrt()
        idx_i, idx_j, idx_k = i[idx_ji], j[idx_ji], j[idx_kj]
        pos_jk, pos_ij = pos[idx_j] - pos[idx_k], pos[idx_i] - pos[idx_j]
        angle = torch.atan2(torch.cross(pos_ij, pos_jk, dim=1).norm(dim=-1), (pos_ij * pos_jk).sum(dim=-1))
        rbf = model.rbf(dist)
        sbf = model.sbf(dist, angle, idx_kj)
        x = model.emb(z, rbf, i, j)
        total = model.output_blocks[0](x, rbf, i, num_nodes=pos.size(0))
        for interaction, output in itertools.zip_longest(model.interaction_blocks, model.output_blocks[1:]):
            x = interaction(x, rbf, sbf, idx_kj, idx_ji)
            total = total + output(x, rbf, i, num_nodes=pos.size(0))
        return pyg.global_add_pool(total, batch)


def line_edges(g: Graph) -> tuple[Tensor, Tensor]:
    """A quarter of the edges, without loops, and pairs of them that meet: the triplets of DimeNet."""
    index = g.local_edges()
    index = index[:, index[0] != index[1]]
    index = index[:, : max(index.shape[1] // 4, 1)]
    order = index[1].argsort(stable=True)
    into = index[1][order]
    # edge k->j goes with some edge j->i: the first of j's incoming ones
    position = torch.searchsorted(into, index[0].contiguous()).clamp(max=into.numel() - 1)
    meets = into[position] == index[0]
    pairs = torch.stack([order[position][meets], torch.arange(index.shape[1])[meets]])
    back = index[0][pairs[0]] != index[1][pairs[1]]
    g.extra_counts |= {index.shape[1], int(back.sum())}
    return index, pairs[:, back]


def dimenet(f: int, g: Graph) -> Call:
    index, pairs = line_edges(g)
    model = pyg.models.DimeNetPlusPlus(f, 1, 2, 32, 8, f, num_spherical=3, num_radial=6, output_initializer="glorot_orthogonal")
    return Call(GivenTriplets(model), (g.types(9, "node"), 3 * g.positions(), index, pairs, g.batch()))


class EdgeModel(nn.Module):
    def __init__(self, f: int) -> None:
        super().__init__()
        self.net = mlp(2 * f + 8 + 8, f)

    def forward(self, src: Tensor, dst: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Tensor:
        return self.net(torch.cat([src, dst, edge_attr, u[batch]], 1))  # type: ignore[no-any-return]


class NodeModel(nn.Module):
    def __init__(self, f: int) -> None:
        super().__init__()
        self.first, self.second = mlp(2 * f, f), mlp(2 * f + 8, f)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Tensor:
        from torch_geometric.utils import scatter

        row, col = edge_index
        out = self.first(torch.cat([x[row], edge_attr], dim=1))
        out = scatter(out, col, dim=0, dim_size=x.size(0), reduce="mean")
        return self.second(torch.cat([x, out, u[batch]], dim=1))  # type: ignore[no-any-return]


class GlobalModel(nn.Module):
    def __init__(self, f: int) -> None:
        super().__init__()
        self.net = mlp(f + 8, f)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Tensor:
        from torch_geometric.utils import scatter

        return self.net(torch.cat([u, scatter(x, batch, dim=0, dim_size=u.size(0), reduce="mean")], 1))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Link prediction: an encoder, then a dot product or an MLP on edges."""

    def __init__(self, f: int, *, dot: bool) -> None:
        super().__init__()
        self.encoder = pyg.GCN(f, f, 2, f)
        self.head = None if dot else mlp(2 * f, f)
        self.last = nn.Linear(f, 1)

    def forward(self, x: Tensor, edge_index: Tensor, pairs: Tensor) -> Tensor:
        h = self.encoder(x, edge_index)
        a, b = h[pairs[0]], h[pairs[1]]
        if self.head is None:
            return (a * b).sum(-1)  # type: ignore[no-any-return]
        return self.last(self.head(torch.cat([a, b], -1)).relu())  # type: ignore[no-any-return]


def res_block(f: int, g: Graph) -> nn.Module:
    return pyg.DeepGCNLayer(pyg.GENConv(f, f), nn.LayerNorm(f), nn.ReLU(), block="res+")


def with_batch(make: Callable[[int], nn.Module]) -> Case:
    return lambda f, g: Call(make(f), (g.x, g.local_edges(), g.batch()))


MODELS: dict[str, Case] = {
    "GCN": conv(lambda f, g: pyg.GCN(f, f, 2, f)),
    "GraphSAGE": conv(lambda f, g: pyg.GraphSAGE(f, f, 2, f)),
    "GIN": conv(lambda f, g: pyg.GIN(f, f, 2, f)),
    "GIN, batch norm, jk": conv(lambda f, g: pyg.GIN(f, f, 3, f, norm="BatchNorm", jk="cat")),
    "GAT": conv(lambda f, g: pyg.GAT(f, f, 2, f, heads=4)),
    "GAT, v2": conv(lambda f, g: pyg.GAT(f, f, 2, f, heads=4, v2=True)),
    "PNA": conv(
        lambda f, g: pyg.PNA(f, f, 2, f, aggregators=["mean", "min", "max", "std"], scalers=SCALERS, deg=g.degree_histogram())
    ),
    "EdgeCNN": conv(lambda f, g: pyg.EdgeCNN(f, f, 2, f)),
    "JumpingKnowledge, lstm": conv(lambda f, g: pyg.GCN(f, f, 2, f, jk="lstm")),
    "LightGCN": lambda f, g: Call(
        pyg.LightGCN(g.num_nodes, f, 3), (g.edge_index, g.edge_index.flip(0)[:, : g.num_edges // 2].contiguous())
    ),
    "SchNet": lambda f, g: Call(
        pyg.SchNet(f, f, 2, 25, interaction_graph=GivenEdges(g.local_edges())),
        (g.types(9, "node"), 3 * g.positions(), g.batch()),
    ),
    "DimeNet++": dimenet,
    "AttentiveFP": lambda f, g: Call(
        pyg.AttentiveFP(f, f, f, edge_dim=8, num_layers=2, num_timesteps=2),
        (g.x, g.local_edges(), g.edge_features(8), g.batch()),
    ),
    "MetaLayer": lambda f, g: Call(
        pyg.MetaLayer(EdgeModel(f), NodeModel(f), GlobalModel(f)),
        (g.x, g.local_edges(), g.edge_features(8), torch.randn(g.num_graphs, 8, generator=g.generator), g.batch()),
    ),
    "DeepGCNLayer": conv(res_block),
    "GraphUNet": with_batch(lambda f: pyg.GraphUNet(f, f, f, depth=2)),
    "LINKX": lambda f, g: Call(pyg.LINKX(g.num_nodes, f, f, f, num_layers=2), (g.x, g.edge_index)),
    "SignedGCN": lambda f, g: Call(pyg.SignedGCN(f, f, 2), (g.x, g.edge_index, g.edge_index.flip(0))),
    "PMLP": conv(lambda f, g: pyg.models.PMLP(f, f, f, 2).train()),
    "NeuralFingerprint": with_batch(lambda f: pyg.models.NeuralFingerprint(f, f, f, 2)),
    "RECT_L": conv(lambda f, g: pyg.models.RECT_L(f, f)),
    "GroupAddRev": conv(
        lambda f, g: pyg.models.GroupAddRev(nn.ModuleList(pyg.SAGEConv(f // 2, f // 2) for _ in range(2)), num_groups=2)
    ),
    "SGFormer": with_batch(lambda f: pyg.models.SGFormer(f, f, f, trans_dropout=0.0, gnn_dropout=0.0)),
    "Polynormer": with_batch(
        lambda f: pyg.models.Polynormer(f, f, f, local_layers=2, in_dropout=0.0, dropout=0.0, global_dropout=0.0)
    ),
    "GAE, inner product": lambda f, g: Call(Decoder(f, dot=True), (g.x, g.edge_index, g.edge_index.flip(0))),
    "link prediction, MLP": lambda f, g: Call(Decoder(f, dot=False), (g.x, g.edge_index, g.edge_index.flip(0))),
    "LabelPropagation": conv(lambda f, g: pyg.models.LabelPropagation(2, 0.9)),
    "MLP": lambda f, g: Call(pyg.models.MLP([f, f, f], norm="batch_norm"), (g.x,)),
}

GROUPS: dict[str, dict[str, Case]] = {
    "Convolutions": CONVOLUTIONS,
    "Aggregations": AGGREGATIONS,
    "Pooling": POOLING,
    "Norms": NORMS,
    "Typed graphs": TYPED,
    "Models": MODELS,
}
