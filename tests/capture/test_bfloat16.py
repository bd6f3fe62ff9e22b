"""bfloat16 models and autocast: fused, as near to the exact result as eager is, and halves of the bytes in tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.awkward import random_graph
from tests.capture.compiled import captures, compiled, floats_as, in_double, num_programs
from tests.check import Numbers, training_step
from tests.models import CASES, MADE_UP
from tests.thorough import cases

GRAPH = random_graph(60, 900, 3)
FUSED = (
    *("GCNConv", "GCNConv_weighted", "SAGEConv_mean", "SAGEConv_max", "GINConv", "GATConv_4_heads", "GATv2Conv"),
    *("TransformerConv", "ResGatedGraphConv", "GMMConv", "global_max_pool", *MADE_UP),
)  # not EdgeConv_max: its two halves often cancel to 0 here, where PyTorch counts the 0 that a maximum starts from as a tie


def numbers_of(step: Numbers) -> dict[str, Tensor]:
    """Outputs and gradients."""
    return {**step.outputs, **{name: grad for name, grad in step.gradients.items() if grad is not None}}


def error(found: Tensor, exact: Tensor) -> float:
    """Of the whole tensor, as a share of its size."""
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm().clamp(min=1e-3))


LATER = ("SAGEConv_mean", "GCNConv_weighted", "GMMConv", "GINConv", "GATv2Conv", "TransformerConv", "ResGatedGraphConv")


@pytest.mark.parametrize("name", cases(FUSED, LATER))
def test_it_is_fused_and_as_exact_as_eager(name: str) -> None:
    case = CASES[name]
    model, inputs = case.model().bfloat16(), floats_as(torch.bfloat16, case.make_inputs(GRAPH, 0))
    exact_model, exact_inputs = in_double(copy.deepcopy(model), inputs)
    exact = numbers_of(training_step(exact_model, None, exact_inputs))
    eager = numbers_of(training_step(model, None, inputs))
    with captures() as records:
        got = numbers_of(training_step(model, compiled(model), inputs))

    assert num_programs(records, "forward") > 0
    assert [note for record in records for note in record.notes if "unfused" in note] == [] or name == "GCNConv_weighted"
    assert got.keys() == eager.keys() == exact.keys()
    for key, want in exact.items():
        assert got[key].dtype is torch.bfloat16
        assert error(got[key], want) <= 1.5 * error(eager[key], want) + 0.03, key


def test_sums_are_in_float32() -> None:
    """4,096 ones and 4,096 halves: in bfloat16, whose numbers are 32 apart there, the halves would be lost."""
    num_edges = 8192
    src = torch.arange(num_edges) % 2
    dst = torch.zeros(num_edges, dtype=torch.int64)

    def neighbours(x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, dst, x[src] * 1.0)

    x = torch.tensor([[1.0], [0.5]], dtype=torch.bfloat16, requires_grad=True)
    out = compiled(neighbours)(x)

    assert out[:, 0].tolist() == [6144.0, 0.0]


def test_a_maximum_finds_its_entries_again() -> None:
    """The backward compares messages, computed again, with the rounded maximum that the forward stored."""
    src, dst = GRAPH.src, GRAPH.dst

    def layer(x: Tensor) -> Tensor:
        messages = torch.tanh(x[src] * 1.7) * x[dst]
        index = dst[:, None].expand_as(messages)
        return torch.zeros_like(x).scatter_reduce(0, index, messages, "amax", include_self=False)

    grads = []
    for call in (layer, compiled(layer)):
        x = torch.randn(GRAPH.num_nodes, 8, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
        call(x).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)

    assert error(grads[1], grads[0].double()) < 0.02


def test_under_autocast_the_edges_are_in_bfloat16() -> None:
    case = CASES["GCNConv"]
    model, inputs = case.model(), case.make_inputs(GRAPH, 0)
    with torch.autocast("cpu", torch.bfloat16):
        want = model(*inputs)
        with captures() as records:
            got = compiled(model)(*inputs)

    programs = [program for record in records for program in record.programs["forward"]]
    assert any(item.dtype is torch.bfloat16 for program in programs for item in program.inputs)
    assert got.dtype is want.dtype
    assert error(got, want.double()) < 0.02
