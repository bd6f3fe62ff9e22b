"""Models that many tests run: PyG layers, plain PyTorch message passing, and made-up layers with chained reductions.

Each is a `Case`: a model, and inputs for any number of nodes and edges. F input features, C output features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from tests.awkward import RandomGraph, random_graph

IN_CHANNELS = 12
OUT_CHANNELS = 8
NUM_GRAPHS = 5
MIXTURE_DIM = 2

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """make_model() -> module; make_inputs(graph, seed) -> its arguments. `draws`: it draws random numbers while training, so
    that two engines agree in distribution only."""

    make_model: Callable[[], nn.Module]
    make_inputs: Callable[[RandomGraph, int], Inputs]
    draws: bool = False

    def model(self, seed: int = 0) -> nn.Module:
        """The module with parameters fixed by `seed`; biases too are random, as zeros would hide mistakes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make_model()
            with torch.no_grad():
                for parameter in model.parameters():
                    if not parameter.any():
                        parameter.uniform_(-0.5, 0.5)
        return model

    def inputs(self, num_nodes: int, num_edges: int, seed: int = 0) -> Inputs:
        return self.make_inputs(random_graph(num_nodes, num_edges, seed), seed)


# --- inputs ----------------------------------------------------------------------------------------------------------


def node_features(graph: RandomGraph, seed: int) -> Inputs:
    """x [N, F] asking for its gradient, edge_index [2, E]."""
    return _features(graph.num_nodes, seed), graph.edge_index


def with_edge_weight(graph: RandomGraph, seed: int) -> Inputs:
    """x [N, F], edge_index [2, E], edge_weight [E] in [0.5, 1.5]; both floats ask for their gradient."""
    weight = torch.rand(graph.num_edges, generator=_generator(seed + 1)) + 0.5
    return _features(graph.num_nodes, seed), graph.edge_index, weight.requires_grad_()


def with_pseudo(graph: RandomGraph, seed: int) -> Inputs:
    """x [N, F], edge_index [2, E], edge_attr [E, MIXTURE_DIM] in [0, 1)."""
    attr = torch.rand(graph.num_edges, MIXTURE_DIM, generator=_generator(seed + 1))
    return _features(graph.num_nodes, seed), graph.edge_index, attr.requires_grad_()


def with_batch(graph: RandomGraph, seed: int) -> Inputs:
    """x [N, F], batch [N], sorted as in a PyG batch; a graph may have no nodes."""
    batch = torch.randint(NUM_GRAPHS, (graph.num_nodes,), generator=_generator(seed + 1)).sort().values
    return _features(graph.num_nodes, seed), batch


def _features(num_nodes: int, seed: int) -> Tensor:
    return torch.randn(num_nodes, IN_CHANNELS, generator=_generator(seed)).requires_grad_()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- PyG layers ------------------------------------------------------------------------------------------------------


class Pool(nn.Module):
    """A global pooling function as a module; the number of graphs is given, as it cannot be read without a look at the data."""

    def __init__(self, pool: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        return self.pool(x, batch, NUM_GRAPHS)


F, C = IN_CHANNELS, OUT_CHANNELS

LAYERS: dict[str, Case] = {
    "GCNConv": Case(lambda: pyg.GCNConv(F, C), node_features),
    "GCNConv_weighted": Case(lambda: pyg.GCNConv(F, C), with_edge_weight),
    "GCNConv_no_self_loops": Case(lambda: pyg.GCNConv(F, C, add_self_loops=False), node_features),
    "GCNConv_plain": Case(lambda: pyg.GCNConv(F, C, add_self_loops=False, normalize=False), node_features),
    "SAGEConv_mean": Case(lambda: pyg.SAGEConv(F, C, aggr="mean"), node_features),
    "SAGEConv_max": Case(lambda: pyg.SAGEConv(F, C, aggr="max"), node_features),
    "GINConv": Case(
        lambda: pyg.GINConv(nn.Sequential(nn.Linear(F, C), nn.ReLU(), nn.Linear(C, C)), train_eps=True), node_features
    ),
    "GraphConv_weighted": Case(lambda: pyg.GraphConv(F, C), with_edge_weight),
    "GATConv_1_head": Case(lambda: pyg.GATConv(F, C), node_features),
    "GATConv_4_heads": Case(lambda: pyg.GATConv(F, C, heads=4), node_features),
    "GATConv_mean_heads": Case(lambda: pyg.GATConv(F, C, heads=4, concat=False, add_self_loops=False), node_features),
    "GATConv_dropout": Case(lambda: pyg.GATConv(F, C, heads=4, dropout=0.5), node_features, draws=True),
    "GATv2Conv": Case(lambda: pyg.GATv2Conv(F, C, heads=4), node_features),
    "TransformerConv": Case(lambda: pyg.TransformerConv(F, C, heads=2), node_features),
    "GMMConv": Case(lambda: pyg.GMMConv(F, C, dim=MIXTURE_DIM, kernel_size=3), with_pseudo),
    "EdgeConv_max": Case(lambda: pyg.EdgeConv(nn.Linear(2 * F, C), aggr="max"), node_features),
    "ResGatedGraphConv": Case(lambda: pyg.ResGatedGraphConv(F, C), node_features),
    "SGConv": Case(lambda: pyg.SGConv(F, C, K=2), node_features),
    "TAGConv": Case(lambda: pyg.TAGConv(F, C, K=2), node_features),
    "APPNP": Case(lambda: pyg.APPNP(K=3, alpha=0.1), node_features),
    "global_add_pool": Case(lambda: Pool(pyg.global_add_pool), with_batch),
    "global_mean_pool": Case(lambda: Pool(pyg.global_mean_pool), with_batch),
    "global_max_pool": Case(lambda: Pool(pyg.global_max_pool), with_batch),
}

# --- plain PyTorch ---------------------------------------------------------------------------------------------------


class IndexAdd(nn.Module):
    """x[src] and index_add."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        messages = torch.relu(self.lin(x))[src]
        return torch.zeros(x.shape[0], C, dtype=x.dtype).index_add(0, dst, messages)


class ScatterAddExpanded(nn.Module):
    """index_select and scatter_add with an expanded index; messages depend on both ends and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(2 * F, C)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        src, dst = edge_index
        ends = torch.cat([x.index_select(0, src), x.index_select(0, dst)], dim=-1)
        messages = torch.tanh(self.message(ends)) * edge_weight.unsqueeze(-1)
        index = dst.unsqueeze(-1).expand_as(messages)
        return torch.zeros(x.shape[0], C, dtype=x.dtype).scatter_add(0, index, messages)


class ScatterReduce(nn.Module):
    """scatter_reduce with each of its reductions, the initial value taking part or not."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        messages = x[src] - x[dst]
        index = dst.view(-1, 1).expand_as(messages)
        start = torch.zeros_like(x)
        results = [
            start.scatter_reduce(0, index, messages, reduce, include_self=include_self)
            for reduce in ("sum", "mean", "amax", "amin")
            for include_self in (True, False)
        ]
        return torch.cat(results, dim=-1)


class GatherExpanded(nn.Module):
    """torch.gather with an expanded index, and a gradient that goes to an edge output as well."""

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        both = torch.gather(x, 0, src.unsqueeze(1).expand(-1, F)) * torch.gather(x, 0, dst.unsqueeze(1).expand(-1, F))
        scores = both.sum(-1)
        out = torch.zeros(x.shape[0], dtype=x.dtype).index_add(0, dst, torch.sigmoid(scores))
        return out, scores


class IndexPut(nn.Module):
    """index_put with accumulate, and degrees from a scatter of ones."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        src, dst = edge_index
        degree = torch.zeros(x.shape[0], dtype=x.dtype).scatter_add(0, dst, torch.ones_like(edge_weight))
        total = torch.zeros_like(x).index_put((dst,), x[src] * edge_weight[:, None], accumulate=True)
        return total / degree.clamp(min=1).unsqueeze(-1)


PLAIN: dict[str, Case] = {
    "index_add": Case(IndexAdd, node_features),
    "scatter_add_expanded": Case(ScatterAddExpanded, with_edge_weight),
    "scatter_reduce": Case(ScatterReduce, node_features),
    "gather_expanded": Case(GatherExpanded, node_features),
    "index_put": Case(IndexPut, with_edge_weight),
}

# --- made-up layers: no paper has them, so nothing in the compiler can know them ------------------------------------------


def row_sum(values: Tensor, index: Tensor, num_rows: int) -> Tensor:
    return values.new_zeros(num_rows, *values.shape[1:]).index_add(0, index, values)


def row_max(values: Tensor, index: Tensor, num_rows: int) -> Tensor:
    expanded = index.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return values.new_zeros(num_rows, *values.shape[1:]).scatter_reduce(0, expanded, values, "amax", include_self=False)


def row_softmax(scores: Tensor, index: Tensor, num_rows: int) -> Tensor:
    shifted = (scores - row_max(scores.detach(), index, num_rows)[index]).exp()
    return shifted / row_sum(shifted, index, num_rows)[index]


class SoftmaxTwice(nn.Module):
    """A softmax over the incoming edges, and a second one over its result: six reductions that wait for each other."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, C)
        self.score = nn.Linear(F, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        num_nodes = x.shape[0]
        first = row_softmax(torch.tanh(self.score(x)[src] * self.score(x)[dst]), dst, num_nodes)
        second = row_softmax(3.0 * first - first.square(), dst, num_nodes)
        return row_sum(self.lin(x)[src].unsqueeze(1) * second.unsqueeze(-1), dst, num_nodes).flatten(1)


class MaxNormaliseStd(nn.Module):
    """Messages divided by the row's largest one, then their standard deviation: a max, two means, a square root."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, C)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        src, dst = edge_index
        num_nodes = x.shape[0]
        messages = torch.sigmoid(self.lin(x))[src] * edge_weight.unsqueeze(-1)
        scaled = messages / (row_max(messages, dst, num_nodes)[dst] + 0.5)
        count = row_sum(torch.ones_like(edge_weight), dst, num_nodes).clamp(min=1.0).unsqueeze(-1)
        mean = row_sum(scaled, dst, num_nodes) / count
        variance = row_sum((scaled - mean[dst]).square(), dst, num_nodes) / count
        return mean + (variance + 0.1).sqrt()


class GatedRange(nn.Module):
    """Edges gated by where they lie between the row's smallest and largest score, weighted by the row's gate total; the gate
    goes out as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, C)
        self.score = nn.Linear(2 * F, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        num_nodes = x.shape[0]
        score = torch.tanh(self.score(torch.cat([x[dst], x[src] - x[dst]], dim=-1))).squeeze(-1)
        largest, smallest = row_max(score, dst, num_nodes), -row_max(-score, dst, num_nodes)
        gate = torch.sigmoid((score - smallest[dst]) / (largest - smallest + 0.5)[dst])
        weight = gate / (row_sum(gate, dst, num_nodes)[dst] + 0.5)
        return row_sum(self.lin(x)[src] * weight.unsqueeze(-1), dst, num_nodes), gate


MADE_UP: dict[str, Case] = {
    "softmax_twice": Case(SoftmaxTwice, node_features),
    "max_normalise_std": Case(MaxNormaliseStd, with_edge_weight),
    "gated_range": Case(GatedRange, node_features),
}

CASES: dict[str, Case] = {**LAYERS, **PLAIN, **MADE_UP}

# --- written on edges: what could be computed once per node is computed once per edge ------------------------------------


class NaiveGAT(nn.Module):
    """Attention with both ends' rows side by side per edge: a sum of products, a product with flattened heads, or einsum."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.lin = nn.Linear(F, 2 * C)
        self.att = nn.Parameter(torch.randn(1, 2, 2 * C) / C)
        self.flat = nn.Parameter(torch.randn(4 * C, 2) / C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        h = self.lin(x).view(-1, 2, C)
        both = torch.cat([h[dst], h[src]], dim=-1)
        if self.spelling == "sum":
            score = (both * self.att).sum(-1)
        elif self.spelling == "matmul":
            score = torch.cat([h[dst].flatten(1), h[src].flatten(1)], dim=-1) @ self.flat
        else:
            score = torch.einsum("ehc,hc->eh", both, self.att[0])
        weight = row_softmax(nn.functional.leaky_relu(score, 0.2), dst, x.shape[0])
        return row_sum(h[src] * weight.unsqueeze(-1), dst, x.shape[0]).flatten(1)


class NaiveMixture(nn.Module):
    """A Gaussian mixture per edge, with the neighbour's row multiplied on every edge."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(F, 3 * C) / F)
        self.mean = nn.Parameter(torch.rand(3, MIXTURE_DIM))

    def forward(self, x: Tensor, edge_index: Tensor, pseudo: Tensor) -> Tensor:
        src, dst = edge_index
        gaussian = (-2.0 * (pseudo.unsqueeze(1) - self.mean).square()).sum(-1).exp()
        messages = (x[src] @ self.weight).view(-1, 3, C) * gaussian.unsqueeze(-1)
        return row_sum(messages.sum(1), dst, x.shape[0])


class MessageMLP(nn.Module):
    """Two linear layers around an activation on every edge, then a sum, a mean or a maximum."""

    def __init__(self, aggregation: str, *, num_edge_features: int = 0) -> None:
        super().__init__()
        self.aggregation = aggregation
        self.first = nn.Linear(2 * F + num_edge_features, C)
        self.second = nn.Linear(C, C)

    def forward(self, x: Tensor, edge_index: Tensor, *edge_features: Tensor) -> Tensor:
        src, dst = edge_index
        own, other = x[dst], x[src]
        messages = self.second(torch.relu(self.first(torch.cat([own, other - own, *edge_features], dim=-1))))
        if self.aggregation == "max":
            return row_max(messages, dst, x.shape[0])
        total = row_sum(messages, dst, x.shape[0])
        if self.aggregation == "sum":
            return total
        return total / row_sum(torch.ones_like(messages[:, :1]), dst, x.shape[0]).clamp(min=1.0)


class Aggregators(nn.Module):
    """A linear layer of both ends on edges, reduced in four ways and scaled by the degree."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.post = nn.Linear(2 * F, C), nn.Linear(4 * C, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        num_nodes = x.shape[0]
        messages = self.pre(torch.cat([x[dst], x[src]], dim=-1))
        count = row_sum(torch.ones_like(messages[:, :1]), dst, num_nodes)
        mean = row_sum(messages, dst, num_nodes) / count.clamp(min=1.0)
        variance = row_sum((messages - mean[dst]).square(), dst, num_nodes) / count.clamp(min=1.0)
        reduced = [mean, row_max(messages, dst, num_nodes), -row_max(-messages, dst, num_nodes), (variance + 0.1).sqrt()]
        return self.post(torch.cat(reduced, dim=-1) * (count + 1.0).log())


class Gated(nn.Module):
    """A gate and a message from both ends and the edge's features."""

    def __init__(self) -> None:
        super().__init__()
        width = 2 * F + MIXTURE_DIM
        self.gate, self.message = nn.Linear(width, C), nn.Linear(width, C)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        src, dst = edge_index
        z = torch.cat([x[dst], x[src], edge_attr], dim=-1)
        return row_sum(torch.sigmoid(self.gate(z)) * nn.functional.softplus(self.message(z)), dst, x.shape[0])


class WeightedBefore(nn.Module):
    """Neighbours scaled per edge, then a linear layer, all on edges."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, C, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        src, dst = edge_index
        return row_max(self.lin(edge_weight.unsqueeze(-1) * x[src]), dst, x.shape[0])


ON_EDGES: dict[str, Case] = {
    "naive_gat_sum": Case(lambda: NaiveGAT("sum"), node_features),
    "naive_gat_matmul": Case(lambda: NaiveGAT("matmul"), node_features),
    "naive_gat_einsum": Case(lambda: NaiveGAT("einsum"), node_features),
    "naive_mixture": Case(NaiveMixture, with_pseudo),
    "edge_conv_mlp": Case(
        lambda: pyg.EdgeConv(nn.Sequential(nn.Linear(2 * F, C), nn.ReLU(), nn.Linear(C, C)), aggr="add"), node_features
    ),
    "edge_conv_mlp_mean": Case(
        lambda: pyg.EdgeConv(nn.Sequential(nn.Linear(2 * F, C), nn.Tanh(), nn.Linear(C, C)), aggr="mean"), node_features
    ),
    "edge_conv_mlp_max": Case(
        lambda: pyg.EdgeConv(nn.Sequential(nn.Linear(2 * F, C), nn.ReLU(), nn.Linear(C, C)), aggr="max"), node_features
    ),
    "message_mlp_sum": Case(lambda: MessageMLP("sum"), node_features),
    "message_mlp_mean": Case(lambda: MessageMLP("mean"), node_features),
    "message_mlp_max": Case(lambda: MessageMLP("max"), node_features),
    "message_mlp_edge_features": Case(lambda: MessageMLP("sum", num_edge_features=MIXTURE_DIM), with_pseudo),
    "aggregators": Case(Aggregators, node_features),
    "gated": Case(Gated, with_pseudo),
    "cg_conv": Case(lambda: pyg.CGConv(F, dim=MIXTURE_DIM), with_pseudo),
    "weighted_before": Case(WeightedBefore, with_edge_weight),
}
