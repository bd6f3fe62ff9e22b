"""Outputs and all gradients of compiled layers are those of the un-compiled ones, on graphs that break things."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from tests.awkward import AWKWARD, RandomGraph, random_graph
from tests.capture.compiled import captures, compiled, edge_programs, in_double, num_programs, saved_tensors, wide_per_edge
from tests.check import assert_matches_eager
from tests.models import CASES, LAYERS, MADE_UP, PLAIN, Case, node_features, row_max, with_edge_weight
from tests.thorough import IS_THOROUGH, cases

EXACT = {name: case for name, case in CASES.items() if not case.draws}
# Dynamo captures sizes 0 and 1 each on their own, and every capture costs a second: these graphs get a few cases of each kind
TINY = {name: graph for name, graph in AWKWARD.items() if graph.num_nodes < 2 or graph.num_edges < 2}
GENERAL = {name: graph for name, graph in AWKWARD.items() if name not in TINY}
ON_TINY = ("GCNConv", "SAGEConv_max", "GATConv_1_head")
BACKWARD_IS_A_GATHER = ("global_add_pool", "global_mean_pool")  # which nothing is fused with
WEIGHTS_ARE_MASKED = ("GCNConv_weighted",)  # without and with self-loops, a number per edge, by operators that move entries
KEPT_ON = random_graph(61, 487, 0)  # no other size comes near its number of edges

# that stream edges, forward and backward. One map one kernel: the backward of what reads both ends has one by dst, one by src
NUM_KERNELS = {
    "GCNConv": (1, 1),
    "SAGEConv_mean": (1, 1),
    "SAGEConv_max": (1, 2),
    "GATConv_4_heads": (1, 2),
    "GATv2Conv": (1, 2),
    "TransformerConv": (1, 2),
    "ResGatedGraphConv": (1, 2),
    "index_add": (1, 1),
    "softmax_twice": (1, 2),
}


def assert_matches_on(case: Case, graphs: dict[str, RandomGraph], *, double: bool = False) -> None:
    for name, graph in graphs.items():
        model, inputs = case.model(), case.make_inputs(graph, 0)
        if double:
            model, inputs = in_double(model, inputs)
        try:
            assert_matches_eager(model, *inputs, compile=compiled)
        except Exception as error:
            error.add_note(f"graph: {name}")
            raise


@pytest.mark.parametrize("name", EXACT)
def test_layer_is_fused_and_matches_eager(name: str) -> None:
    case = EXACT[name]
    with captures() as records:
        assert_matches_on(case, GENERAL)
        inputs = case.make_inputs(KEPT_ON, 0)
        kept = saved_tensors(compiled(case.model()), inputs)

    assert len(records) == 1
    assert num_programs(records, "forward") > 0
    assert num_programs(records, "backward") > 0 or name in BACKWARD_IS_A_GATHER
    left = [note for record in records for note in record.notes if "unfused" in note]
    assert left == [] or name in (*BACKWARD_IS_A_GATHER, *WEIGHTS_ARE_MASKED)
    assert kept
    assert wide_per_edge(kept, inputs, KEPT_ON.num_edges) == []
    if name in NUM_KERNELS:
        assert (len(edge_programs(records[0], "forward")), len(edge_programs(records[0], "backward"))) == NUM_KERNELS[name]


# With one edge (self-loops counted) Dynamo knows that size: a value per edge loses its axis and counts as a weight
ON_SIZES_0_AND_1 = [(name, graph) for name in (EXACT if IS_THOROUGH else ON_TINY) for graph in TINY]


@pytest.mark.parametrize(("name", "graph"), ON_SIZES_0_AND_1)
def test_layer_matches_eager_on_sizes_0_and_1(name: str, graph: str) -> None:
    assert_matches_on(EXACT[name], {graph: TINY[graph]})


IN_DOUBLE = ["GCNConv_weighted", "SAGEConv_max", "GATv2Conv", "TransformerConv", "GMMConv", *MADE_UP]


@pytest.mark.parametrize("name", cases(IN_DOUBLE, later=["TransformerConv", "GMMConv"]))
def test_layer_matches_eager_in_float64(name: str) -> None:
    """Rounding is far away here: what differs is a formula."""
    assert_matches_on(EXACT[name], GENERAL, double=True)


# --- widths and heads ------------------------------------------------------------------------------------------------

WIDTHS = (1, 3, 7, 33, 100, 500)
GAT_SHAPES = [(1, 8), (3, 3), (7, 8), (33, 1), (100, 8), (500, 3)]
GATV2_SHAPES = [(1, 3), (3, 8), (7, 1), (33, 3), (100, 1), (500, 8)]
SMALL = random_graph(30, 200, 3)


def assert_layer_matches(make_layer: Callable[[], nn.Module]) -> None:
    assert_matches_eager(Case(make_layer, node_features).model(), *node_features(SMALL, 0), compile=compiled)


@pytest.mark.parametrize("width", WIDTHS)
def test_gcn_of_any_width(width: int) -> None:
    assert_layer_matches(lambda: pyg.GCNConv(12, width))


@pytest.mark.parametrize("width", WIDTHS)
def test_sage_max_of_any_width(width: int) -> None:
    model = Case(lambda: pyg.SAGEConv((width, 12), 4, aggr="max"), node_features).model()
    x = torch.randn(SMALL.num_nodes, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.randn(SMALL.num_nodes, 12, generator=torch.Generator().manual_seed(1))

    assert_matches_eager(model, (x, target), SMALL.edge_index, compile=compiled)


@pytest.mark.parametrize(("width", "heads"), GAT_SHAPES)
def test_gat_of_any_width_and_heads(width: int, heads: int) -> None:
    assert_layer_matches(lambda: pyg.GATConv(12, width, heads=heads))


@pytest.mark.parametrize(("width", "heads"), GATV2_SHAPES)
def test_gatv2_of_any_width_and_heads(width: int, heads: int) -> None:
    assert_layer_matches(lambda: pyg.GATv2Conv(12, width, heads=heads))


# --- what else a layer takes and gives ---------------------------------------------------------------------------------


class WithAttention(nn.Module):
    """A layer that also returns its edges and their attention."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, (edges, attention) = self.layer(x, edge_index, return_attention_weights=True)
        return out, edges, attention


@pytest.mark.parametrize("layer", [pyg.GATConv, pyg.GATv2Conv, pyg.TransformerConv])
def test_attention_weights_are_returned_with_their_gradient(layer: type[nn.Module]) -> None:
    assert_layer_matches(lambda: WithAttention(layer(12, 8, heads=2)))


class WithEdgeFeatures(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        result: Tensor = self.layer(x, edge_index, edge_attr.unsqueeze(-1) * torch.arange(1.0, 4.0))
        return result


@pytest.mark.parametrize("layer", [pyg.GATConv, pyg.GATv2Conv, pyg.TransformerConv])
def test_edge_features_get_gradients(layer: type[nn.Module]) -> None:
    model = Case(lambda: WithEdgeFeatures(layer(12, 8, heads=2, edge_dim=3)), with_edge_weight).model()

    assert_matches_eager(model, *with_edge_weight(SMALL, 0), compile=compiled)


def test_input_without_gradient_gets_none() -> None:
    x, edge_index = node_features(SMALL, 0)

    assert_matches_eager(LAYERS["GATConv_1_head"].model(), x.detach(), edge_index, compile=compiled)


class Bipartite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = pyg.SAGEConv((12, 5), 8)

    def forward(self, x: Tensor, target: Tensor, edge_index: Tensor) -> Tensor:
        result: Tensor = self.layer((x, target), edge_index)
        return result


def test_messages_between_two_sets_of_nodes() -> None:
    x, _ = node_features(SMALL, 0)
    target = torch.randn(11, 5).requires_grad_()
    edge_index = torch.stack([SMALL.src, SMALL.dst % 11])

    assert_matches_eager(Case(Bipartite, node_features).model(), x, target, edge_index, compile=compiled)


class GraphClassifier(nn.Module):
    """Two layers, then one vector per graph of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = pyg.GCNConv(12, 8), pyg.GCNConv(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.second(self.first(x, edge_index).relu(), edge_index).tanh()
        return torch.cat([pool(x, batch, 4) for pool in (pyg.global_add_pool, pyg.global_mean_pool, pyg.global_max_pool)], -1)


def test_nodes_are_pooled_by_their_graph() -> None:
    batch = (torch.arange(SMALL.num_nodes) * 3) // SMALL.num_nodes  # the fourth graph has no nodes

    assert_matches_eager(Case(GraphClassifier, node_features).model(), *node_features(SMALL, 0), batch, compile=compiled)


# --- ties ------------------------------------------------------------------------------------------------------------


class Largest(nn.Module):
    """The largest message of a row: PyG's maximum, and one that counts the zero it starts from."""

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        started = torch.zeros_like(x).scatter_reduce(0, dst.unsqueeze(-1).expand(-1, x.shape[1]), x[src], "amax")
        return row_max(x[src], dst, x.shape[0]), started


def test_ties_share_the_gradient_as_in_eager(generator: torch.Generator) -> None:
    """Zero is the value a row starts from, and it counts as one of those that tie even where it took no part."""
    for values in ((-1.0, 0.0), (0.0, 1.0), (-2.0, -1.0), (0.0,), (-1.0, 0.0, 1.0)):
        chosen = torch.tensor(values)[torch.randint(len(values), (SMALL.num_nodes, 3), generator=generator)]

        assert_matches_eager(Largest(), chosen.requires_grad_(), SMALL.edge_index, compile=compiled)


@pytest.mark.parametrize("name", ["SAGEConv_max", "GCNConv", "softmax_twice"])
def test_special_numbers_spread_as_in_eager(name: str) -> None:
    x, edge_index = node_features(SMALL, 0)
    for special in (float("nan"), float("inf"), -float("inf")):
        spoiled = x.detach().clone()
        spoiled[4, 2] = special

        assert_matches_eager(CASES[name].model(), spoiled, edge_index, compile=compiled, backward=False)


def test_every_kind_of_case_is_here() -> None:
    assert {*LAYERS, *PLAIN, *MADE_UP} - set(EXACT) == {"GATConv_dropout"}
