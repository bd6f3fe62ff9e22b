"""Composite operators on edges, and products of an edge's own matrices, leave nothing on edges: the layers of users.

What stands on edges is no tensor of features, forward or backward, whatever the layers are made of.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from torch import Tensor, nn

import plait
from tests.awkward import AWKWARD, RandomGraph
from tests.capture.compiled import captures, compiled
from tests.check import assert_matches_eager
from tests.models import Inputs
from tests.thorough import cases

C = 8
GRAPHS = ("isolated_nodes", "repeated_edges", "random", "huge_in_degree")


class Layer(nn.Module):
    """A function of what stands at both ends of an edge, summed at the target. parts: modules that it uses."""

    def __init__(self, message: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.message, self.parts = message, nn.ModuleList(parts)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        message = self.message(*self.parts, x[src], x[dst])
        return x.new_zeros(x.shape[0], message.shape[-1]).index_add(0, dst, message)


def heads(x: Tensor) -> Tensor:
    return x.view(-1, 2, C // 2)


def attended(a: Tensor, b: Tensor) -> Tensor:
    """Scores between all heads of both ends, as in attention."""
    scores = torch.softmax(heads(a) @ heads(b).transpose(1, 2), -1)
    return torch.einsum("ehk,ekc->ehc", scores, heads(a)).flatten(1)


def gated(lin: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    gate, value = lin(torch.cat([a, b], 1)).chunk(2, -1)
    return torch.sigmoid(gate) * value


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "chunks of a linear layer": lambda: Layer(gated, nn.Linear(2 * C, 2 * C)),
    "glu": lambda: Layer(lambda lin, a, b: F.glu(lin(a + b)), nn.Linear(C, 2 * C)),
    "mish and hard functions": lambda: Layer(lambda a, b: F.mish(a) + F.hardswish(b) * F.hardsigmoid(a - b) + F.celu(a * b)),
    "logsigmoid and prelu": lambda: Layer(lambda prelu, a, b: F.logsigmoid(a - b) * prelu(a + b), nn.PReLU(C)),
    "tanh form of gelu": lambda: Layer(lambda a, b: F.gelu(a - b, approximate="tanh")),
    "batch norm": lambda: Layer(
        lambda lin, norm, a, b: torch.relu(norm(lin(a - b)) + 0.1), nn.Linear(C, C), nn.BatchNorm1d(C, eps=0.1)
    ),
    "batch norm out of training": lambda: Layer(
        lambda norm, a, b: torch.relu(norm(a - b) + 0.1), nn.BatchNorm1d(C, eps=0.1).eval()
    ),
    "group norm": lambda: Layer(lambda norm, a, b: norm(a - 2 * b), nn.GroupNorm(2, C, eps=0.1)),
    "moments of a row": lambda: Layer(lambda a, b: (a - b) / (a.var(-1, keepdim=True) + b.std(-1, keepdim=True) + 0.5)),
    "norms of other orders": lambda: Layer(
        lambda a, b: F.normalize(a + 2, p=1, dim=-1) + b / (b.norm(p=3, dim=-1, keepdim=True) + 1)
    ),
    "distances": lambda: Layer(
        lambda a, b: F.pairwise_distance(a, b + 1)[:, None] * F.cosine_similarity(a, b + 2)[:, None] * a
    ),
    "less their largest": lambda: Layer(
        lambda a, b: torch.tanh(a - (a + b).max(-1, keepdim=True)[0]) * heads(b).min(1).values.repeat(1, 2)
    ),
    "less their mean": lambda: Layer(lambda a, b: torch.tanh(a * b - (a * b).mean(0))),
    "losses": lambda: Layer(lambda a, b: F.smooth_l1_loss(a, b, reduction="none") + F.mse_loss(a, b, reduction="none")),
    "cross entropy": lambda: Layer(lambda a, b: F.binary_cross_entropy_with_logits(a, torch.sigmoid(b), reduction="none")),
    "a GRU on edges": lambda: Layer(lambda cell, a, b: cell(a, torch.tanh(b)), nn.GRUCell(C, C)),
    "an LSTM on edges": lambda: Layer(lambda cell, a, b: cell(a, (torch.tanh(b), b))[0], nn.LSTMCell(C, C)),
    "scores by einsum": lambda: Layer(
        lambda a, b: (torch.tanh(torch.einsum("ehc,ehc->eh", heads(a), heads(b)))[..., None] * heads(a)).flatten(1)
    ),
    "weights by einsum": lambda: Layer(
        lambda lin, a, b: torch.einsum("ei,ej,ijo->eo", torch.tanh(a), b[:, :2], lin.weight.view(C, 2, 3)), nn.Linear(C, 6)
    ),
    "attention between heads": lambda: Layer(attended),
    "matrices of an edge": lambda: Layer(lambda a, b: (torch.tanh(heads(a)).mT @ heads(b)).flatten(1)),
    "every other column": lambda: Layer(lambda a, b: torch.addcmul(a, torch.tanh(a), b)[..., 1::3] * (a * b)[..., :6:2]),
    "outer product": lambda: Layer(lambda a, b: torch.einsum("ei,ej->eij", a[:, :3], b[:, 3:5]).flatten(1)),
}
LATER = [
    "losses",
    "cross entropy",
    "an LSTM on edges",
    "outer product",
    "group norm",
    "tanh form of gelu",
    "logsigmoid and prelu",
]


def inputs_of(graph: RandomGraph) -> Inputs:
    return torch.randn(graph.num_nodes, C, generator=torch.Generator().manual_seed(2)).requires_grad_(), graph.edge_index


@pytest.mark.parametrize("name", cases(LAYERS, later=LATER))
def test_nothing_is_left_on_edges(name: str) -> None:
    torch.manual_seed(0)
    model = LAYERS[name]()
    with captures() as records:
        for graph in GRAPHS:
            assert_matches_eager(model.double(), *map(_double, inputs_of(AWKWARD[graph])), compile=compiled)

    assert [note for record in records for note in record.notes if "unfused" in note or "not fused" in note] == []
    assert all(record.programs["forward"] and record.programs["backward"] for record in records)


def _double(item: Tensor) -> Tensor:
    return item.detach().double().requires_grad_() if item.is_floating_point() else item


@pytest.mark.parametrize("graph", ["no_edges", "one_edge", "one_node_many_self_loops"])
@pytest.mark.parametrize("name", ["batch norm out of training", "chunks of a linear layer", "scores by einsum"])
def test_tiny_graphs_match_eager(name: str, graph: str) -> None:
    torch.manual_seed(0)
    assert_matches_eager(LAYERS[name](), *inputs_of(AWKWARD[graph]), compile=compiled)


def test_an_edge_conv_with_pygs_own_mlp_is_fused() -> None:
    """DGCNN's: batch norms between its layers, whose statistics are sums over all edges."""
    torch.manual_seed(0)
    model = pyg.EdgeConv(pyg.MLP([2 * C, C, C])).double()
    with captures() as records:
        assert_matches_eager(model, *map(_double, inputs_of(AWKWARD["random"])), compile=compiled)

    assert [note for record in records for note in record.notes if "unfused" in note] == []


def smoothness(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    return ((x[edge_index[0]] - x[edge_index[1]]).square() * weight[:, None]).sum()


def mean_smoothness(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    return F.mse_loss(x[edge_index[0]], x[edge_index[1]]) + (x[edge_index[0]].abs().mean() * weight.sum()).square()


def test_a_sum_over_everything_is_fused() -> None:
    x, edge_index = inputs_of(AWKWARD["random"])
    weight = torch.rand(edge_index.shape[1], requires_grad=True)
    with captures() as records:
        assert_matches_eager(smoothness, x, edge_index, weight, compile=compiled)
        assert_matches_eager(mean_smoothness, x, edge_index, weight, compile=compiled)

    assert [note for record in records for note in record.notes if "unfused" in note] == []


BOTH_ENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "unpacked": lambda x, edges: (lambda a, b: torch.cat([a, b - a], 1))(*x[edges]),
    "selected": lambda x, edges: torch.tanh(x[edges][0] - x[edges][1]),
    "side by side": lambda x, edges: torch.sigmoid(x[edges.t()].flatten(1)),
    "turned": lambda x, edges: torch.sigmoid(x[edges].transpose(0, 1).reshape(-1, 2 * C)),
    "sum": lambda x, edges: torch.tanh(x[edges].sum(0)),
    "mean": lambda x, edges: torch.tanh(x[edges.t()].mean(1)),
    "product": lambda x, edges: torch.tanh(x[edges].prod(0)),
    "three of them": lambda x, edges: x[torch.stack([edges[0], edges[1], edges[0]])].mean(0) * x[edges][-1],
}


@pytest.mark.parametrize("name", BOTH_ENDS)
def test_both_ends_gathered_at_once_are_fused(name: str) -> None:
    def layer(x: Tensor, edge_index: Tensor) -> Tensor:
        message = BOTH_ENDS[name](x, edge_index)
        return x.new_zeros(x.shape[0], message.shape[-1]).index_add(0, edge_index[1], message)

    with captures() as records:
        for graph in GRAPHS:
            # with sizes that all vary nothing says that an edge has two ends
            run = compiled if name in ("unpacked", "selected") else plait.compile
            assert_matches_eager(layer, *inputs_of(AWKWARD[graph]), compile=run)

    assert [note for record in records for note in record.notes if "unfused" in note] == []
    assert all(len(record.programs["forward"]) == 1 for record in records)


def test_the_first_of_equal_entries_gets_the_gradient() -> None:
    """And the first NaN, which is larger than everything."""

    def layer(x: Tensor, edge_index: Tensor) -> Tensor:
        message = torch.stack([x[edge_index[0]], x[edge_index[0]].clone(), x[edge_index[1]]], 1)
        return x.new_zeros(x.shape[0], C).index_add(0, edge_index[1], message.max(1)[0] * message.min(1)[0].square())

    assert_matches_eager(layer, *inputs_of(AWKWARD["repeated_edges"]), compile=compiled)
    x, edge_index = inputs_of(AWKWARD["repeated_edges"])
    x = x.detach().clone()
    x[1, 3], x[2] = float("nan"), float("-inf")
    got, want = compiled(layer)(x, edge_index), layer(x, edge_index)
    assert torch.equal(got.isnan(), want.isnan())


def test_a_mask_is_no_pair_of_ends() -> None:
    def chosen(x: Tensor, edge_index: Tensor) -> Tensor:
        return x[:, :2][torch.stack([x[:, 0] > 0, x[:, 1] > 0], 1)].sum(0) * x[edge_index[0]].sum()

    assert_matches_eager(chosen, *inputs_of(AWKWARD["random"]), compile=compiled)


def test_both_ends_used_as_a_whole_match_eager() -> None:
    lin = nn.Linear(C, C)

    def layer(x: Tensor, edge_index: Tensor) -> Tensor:
        a, b = torch.tanh(lin(x[edge_index]))
        return x.new_zeros(x.shape[0], C).index_add(0, edge_index[1], a * b)

    for graph in GRAPHS:
        assert_matches_eager(layer, *inputs_of(AWKWARD[graph]), compile=compiled)
