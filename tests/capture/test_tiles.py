"""Layers with message MLPs: one program over tiles of edges, forward and backward, and no tensor of edges by features."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from plait.capture.record import Record
from plait.ir.ops import Product, TotalProduct
from plait.ir.program import Program, Space
from tests.awkward import AWKWARD, random_graph
from tests.capture.compiled import captures, compiled
from tests.capture.test_layers import GENERAL, assert_matches_on
from tests.check import assert_matches_eager
from tests.edge_mlps import EDGE_MLPS, mlp
from tests.models import Case
from tests.thorough import cases

SELF_LOOPS = ("GATv2Conv_edges",)  # PyG joins rows to the edge features of a graph with self-loops
PER_EDGE = ("EdgeUpdate", "Decoder")  # what the user gets is a value per edge
WIDTHS = (1, 3, 7, 33, 100, 128)


def programs(records: list[Record], direction: str) -> list[Program]:
    return [program for record in records for program in record.programs.get(direction, [])]


def num_products(found: list[Program]) -> int:
    return sum(isinstance(node.op, Product | TotalProduct) for program in found for node in program.nodes())


@pytest.mark.parametrize("name", cases(EDGE_MLPS, later=["EdgeConv_mlp_mean", "GINEConv", "TransformerConv_edges"]))
def test_layer_matches_eager_and_leaves_nothing_per_edge(name: str) -> None:
    with captures() as records:
        assert_matches_on(EDGE_MLPS[name], GENERAL)

    forward, backward = programs(records, "forward"), programs(records, "backward")
    assert num_products(forward) > 0
    assert num_products(backward) > 0
    if name in SELF_LOOPS:
        return
    assert [note for record in records for note in record.notes if "unfused" in note] == []
    on_edges = [program for program in (*forward, *backward) if program.ordered or program.maps]
    wide = [out for program in on_edges for out in program.outputs if out.value.type.space is Space.EDGE]
    assert wide == [] or name in PER_EDGE or all(out.value.type.numel <= 3 for out in wide)


IN_DOUBLE = ["EdgeConv_mlp_max", "ContinuousFilter", "NormedMessages"]


@pytest.mark.parametrize("name", cases(IN_DOUBLE, later=["ContinuousFilter"]))
def test_layer_matches_eager_in_float64(name: str) -> None:
    assert_matches_on(EDGE_MLPS[name], {"random": AWKWARD["random"], "hub": AWKWARD["huge_in_degree"]}, double=True)


@pytest.mark.parametrize("graph", ["no_nodes", "one_node_self_loop", "one_node_many_self_loops"])
def test_layer_matches_eager_on_sizes_0_and_1(graph: str) -> None:
    assert_matches_on(EDGE_MLPS["EdgeConv_mlp_max"], {graph: AWKWARD[graph]})


@pytest.mark.parametrize("width", WIDTHS)
def test_layers_of_any_width(width: int) -> None:
    graph = random_graph(30, 300, 3)
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def make() -> nn.Module:
        return pyg.EdgeConv(mlp(10, width, width, 6, activation=nn.Tanh), aggr="max")

    assert_matches_eager(Case(make, lambda graph, seed: ()).model(), x, graph.edge_index, compile=compiled)


class Wide(nn.Module):
    """A weight that no tile is made for: torch multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp(4, 600, 600)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        return torch.zeros(x.shape[0], 600).index_add(0, dst, torch.tanh(self.layer(x[src] * x[dst])))


def test_weight_that_is_too_large_stays_outside() -> None:
    graph = random_graph(10, 60, 3)
    with captures() as records:
        assert_matches_eager(Case(Wide, lambda graph, seed: ()).model(), torch.randn(10, 4), graph.edge_index, compile=compiled)

    sizes = [n.type.shape for p in programs(records, "forward") for n in p.nodes() if isinstance(n.op, Product)]
    assert sizes == [(600,)]
