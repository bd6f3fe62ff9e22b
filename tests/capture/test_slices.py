"""Models that read few rows of what they compute: numbers of eager, one capture for all sizes, and no work for the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.utils import trim_to_layer

from tests.awkward import AWKWARD, random_graph
from tests.capture.compiled import captures, compiled, in_double
from tests.check import assert_matches_eager
from tests.thorough import cases

F, H = 6, 8

LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "gcn": lambda a, b: pyg.GCNConv(a, b),
    "sage": lambda a, b: pyg.SAGEConv(a, b),
    "sage_max": lambda a, b: pyg.SAGEConv(a, b, aggr="max"),
    "gat": lambda a, b: pyg.GATConv(a, b // 4, heads=4),
    "gin": lambda a, b: pyg.GINConv(nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU(), nn.Linear(b, b))),
    "edge_conv": lambda a, b: pyg.EdgeConv(nn.Sequential(nn.Linear(2 * a, b), nn.ReLU(), nn.Linear(b, b)), aggr="mean"),
    "transformer": lambda a, b: pyg.TransformerConv(a, b // 2, heads=2),
}


class Sliced(nn.Module):
    """Layers of which the first rows of the last are read."""

    def __init__(self, make: Callable[[int, int], nn.Module], dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([make(F, H), make(H, H)])
        self.dropout = dropout

    def forward(self, x: Tensor, edge_index: Tensor, size: int) -> Tensor:
        for layer in self.layers:
            x = torch.nn.functional.dropout(torch.relu(layer(x, edge_index)), self.dropout)
        return x[:size]


class Trimmed(nn.Module):
    """A sampled batch whose layers compute what the next one needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([pyg.SAGEConv(F, H), pyg.SAGEConv(H, H), pyg.SAGEConv(H, H)])

    def forward(self, x: Tensor, edge_index: Tensor, nodes: list[int], edges: list[int]) -> Tensor:
        for number, layer in enumerate(self.layers):
            x, edge_index, _ = trim_to_layer(number, nodes, edges, x, edge_index)
            x = torch.relu(layer(x, edge_index))
        return x[: nodes[0]]


def inputs_of(graph: str, size: int) -> tuple[Tensor, Tensor, int]:
    found = AWKWARD[graph]
    x = torch.randn(found.num_nodes, F, generator=torch.Generator().manual_seed(3)).requires_grad_()
    return x, found.edge_index, size


GRAPHS = ("random", "huge_in_degree", "huge_out_degree", "repeated_edges", "isolated_nodes", "last_rows_empty", "self_loops")


@pytest.mark.parametrize("name", cases(LAYERS, later=["gcn", "sage", "transformer"]))
def test_numbers_match_eager_in_one_capture_for_all_sizes(name: str) -> None:
    torch.manual_seed(0)
    model = Sliced(LAYERS[name])
    with captures() as records:
        for graph in GRAPHS:
            for size in (2, 3):
                assert_matches_eager(model, *inputs_of(graph, size), compile=compiled)

    assert len(records) == 1
    assert any("only the rows that are read" in line for line in records[0].moved)
    assert not records[0].fallbacks


@pytest.mark.parametrize(
    "graph", ["no_nodes", "one_node_no_edges", "one_node_many_self_loops", "no_edges", "one_edge", "random"]
)
@pytest.mark.parametrize("size", [0, 1])
def test_numbers_match_eager_on_sizes_0_and_1(graph: str, size: int) -> None:
    if size > AWKWARD[graph].num_nodes:
        pytest.skip("fewer rows than that")
    model = Sliced(LAYERS["gat"])
    model.layers[1] = LAYERS["sage_max"](H, H)  # every capture takes a second: two kinds of layer in one
    assert_matches_eager(model, *inputs_of(graph, size), compile=compiled)


@pytest.mark.parametrize("name", ["gat", "gin"])
def test_numbers_match_eager_in_float64(name: str) -> None:
    model, inputs = in_double(Sliced(LAYERS[name]), inputs_of("huge_in_degree", 5))
    assert_matches_eager(model, *inputs, compile=compiled)


def test_programs_of_the_last_layer_run_on_its_first_rows() -> None:
    graph = random_graph(300, 2000, 1)
    model = compiled(Sliced(LAYERS["gat"]))
    with captures() as records:
        out = model(torch.randn(300, F).requires_grad_(), graph.edge_index, 7)
        out.sum().backward()

    seen = [launch.seen for launch in records[0].launches["forward"] if launch.seen and launch.program.ordered]
    assert [rows for _, rows, _ in seen] == [300, 7]
    assert seen[1][0] == int((graph.dst < 7).sum()) + 7  # and the self-loops
    assert out.shape[0] == 7


def test_trimmed_layers_match_eager_in_one_capture() -> None:
    torch.manual_seed(0)
    model = Trimmed()
    with captures() as records:
        for seed, nodes, edges in ((0, (4, 9, 20), (8, 15, 31)), (1, (5, 7, 30), (9, 12, 40))):
            generator = torch.Generator().manual_seed(seed)
            ends, total = [], nodes[0]
            for hop, count in enumerate(edges):  # a hop's edges lead into the nodes so far, and their sources may be new
                known, total = total, total + (nodes[hop + 1] if hop + 1 < len(nodes) else 6)
                ends.append(
                    torch.stack(
                        [
                            torch.randint(total, (count,), generator=generator),
                            torch.randint(known, (count,), generator=generator),
                        ]
                    )
                )
            x = torch.randn(total, F, generator=generator).requires_grad_()
            sizes = [*nodes, 6]
            assert_matches_eager(model, x, torch.cat(ends, 1), sizes, list(edges), compile=compiled)

    assert len(records) == 1
    assert sum("only the rows that are read" in line for line in records[0].moved) >= 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sliced(LAYERS["sage"], dropout=0.5),
        lambda: Sliced(lambda a, b: pyg.GATConv(a, b // 4, heads=4, dropout=0.5)),
    ],
    ids=["of nodes, for all rows", "of edges, by the user's order"],
)
def test_dropout_has_the_draws_that_it_has_without_the_slice(make: Callable[[], nn.Module]) -> None:
    """So that the seed gives what it gave."""
    x, edge_index, _ = inputs_of("random", 3)
    results = []
    for size in (30, 3):
        torch._dynamo.reset()
        torch.manual_seed(0)
        results.append(compiled(make())(x, edge_index, size)[:3])

    assert torch.allclose(results[0], results[1], atol=1e-6)


def test_edge_features_get_their_gradient() -> None:
    class Weighted(nn.Module):
        def forward(self, x: Tensor, weight: Tensor, edge_index: Tensor, size: int) -> Tensor:
            src, dst = edge_index
            hidden = torch.zeros_like(x).index_add(0, dst, torch.tanh(x[src] * weight))
            return torch.zeros_like(x).index_add(0, dst, torch.tanh(hidden[src] + weight))[:size]

    x, edge_index, size = inputs_of("random", 4)
    weight = torch.randn(edge_index.shape[1], F, generator=torch.Generator().manual_seed(4)).requires_grad_()
    with captures() as records:
        assert_matches_eager(Weighted(), x, weight, edge_index, size, compile=compiled)

    assert all(launch.program.ordered for launch in records[0].launches["forward"])
    assert len(records[0].launches["forward"]) == 2
