"""How often a model is captured and how often C++ is built, whatever sizes and modes follow each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from plait.native import library
from tests.awkward import random_graph
from tests.capture.compiled import captures, compiled
from tests.check import assert_matches_eager, assert_same_numbers
from tests.models import Case, node_features
from tests.passes.tracing import numbers

SIZES = [(30, 200), (41, 77), (100, 100), (12, 500), (64, 65), (90, 301)]
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: pyg.GCNConv(12, 8),
    "gat": lambda: pyg.GATConv(12, 8, heads=2),
    "sage_max": lambda: pyg.SAGEConv(12, 8, aggr="max"),
    "edge_conv": lambda: pyg.EdgeConv(nn.Linear(24, 8), aggr="max"),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def symbolic_floats(fresh_dynamo: None) -> Iterator[None]:
    with torch._dynamo.config.patch(specialize_float=False):
        yield


def layer(name: str) -> nn.Module:
    return Case(LAYERS[name], node_features).model()


def step(call: Callable[..., Tensor], num_nodes: int, num_edges: int, *, mark: bool = False) -> Tensor:
    x, edge_index = node_features(random_graph(num_nodes, num_edges, 0), 0)
    if mark:
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(edge_index, 1)
    out = call(x, edge_index)
    out.square().mean().backward()
    return out


@each_layer
def test_unmarked_inputs_are_captured_twice_and_built_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[str] = []
    build = library.build
    monkeypatch.setattr(library, "build", lambda source, name: (sources.append(source), build(source, name))[1])
    model = layer(name)
    call = torch.compile(model, backend="plait")
    with captures() as records:
        outputs = [step(call, *SIZES[0])]
        built = set(sources)
        outputs += [step(call, *size) for size in SIZES[1:]]

    assert len(records) == 2
    assert built
    # the scores of a GAT, sums over the columns of a few rows, are left to PyTorch unless their number may grow
    assert set(sources) == built or name == "gat"
    for size, out in zip(SIZES, outputs, strict=True):
        assert_same_numbers(out, step(model, *size))


@each_layer
def test_marked_inputs_are_captured_once(name: str) -> None:
    call = torch.compile(layer(name), backend="plait")
    with captures() as records:
        for size in SIZES:
            step(call, *size, mark=True)

    assert len(records) == 1


@each_layer
def test_dynamic_is_captured_once_and_falls_back_nowhere(name: str) -> None:
    call = compiled(layer(name))
    with captures() as records:
        for size in SIZES:
            step(call, *size)

    assert len(records) == 1
    assert records[0].fallbacks == []


def test_new_size_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    call = compiled(layer("gat"))
    step(call, *SIZES[0])
    built: list[Any] = []
    monkeypatch.setattr(library, "build", lambda *args, **kwargs: built.append(args))
    monkeypatch.setattr(library, "build_now", lambda *args, **kwargs: built.append(args))
    for size in SIZES[1:]:
        step(call, *size)

    assert built == []


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = pyg.GATConv(12, 8, heads=2, dropout=0.3, add_self_loops=False), pyg.SAGEConv(16, 5)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = torch.nn.functional.dropout(self.norm(self.first(x, edge_index)).relu(), 0.5, self.training)
        result: Tensor = self.second(hidden, edge_index)
        return result


def test_all_modes_of_one_model_stay_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """train, eval, no_grad and inference_mode in turn: inside Dynamo's limit, nothing captured again, no frame given up."""
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    model = Case(TwoLayers, node_features).model()
    call = compiled(model)
    outputs = []

    def round_of_modes() -> None:
        for graph in (random_graph(30, 200, 1), random_graph(50, 120, 2)):
            x, edge_index = node_features(graph, 0)
            model.train()
            call(x, edge_index).square().mean().backward()
            model.eval()
            outputs.append((call(x, edge_index), model(x, edge_index)))
            outputs[-1][0].sum().backward()
            with torch.no_grad():
                outputs.append((call(x, edge_index), model(x, edge_index)))
            with torch.inference_mode():
                outputs.append((call(x, edge_index), model(x, edge_index)))

    with captures() as first:
        round_of_modes()
    with captures() as again:
        round_of_modes()

    assert len(first) <= 6
    assert again == []
    assert not any(record.fallbacks for record in first)
    for got, want in outputs:
        assert_same_numbers(got.detach(), want.detach())


def test_structure_found_under_inference_mode_serves_training() -> None:
    """What is cached under inference_mode must not be an inference tensor: autograd refuses to save those."""
    model = layer("gcn")
    call = compiled(model)
    x, edge_index = node_features(random_graph(33, 150, 9), 0)
    with torch.inference_mode():
        call(x, edge_index)

    out = call(x, edge_index)
    out.sum().backward()

    assert_same_numbers(out, model(x, edge_index))


def test_size_1_after_others_is_right() -> None:
    model = layer("sage_max")
    call = compiled(model)
    for size in ((30, 200), (1, 4), (3, 0), (2, 2)):
        got, want = step(call, *size), step(model, *size)

        assert_same_numbers(got, want)


def test_a_view_of_what_lies_otherwise_in_memory_copies() -> None:
    """A number put where a mask is set has the layout of its base in eager; a choice need not have it."""

    def padded(x: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        rows = x.view(3, 4, 2).transpose(0, 1)
        rows = rows.index_put((mask,), torch.zeros(()))
        return rows.transpose(0, 1).view(-1, 2).index_select(0, index)

    mask = torch.tensor([[True, False, False], [False] * 3, [True, True, False], [False] * 3])
    x, index = numbers(12, 2).requires_grad_(), torch.tensor([0, 3, 3, 11])
    fixed = functools.partial(torch.compile, backend="plait", dynamic=False)
    assert_matches_eager(padded, x, mask, index, compile=fixed, num_steps=2)


def test_a_linear_layer_over_several_axes_of_rows_takes_all_sizes() -> None:
    linear = nn.Linear(4, 3)

    def heads(x: Tensor, edge_index: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], 2, 3).index_add(0, edge_index[1], linear(x[edge_index[0]]))

    with captures() as records:
        run = compiled(heads)
        for num_nodes in (9, 20, 31):
            x, edge_index = torch.randn(num_nodes, 2, 4, requires_grad=True), torch.randint(num_nodes, (2, 3 * num_nodes))
            assert_same_numbers(run(x, edge_index).detach(), heads(x, edge_index).detach())

    assert len(records) == 1
