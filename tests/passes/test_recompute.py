"""What the forward keeps for the backward: node values, never a value per edge and feature.

`tests/capture/test_layers.py` looks for such values in every layer.
"""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from tests.awkward import random_graph
from tests.capture.compiled import captures, compiled, saved_tensors, wide_per_edge
from tests.capture.conftest import fresh_dynamo  # noqa: F401 - a fixture
from tests.models import CASES

NUM_NODES, NUM_EDGES = 61, 487  # with self-loops: 548; no other size comes near
GRAPH = random_graph(NUM_NODES, NUM_EDGES, 0)


@pytest.mark.parametrize("name", ["GATConv_4_heads", "GATv2Conv", "SAGEConv_max", "max_normalise_std"])
def test_eager_keeps_values_per_edge_and_feature(name: str) -> None:
    """What is looked for is there to be found."""
    inputs = CASES[name].make_inputs(GRAPH, 0)

    assert wide_per_edge(saved_tensors(CASES[name].model(), inputs), inputs, NUM_EDGES) != []


def test_dropout_keeps_no_mask() -> None:
    inputs = CASES["GATConv_dropout"].make_inputs(GRAPH, 0)
    kept = saved_tensors(compiled(CASES["GATConv_dropout"].model()), inputs)

    assert kept
    assert not any(tensor.dtype is torch.bool or (tensor.is_floating_point() and len(tensor) >= NUM_EDGES) for tensor in kept)


def test_plan_names_what_is_computed_again() -> None:
    with captures() as records:
        compiled(CASES["GATConv_4_heads"].model())(*CASES["GATConv_4_heads"].make_inputs(GRAPH, 0))

    (record,) = records
    assert any("leaky_relu" in name for name in record.recomputed)
    assert not any(name.startswith("mm") for name in record.recomputed)


def test_forward_without_gradient_keeps_nothing() -> None:
    x, edge_index = CASES["GATConv_4_heads"].make_inputs(GRAPH, 0)
    model = CASES["GATConv_4_heads"].model().requires_grad_(False)

    assert saved_tensors(compiled(model), (x.detach(), edge_index)) == []


class EdgeOutput(nn.Module):
    """Messages the user asked for are the user's own; the backward may read them, or compute them again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = pyg.GATConv(12, 8, heads=2)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        out, (_, attention) = self.layer(x, edge_index, return_attention_weights=True)
        return out, attention


def test_attention_that_goes_out_is_no_reason_to_keep_more() -> None:
    torch.manual_seed(0)
    inputs = CASES["GATConv_4_heads"].make_inputs(GRAPH, 0)
    kept = saved_tensors(compiled(EdgeOutput()), inputs)

    assert all(shape[1:] == (2,) for shape in wide_per_edge(kept, inputs, NUM_EDGES))  # a number per head at most
