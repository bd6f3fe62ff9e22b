"""Typed graphs, pairs of node sets, trimmed layers and batches of small graphs: right, and captured once whatever the sizes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.utils import trim_to_layer

from tests.capture.compiled import captures, compiled
from tests.check import assert_matches_eager, assert_same_numbers
from tests.thorough import cases

C = 8
KINDS = (("a", "to", "b"), ("b", "back", "a"), ("a", "near", "a"))
Kinds = tuple[tuple[str, str, str], ...]
Typed = tuple[dict[str, Tensor], dict[tuple[str, str, str], Tensor]]


@pytest.fixture(autouse=True)
def nothing_compiled(fresh_dynamo: None) -> None:
    """Of other tests."""


def typed_graph(num_a: int, num_b: int, num_edges: int, kinds: Kinds = KINDS) -> Typed:
    generator = torch.Generator().manual_seed(num_a)
    sizes = {"a": num_a, "b": num_b}
    xs = {name: torch.randn(size, C, generator=generator, requires_grad=True) for name, size in sizes.items()}
    edges = {}
    for number, kind in enumerate(kinds):
        src = torch.randint(sizes[kind[0]], (num_edges + number,), generator=generator)
        edges[kind] = torch.stack([src, torch.randint(sizes[kind[2]], (num_edges + number,), generator=generator)])
    return xs, edges


class Sage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = pyg.SAGEConv((C, C), C), pyg.SAGEConv((C, C), C, aggr="max")

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)  # type: ignore[no-any-return]


TYPED: dict[str, Callable[[], nn.Module]] = {
    "HeteroConv": lambda: pyg.HeteroConv(
        {
            KINDS[0]: pyg.SAGEConv((C, C), C),
            KINDS[1]: pyg.GATConv((C, C), C, add_self_loops=False),
            KINDS[2]: pyg.GCNConv(C, C),
        }
    ),
    "to_hetero": lambda: pyg.to_hetero(Sage(), (["a", "b"], list(KINDS))),
    "HGTConv": lambda: pyg.HGTConv(C, C, (["a", "b"], list(KINDS[:2])), heads=2),
}


@pytest.mark.parametrize("name", cases(TYPED, later=["HGTConv"]))
def test_a_typed_graph_is_right_and_captured_once(name: str) -> None:
    torch.manual_seed(0)
    model = TYPED[name]()
    run = compiled(model)
    with captures() as found:
        for sizes in ((20, 30, 90), (31, 17, 60), (12, 40, 130)):
            kinds = KINDS[:2] if name == "HGTConv" else KINDS  # it has sums of sizes that PyTorch takes long for
            got, want = run(*typed_graph(*sizes, kinds)), model(*typed_graph(*sizes, kinds))
            for key in want:
                assert_same_numbers(got[key].detach(), want[key].detach(), name=key)

    assert len(found) == 1
    assert all(item.programs for item in found)


def test_gradients_of_a_typed_graph() -> None:
    torch.manual_seed(0)

    assert_matches_eager(TYPED["HeteroConv"](), *typed_graph(20, 30, 90), compile=compiled)


@pytest.mark.parametrize("make", [lambda: pyg.SAGEConv((C, C), C), lambda: pyg.GATConv((C, C), C, add_self_loops=False)])
def test_a_pair_of_node_sets_of_changing_sizes(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    run = compiled(model)
    with captures() as found:
        for num_src, num_dst, num_edges in ((40, 10, 90), (33, 17, 70), (50, 5, 200)):
            generator = torch.Generator().manual_seed(num_src)
            x = torch.randn(num_src, C, generator=generator)
            edges = torch.stack(
                [
                    torch.randint(num_src, (num_edges,), generator=generator),
                    torch.randint(num_dst, (num_edges,), generator=generator),
                ]
            )
            assert_same_numbers(run((x, x[:num_dst]), edges).detach(), model((x, x[:num_dst]), edges).detach())

    assert len(found) == 1


class Trimmed(nn.Module):
    """Two layers, of which the second reads only what the seeds need."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(pyg.SAGEConv(C, C) for _ in range(2))

    def forward(self, x: Tensor, edge_index: Tensor, nodes: list[int], edges: list[int]) -> Tensor:
        for number, layer in enumerate(self.layers):
            x, edge_index, _ = trim_to_layer(number, nodes, edges, x, edge_index)
            x = layer(x, edge_index).relu()
        return x[: nodes[0]]


def test_trimmed_layers_are_right() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    nodes, edges = [6, 10, 20], [15, 40]
    first = torch.stack([torch.randint(16, (15,), generator=generator), torch.randint(6, (15,), generator=generator)])
    second = torch.stack([torch.randint(36, (40,), generator=generator), torch.randint(6, 16, (40,), generator=generator)])
    x = torch.randn(36, C, generator=generator, requires_grad=True)

    assert_matches_eager(Trimmed(), x, torch.cat([first, second], 1), nodes, edges, compile=compiled)


# --- batches of small graphs -------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.net = pyg.GIN(num_features, C, 2, C, norm="BatchNorm")
        self.last = nn.Linear(C, 1)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, size: int) -> Tensor:
        return self.last(pyg.global_add_pool(self.net(x, edge_index), batch, size))  # type: ignore[no-any-return]


def molecules(directory: pathlib.Path, count: int) -> list[Data]:
    with np.load(directory / "graphclass" / "mol_esol.npz") as item:
        data: dict[str, Any] = dict(item)
    nodes, edges = data["graph_ptr"], data["edge_ptr"]
    found = []
    for graph in range(count):
        pairs = torch.from_numpy(data["edge_local"][:, edges[graph] : edges[graph + 1]].astype(np.int64))
        x = torch.from_numpy(data["x"][nodes[graph] : nodes[graph + 1]].astype(np.float32))
        found.append(Data(x=x, edge_index=torch.cat([pairs, pairs.flip(0)], 1)))
    return found


def test_batches_of_molecules_share_one_capture(data_dir: pathlib.Path) -> None:
    graphs = molecules(data_dir, 96)
    torch.manual_seed(0)
    model = Classifier(graphs[0].num_features)
    run = compiled(model)
    with captures() as found:
        for start in range(0, 96, 32):
            batch = Batch.from_data_list(graphs[start : start + 32])
            inputs = (batch.x, batch.edge_index, batch.batch, 32)
            gradients = []
            for call in (run, model):
                model.zero_grad()
                call(*inputs).square().sum().backward()
                gradients.append([item.grad.clone() for item in model.parameters() if item.grad is not None])
            largest = max(item.abs().max().item() for item in gradients[1])
            for got, want in zip(*gradients, strict=True):
                assert_same_numbers(got, want, magnitude=largest)

    assert len(found) == 1
