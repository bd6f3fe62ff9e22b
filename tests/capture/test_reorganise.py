"""Models written on edges run their products on nodes, with outputs and gradients of eager PyTorch."""

from __future__ import annotations

import pytest

from tests.awkward import AWKWARD
from tests.capture.compiled import captures, compiled, in_double
from tests.check import assert_matches_eager
from tests.models import ON_EDGES
from tests.thorough import cases

GRAPHS = {name: graph for name, graph in AWKWARD.items() if graph.num_nodes > 1 and graph.num_edges > 1}
TINY = ("no_nodes", "one_node_many_self_loops", "no_edges", "one_edge")


def num_products_left(notes: list[str], direction: str) -> int:
    """How many a capture noted, as in "forward: aten.mm.default on edges runs unfused (2x)"."""
    products = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.mv.")
    found = [
        note for note in notes if note.startswith(direction) and "on edges" in note and any(name in note for name in products)
    ]
    return sum(int(note.rpartition("(")[2].removesuffix("x)")) for note in found)


@pytest.mark.parametrize("name", cases(ON_EDGES, later=["naive_gat_sum", "edge_conv_mlp_mean", "message_mlp_max", "cg_conv"]))
def test_products_run_on_nodes_and_numbers_match_eager(name: str) -> None:
    with captures() as records:
        for graph in GRAPHS.values():
            assert_matches_eager(ON_EDGES[name].model(), *ON_EDGES[name].make_inputs(graph, 0), compile=compiled)

    assert len(records) == 1
    for direction in ("forward", "backward"):  # what cannot move to the nodes runs inside of kernels
        assert num_products_left(records[0].notes, direction) == 0


IN_DOUBLE = ["naive_gat_einsum", "message_mlp_mean", "gated", "aggregators"]


@pytest.mark.parametrize("name", cases(IN_DOUBLE, later=["gated", "aggregators"]))
def test_numbers_match_eager_in_float64(name: str) -> None:
    for graph in ("random", "huge_in_degree", "repeated_edges"):
        model, inputs = in_double(ON_EDGES[name].model(), ON_EDGES[name].make_inputs(AWKWARD[graph], 0))
        assert_matches_eager(model, *inputs, compile=compiled)


@pytest.mark.parametrize("graph", TINY)
@pytest.mark.parametrize("name", cases(["naive_gat_matmul", "message_mlp_mean", "gated"], later=["gated"]))
def test_numbers_match_eager_on_sizes_0_and_1(name: str, graph: str) -> None:
    assert_matches_eager(ON_EDGES[name].model(), *ON_EDGES[name].make_inputs(AWKWARD[graph], 0), compile=compiled)
