"""Layers made up after the compiler was written: equal to eager, and no tensor of edges by features in either half."""

from __future__ import annotations

import pytest

from plait.ir.program import Space
from tests.awkward import AWKWARD
from tests.capture.compiled import captures, compiled
from tests.capture.test_layers import GENERAL, assert_matches_on
from tests.capture.test_tiles import programs
from tests.check import assert_matches_eager
from tests.made_up import EDGE_DIM, MADE_UP_LAYERS
from tests.thorough import cases


@pytest.mark.parametrize("name", MADE_UP_LAYERS)
def test_made_up_layer_fuses_and_matches_eager(name: str) -> None:
    with captures() as records:
        assert_matches_on(MADE_UP_LAYERS[name], GENERAL)

    assert len(records) == 1
    assert [note for record in records for note in record.notes if "unfused" in note] == []
    found = [*programs(records, "forward"), *programs(records, "backward")]
    on_edges = [program for program in found if program.ordered or program.maps]
    wide = [out for program in on_edges for out in program.outputs if out.value.type.space is Space.EDGE]
    assert all(out.value.type.numel <= EDGE_DIM for out in wide)  # the gradient of edge features, which the user asked for


@pytest.mark.parametrize("name", cases(MADE_UP_LAYERS, later=["RivalryConv", "TransportConv"]))
def test_made_up_layer_matches_eager_in_float64(name: str) -> None:
    assert_matches_on(MADE_UP_LAYERS[name], {"random": AWKWARD["random"], "hub": AWKWARD["huge_in_degree"]}, double=True)


@pytest.mark.parametrize("graph", ["no_nodes", "no_edges", "one_node_many_self_loops"])
def test_made_up_layer_matches_eager_on_sizes_0_and_1(graph: str) -> None:
    case = MADE_UP_LAYERS["EchoConv"]

    assert_matches_eager(case.model(), *case.make_inputs(AWKWARD[graph], 0), compile=compiled)
