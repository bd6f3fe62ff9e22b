"""What the forward keeps for the backward: node values, never a value per edge and feature."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tests.awkward import random_graph
from tests.capture.compiled import captures, compiled
from tests.capture.conftest import fresh_dynamo  # noqa: F401 - a fixture
from tests.models import CASES, Inputs

NUM_NODES, NUM_EDGES = 61, 487  # with self-loops: 548; no other size comes near
GRAPH = random_graph(NUM_NODES, NUM_EDGES, 0)
# what the user gives per edge is the user's own memory, and is wanted by the backward as it is
FUSED = (
    "GCNConv",
    "GCNConv_weighted",
    "SAGEConv_mean",
    "SAGEConv_max",
    "GINConv",
    "GraphConv_weighted",
    "GATConv_4_heads",
    "GATConv_dropout",
    "GATv2Conv",
    "TransformerConv",
    "GMMConv",
    "EdgeConv_max",
    "ResGatedGraphConv",
    "SGConv",
    "TAGConv",
    "APPNP",
    "index_add",
    "gather_expanded",
    "index_put",
    "softmax_twice",
    "max_normalise_std",
)


def kept_by(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Every tensor that a compiled forward saves."""
    call = compiled(model)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call(*inputs)
    return kept


def is_per_edge(tensor: Tensor) -> bool:
    return tensor.dim() > 0 and tensor.shape[0] >= NUM_EDGES and not tensor.requires_grad


@pytest.mark.parametrize("name", FUSED)
def test_nothing_per_edge_and_feature_is_kept(name: str) -> None:
    inputs = CASES[name].make_inputs(GRAPH, 0)
    given = {item.untyped_storage().data_ptr() for item in inputs}

    kept = kept_by(CASES[name].model(), inputs)

    assert kept
    own = [item for item in kept if is_per_edge(item) and item.untyped_storage().data_ptr() not in given]
    wide = [tuple(item.shape) for item in own if item.numel() >= 2 * len(item) and item.is_floating_point()]
    assert wide == []


@pytest.mark.parametrize("name", ["GATConv_4_heads", "GATv2Conv", "SAGEConv_max", "max_normalise_std"])
def test_eager_keeps_values_per_edge_and_feature(name: str) -> None:
    """The test above can fail: this is what it looks for."""
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        CASES[name].model()(*CASES[name].make_inputs(GRAPH, 0))

    assert any(is_per_edge(item) and item.numel() >= 2 * len(item) for item in kept)


def test_plan_names_what_is_computed_again() -> None:
    with captures() as records:
        compiled(CASES["GATConv_4_heads"].model())(*CASES["GATConv_4_heads"].make_inputs(GRAPH, 0))

    (record,) = records
    assert any("leaky_relu" in name for name in record.recomputed)
    assert not any(name.startswith("mm") for name in record.recomputed)


def test_forward_without_gradient_keeps_nothing() -> None:
    x, edge_index = CASES["GATConv_4_heads"].make_inputs(GRAPH, 0)
    model = CASES["GATConv_4_heads"].model().requires_grad_(False)

    assert kept_by(model, (x.detach(), edge_index)) == []


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
    kept = kept_by(EdgeOutput(), CASES["GATConv_4_heads"].make_inputs(GRAPH, 0))

    assert not any(is_per_edge(item) and item.is_floating_point() and item.numel() > 2 * len(item) for item in kept)
