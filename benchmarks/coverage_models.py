"""PyTorch Geometric's layers of typed graphs and its models, as cases of `coverage.py`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn as pyg
from coverage_graph import SCALERS, Call, Case, Graph, conv, mlp
from torch import Tensor, nn
from torch_geometric.utils import scatter

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
        row, col = edge_index
        out = self.first(torch.cat([x[row], edge_attr], dim=1))
        out = scatter(out, col, dim=0, dim_size=x.size(0), reduce="mean")
        return self.second(torch.cat([x, out, u[batch]], dim=1))  # type: ignore[no-any-return]


class GlobalModel(nn.Module):
    def __init__(self, f: int) -> None:
        super().__init__()
        self.net = mlp(f + 8, f)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Tensor:
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


class VariationalEncoder(nn.Module):
    """What `VGAE` samples from: means and logarithms of standard deviations."""

    def __init__(self, f: int) -> None:
        super().__init__()
        self.first, self.mean, self.logstd = pyg.GCNConv(f, f), pyg.GCNConv(f, f), pyg.GCNConv(f, f)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x, edge_index).relu()
        return self.mean(x, edge_index), self.logstd(x, edge_index)


class Reconstruction(nn.Module):
    """The loss of a graph auto-encoder, for edges that are there and given ones that are not."""

    def __init__(self, f: int) -> None:
        super().__init__()
        self.model = pyg.VGAE(VariationalEncoder(f))

    def forward(self, x: Tensor, edge_index: Tensor, absent: Tensor) -> Tensor:
        z = self.model.encode(x, edge_index)
        return self.model.recon_loss(z, edge_index, absent) + self.model.kl_loss()  # type: ignore[no-any-return]


def infomax(f: int, g: Graph) -> Call:
    encoder = pyg.GCN(f, f, 1, f)
    model = pyg.DeepGraphInfomax(f, encoder, lambda z, *_: z.mean(0).sigmoid(), lambda x, index: (x.flip(0), index))
    return Call(model, (g.x, g.edge_index))


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
    "VGAE, loss": lambda f, g: Call(Reconstruction(f), (g.x, g.edge_index, g.edge_index.flip(0))),
    "DeepGraphInfomax": infomax,
    "LabelPropagation": conv(lambda f, g: pyg.models.LabelPropagation(2, 0.9)),
    "MLP": lambda f, g: Call(pyg.models.MLP([f, f, f], norm="batch_norm"), (g.x,)),
}
