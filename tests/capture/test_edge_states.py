"""Edges with a state that goes from layer to layer: the work of a step grows with the number of layers, not with its square."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import plait
from plait.ir import ops
from plait.ir.program import Program
from tests.awkward import AWKWARD, RandomGraph
from tests.capture.compiled import captures, compiled, in_double
from tests.check import assert_matches_eager
from tests.models import Inputs

C = 6


class EdgeStates(nn.Module):
    """Messages that are the next state of their edge, as in mesh graph nets; the gate is as in gated graph convolutions."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, C), nn.SiLU(), nn.LayerNorm(C))
        self.edges = nn.ModuleList(nn.Sequential(nn.Linear(3 * C, C), nn.SiLU(), nn.Linear(C, C)) for _ in range(num_layers))
        self.nodes = nn.ModuleList(nn.Linear(2 * C, C) for _ in range(num_layers))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        src, dst = edge_index
        state = self.encoder(edge_attr)
        for edge, node in zip(self.edges, self.nodes, strict=True):
            state = state + edge(torch.cat([x[src], x[dst], state], 1))
            total = torch.zeros_like(x).index_add(0, dst, torch.sigmoid(state) * x[src])
            x = x + torch.tanh(node(torch.cat([x, total], 1)))
        return x


def inputs_of(graph: RandomGraph) -> Inputs:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(graph.num_nodes, C, generator=generator).requires_grad_()
    return x, graph.edge_index, torch.randn(graph.num_edges, 3, generator=generator).requires_grad_()


def num_products(programs: list[Program]) -> int:
    kinds = (ops.Product, ops.TotalProduct)
    return sum(isinstance(node.op, kinds) for program in programs for node in program.nodes())


def products_of(num_layers: int) -> tuple[int, int]:
    torch.manual_seed(0)
    with captures() as records:
        model, inputs = in_double(EdgeStates(num_layers), inputs_of(AWKWARD["random"]))
        assert_matches_eager(model, *inputs, compile=compiled)
    (record,) = records
    assert [note for note in record.notes if "unfused" in note or "not fused" in note] == []
    return num_products(record.programs["forward"]), num_products(record.programs["backward"])


def test_work_grows_with_the_number_of_layers() -> None:
    few, many = products_of(4), products_of(8)

    assert many[0] <= 2 * few[0]
    assert many[1] < 2.5 * few[1]  # it is 3.6 where every program makes all states


@pytest.mark.parametrize("graph", ["isolated_nodes", "repeated_edges", "as_many_edges_as_nodes", "no_edges", "huge_in_degree"])
def test_deep_models_match_eager(graph: str) -> None:
    torch.manual_seed(0)
    model, inputs = in_double(EdgeStates(6), inputs_of(AWKWARD[graph]))
    assert_matches_eager(model, *inputs, compile=compiled)


def test_inference_stores_states_too() -> None:
    torch.manual_seed(0)
    model, inputs = in_double(EdgeStates(6), inputs_of(AWKWARD["random"]))
    with captures() as records, torch.no_grad():
        torch.testing.assert_close(compiled(model)(*inputs), model(*inputs))

    trained, _ = products_of(6)
    assert num_products(records[0].programs["inference"]) <= trained


def test_bits_repeat_and_a_budget_gives_the_same_numbers() -> None:
    torch.manual_seed(0)
    model, inputs = in_double(EdgeStates(6), inputs_of(AWKWARD["random"]))
    results = []
    for options in ({}, {}, {"memory_budget": 0.5}):
        torch._dynamo.reset()
        loss = plait.compile(model, **options)(*inputs).square().sum()
        results.append(torch.autograd.grad(loss, [inputs[0], *model.parameters()]))

    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    for a, b in zip(results[0], results[2], strict=True):
        torch.testing.assert_close(a, b)
