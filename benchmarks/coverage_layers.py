"""PyTorch Geometric's convolutions, aggregations, pooling layers and norms, as cases of `coverage.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn as pyg
from coverage_graph import GRAPH_NODES, SCALERS, Call, Case, Graph, conv, edges, mlp, relations, weights
from torch import Tensor, nn
from torch_geometric.nn import aggr

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
    "EdgePooling": pool(lambda f: pyg.EdgePooling(f)),
    "avg_pool_x": lambda f, g: Call(Applied(lambda x, batch: pyg.avg_pool_x(batch, x, batch)[0]), (g.x, g.batch())),
    "max_pool_x": lambda f, g: Call(Applied(lambda x, batch: pyg.max_pool_x(batch, x, batch)[0]), (g.x, g.batch())),
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
    "InstanceNorm": norm(
        lambda f: pyg.InstanceNorm(f, affine=True)
    ),  # tracked statistics keep a graph: no second step in eager
    "GraphSizeNorm": norm(lambda f: pyg.GraphSizeNorm()),
    "MeanSubtractionNorm": norm(lambda f: pyg.MeanSubtractionNorm()),
    "MessageNorm": lambda f, g: Call(pyg.MessageNorm(learn_scale=True), (g.x, g.x.flip(0))),
    "DiffGroupNorm": lambda f, g: Call(pyg.DiffGroupNorm(f, groups=4), (g.x,)),
    "HeteroBatchNorm": lambda f, g: Call(pyg.HeteroBatchNorm(f, 3), (g.x, g.types(3, "node"))),
    "HeteroLayerNorm": lambda f, g: Call(pyg.HeteroLayerNorm(f, 3), (g.x, g.types(3, "node"))),
}
