"""Inputs and code that Dynamo refuses: `plait.compile` runs the model all the same, and says why it is not compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

import plait
from tests.awkward import random_graph
from tests.capture.compiled import captures, num_programs
from tests.check import assert_matches_eager, assert_same_numbers

N, C = 30, 8


@pytest.fixture(autouse=True)
def lenient(fresh_dynamo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_STRICT", "0")


def unique_edges() -> Tensor:
    return torch.unique(random_graph(N, 200, 3).edge_index % N, dim=1).contiguous()


def features() -> Tensor:
    return torch.randn(N, C, generator=torch.Generator().manual_seed(0))


def quietly(work: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The result, and plait's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    return result, [str(item.message) for item in caught if str(item.message).startswith("plait")]


SPARSE: dict[str, Callable[[], Tensor]] = {
    "csr": lambda: to_torch_csr_tensor(unique_edges().flip(0), size=(N, N)),
    "coo": lambda: to_torch_coo_tensor(unique_edges().flip(0), size=(N, N)),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "SAGE": lambda: pyg.SAGEConv(C, C),
    "GCN, with self-loops": lambda: pyg.GCNConv(C, C),
    "two layers": lambda: pyg.GraphSAGE(C, C, 2, C),
}


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_sparse_adjacency_runs_with_the_reason(layer: str, layout: str) -> None:
    torch.manual_seed(0)
    model = LAYERS[layer]()
    adjacency, _ = quietly(SPARSE[layout])
    run = plait.compile(model)

    got, said = quietly(lambda: [run(features(), adjacency), run(features(), adjacency)][1])

    want, _ = quietly(lambda: model(features(), adjacency))
    assert_same_numbers(got.detach(), want.detach())
    assert len([line for line in said if "sparse" in line]) == 1
    assert "pass edge_index instead" in said[0]


def test_an_edge_index_of_pyg_is_fused() -> None:
    torch.manual_seed(0)
    model = pyg.SAGEConv(C, C)
    edge_index = EdgeIndex(unique_edges(), sparse_size=(N, N)).sort_by("col")[0]
    run = plait.compile(model)
    with captures() as found:
        got, _ = quietly(lambda: run(features().requires_grad_(), edge_index))

    want, _ = quietly(lambda: model(features(), edge_index))
    assert_same_numbers(got.detach(), want.detach())
    assert num_programs(found, "forward") == 1


def test_an_edge_index_between_two_kinds_of_nodes_decides_the_rows_of_the_output() -> None:
    torch.manual_seed(0)
    model, x = pyg.GraphConv((C, C), C), features()
    edge_index = EdgeIndex(torch.tensor([[0, 1, N - 1], [0, 0, 1]]), sparse_size=(N, 2))
    run = plait.compile(model)

    got, said = quietly(lambda: [run((x, None), edge_index), run((x, None), edge_index)][1])

    assert got.shape == (2, C)
    assert_same_numbers(got.detach(), model((x, None), edge_index).detach())
    assert [line for line in said if "pass edge_index and size=" in line] == said[:1]


class Asks(nn.Module):
    """What only an EdgeIndex can do."""

    def forward(self, x: Tensor, edge_index: EdgeIndex) -> Tensor:
        return x * edge_index.get_sparse_size(0)


def test_a_model_that_asks_an_edge_index_for_more_gets_it() -> None:
    edge_index = EdgeIndex(unique_edges(), sparse_size=(N, N))

    got, _ = quietly(lambda: plait.compile(Asks())(features(), edge_index))

    assert_same_numbers(got, features() * N)


class Untraceable(nn.Module):
    """A size that is read from data decides a shape: Dynamo raises an error of its own."""

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        return x.reshape(int(count), -1).tanh()


def test_an_error_inside_dynamo_is_a_reason_and_no_error() -> None:
    run = plait.compile(Untraceable())

    got, _ = quietly(lambda: run(features(), torch.tensor(N // 2)))

    assert_same_numbers(got, features().reshape(N // 2, -1).tanh())


def test_an_error_of_the_model_stays_its_error() -> None:
    def wrong(x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    run = plait.compile(wrong)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        quietly(lambda: run(torch.ones(3, 4), torch.ones(5, 6)))


# --- code that was not rewritten once --------------------------------------------------------------------------------------


def propagate(x: Tensor, edge_index: Tensor) -> Tensor:
    src, dst = edge_index
    return torch.zeros_like(x).index_add(0, dst, x[src])


class Detached(nn.Module):
    """Weights under no_grad, as in a softmax with half a gradient."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        with torch.no_grad():
            weight = x.exp()
            weight = weight / weight.sum(-1, keepdim=True)
        return propagate(x * weight, edge_index)


class Assigned(nn.Module):
    """Writes to a slice of a fresh tensor."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 2 * x.shape[1])
        out[:, : x.shape[1]] = propagate(x, edge_index)
        return out


class TwoLengths(nn.Module):
    """Tensors of different lengths are read and made through one map: their rows are not the same rows."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        totals = torch.zeros(int(dst.max()) + 1, x.shape[1]).index_add(0, dst, x[src])
        return propagate(x, edge_index) + torch.zeros_like(x).index_add(0, src, (x[dst] * totals[dst]).tanh())


class Wide(nn.Module):
    """More columns per edge than a kernel should unroll."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        outer = (x[src].unsqueeze(-1) * x[dst].repeat(1, 80).unsqueeze(1)).tanh()
        return torch.zeros_like(x).index_add(0, dst, outer.sum(-1))


@pytest.mark.parametrize("model", [Detached(), Assigned(), TwoLengths(), Wide()], ids=lambda item: type(item).__name__)
def test_it_has_eager_numbers_and_gradients_and_is_fused(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_STRICT", "1")
    edge_index = random_graph(N, 200, 3).edge_index % (N - 3)
    with captures() as found:
        assert_matches_eager(
            model, features().requires_grad_(), edge_index, compile=lambda item: plait.compile(item, dynamic=True)
        )

    assert num_programs(found, "forward") >= 1
