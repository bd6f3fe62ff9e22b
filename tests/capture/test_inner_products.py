"""A weight applied to every head or component of an edge's value leaves nothing on edges, however it is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.awkward import AWKWARD, RandomGraph
from tests.capture.compiled import captures, compiled, in_double
from tests.check import assert_matches_eager
from tests.models import Inputs
from tests.thorough import cases

HEADS, C, OUT = 3, 4, 5
GRAPHS = ("isolated_nodes", "repeated_edges", "as_many_edges_as_nodes", "random", "huge_in_degree")


class Layer(nn.Module):
    """A function of a value [E, HEADS, C] that no law can move to the nodes, of another one, and of weights."""

    def __init__(self, message: Callable[[Tensor, Tensor, Layer], Tensor]) -> None:
        super().__init__()
        self.message = message
        self.shared, self.own = nn.Parameter(torch.randn(C, OUT)), nn.Parameter(torch.randn(HEADS, C, OUT))
        self.mixing, self.vector = nn.Parameter(torch.randn(HEADS, OUT)), nn.Parameter(torch.randn(C))
        self.vectors = nn.Parameter(torch.randn(HEADS, C))
        self.form = nn.Parameter(torch.randn(C, C, OUT))
        self.linear, self.wide = nn.Linear(C, OUT), nn.Linear(C, 20)
        self.bilinear = nn.Bilinear(HEADS * C, HEADS * C, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        first = torch.tanh(x[src] * x[dst]).view(-1, HEADS, C)
        second = torch.sigmoid(x[src] - 2 * x[dst]).view(-1, HEADS, C)
        message = self.message(first, second, self)
        return x.new_zeros(len(x), *message.shape[1:]).index_add(0, dst, message)


LAYERS: dict[str, Callable[[Tensor, Tensor, Layer], Tensor]] = {
    "linear": lambda a, b, m: m.linear(a),
    "wide linear": lambda a, b, m: torch.relu(m.wide(a))[:, 1],
    "matmul": lambda a, b, m: a @ m.shared,
    "matmul from the left": lambda a, b, m: m.mixing.t() @ a,
    "einsum": lambda a, b, m: torch.einsum("ehc,co->eho", a, m.shared),
    "einsum over heads": lambda a, b, m: torch.einsum("ehc,ho->eco", a, m.mixing),
    "einsum to another order": lambda a, b, m: torch.einsum("ehc,co->eoh", a, m.shared),
    "a weight per head": lambda a, b, m: torch.einsum("ehc,hco->eho", a, m.own),
    "a weight per head, turned": lambda a, b, m: torch.einsum("hco,ehc->eoh", m.own, a),
    "a weight per component": lambda a, b, m: torch.einsum("ehc,hco->eco", a, m.own),
    "a vector": lambda a, b, m: a @ m.vector,
    "a vector by einsum": lambda a, b, m: torch.einsum("ehc,c->eh", a, m.vector),
    "a vector per head": lambda a, b, m: torch.softmax(torch.einsum("ehc,hc->eh", a, m.vectors), 1),
    "a vector for all": lambda a, b, m: (a.flatten(1) @ m.vectors.flatten())[:, None] * b[:, 0],
    "a vector and a summand": lambda a, b, m: torch.addmv(b[:, 0, 0], a[:, 1], m.vector)[:, None],
    "three factors": lambda a, b, m: torch.einsum("ehi,ej,ijo->eho", a, b[:, 0], m.form),
    "three factors by head": lambda a, b, m: torch.einsum("ehi,ehj,ijo->eho", a, b, m.form),
    "bilinear": lambda a, b, m: m.bilinear(a.flatten(1), b.flatten(1)),
}
LATER = ["einsum to another order", "a weight per component", "a vector by einsum", "matmul", "three factors"]


def inputs_of(graph: RandomGraph) -> Inputs:
    x = torch.randn(graph.num_nodes, HEADS * C, generator=torch.Generator().manual_seed(3))
    return x.requires_grad_(), graph.edge_index


@pytest.mark.parametrize("name", cases(LAYERS, later=LATER))
def test_nothing_is_left_on_edges(name: str) -> None:
    torch.manual_seed(0)
    model = Layer(LAYERS[name])
    with captures() as records:
        for graph in GRAPHS:
            double, inputs = in_double(model, inputs_of(AWKWARD[graph]))
            assert_matches_eager(double, *inputs, compile=compiled)

    assert [note for record in records for note in record.notes if "unfused" in note or "not fused" in note] == []
    assert all(record.programs["forward"] and record.programs["backward"] for record in records)


@pytest.mark.parametrize("graph", ["no_edges", "one_edge", "one_node_many_self_loops"])
@pytest.mark.parametrize("name", ["linear", "a weight per head", "a vector per head", "bilinear"])
def test_tiny_graphs_match_eager(name: str, graph: str) -> None:
    torch.manual_seed(0)
    assert_matches_eager(Layer(LAYERS[name]), *inputs_of(AWKWARD[graph]), compile=compiled)


def test_many_heads_stay_torchs() -> None:
    """Each would be a product of its own in the kernel."""
    weight = torch.randn(4, 5)

    def layer(x: Tensor, edge_index: Tensor) -> Tensor:
        message = torch.tanh(x[edge_index[0]] * x[edge_index[1]]).view(-1, 40, 4) @ weight
        return x.new_zeros(len(x), 40, 5).index_add(0, edge_index[1], message)

    with captures() as records:
        x = torch.randn(AWKWARD["random"].num_nodes, 160, requires_grad=True)
        assert_matches_eager(layer, x, AWKWARD["random"].edge_index, compile=compiled)

    assert any("unfused" in note or "not fused" in note for record in records for note in record.notes)


class Encoded(nn.Module):
    """Features of edges that meet an end of the edge only behind a norm, a dropout, a maximum."""

    def __init__(self, *encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*encoder)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        code = F.normalize(self.encoder(edge_attr), dim=-1, eps=0.3)
        return torch.zeros_like(x).index_add(0, edge_index[1], code * x[edge_index[0]])


class Largest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 2, x.shape[1] // 2).max(1).values


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: Encoded(nn.Linear(3, C), nn.LayerNorm(C), nn.SiLU(), nn.Linear(C, C)),
    "batch norm": lambda: Encoded(nn.Linear(3, C), nn.BatchNorm1d(C, eps=0.1), nn.Linear(C, C)),
    "dropouts": lambda: Encoded(nn.Linear(3, C), nn.Dropout(0.0), nn.LayerNorm(C), nn.Dropout(0.0), nn.LayerNorm(C)),
    "maximum": lambda: Encoded(nn.Linear(3, 2 * C), Largest()),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_edge_features_is_fused(name: str) -> None:
    torch.manual_seed(0)
    graph, generator = AWKWARD["random"], torch.Generator().manual_seed(4)
    x = torch.randn(graph.num_nodes, C, generator=generator, requires_grad=True)
    edge_attr = torch.randn(graph.num_edges, 3, generator=generator)
    model, inputs = in_double(ENCODERS[name](), (x, graph.edge_index, edge_attr))
    with captures() as records:
        assert_matches_eager(model, *inputs, compile=compiled)

    assert [note for record in records for note in record.notes if "unfused" in note or "not fused" in note] == []
