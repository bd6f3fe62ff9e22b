"""A matrix per edge, gathered by type or made from edge features: same numbers as eager, and no tensor of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from tests.awkward import AWKWARD, RandomGraph
from tests.capture.compiled import captures, compiled, in_double
from tests.check import assert_matches_eager
from tests.thorough import cases

F, K, R, H = 6, 5, 4, 3
GRAPHS = ("isolated_nodes", "repeated_edges", "as_many_edges_as_nodes", "random", "huge_in_degree", "huge_out_degree")
TINY = ("one_node_no_edges", "no_edges", "one_edge")


class Spelled(nn.Module):
    """A made-up layer: both ends, an einsum and a sum of products, a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.other = nn.Parameter(torch.randn(R, F, K)), nn.Parameter(torch.randn(R, F, K))

    def forward(self, x: Tensor, edge_index: Tensor, types: Tensor) -> Tensor:
        src, dst = edge_index
        message = torch.einsum("ei,eio->eo", torch.relu(x[src] - x[dst]), self.own[types])
        message = message + (x[src].unsqueeze(-1) * self.other[types]).sum(1)
        index = dst[:, None].expand_as(message)
        return torch.full((x.shape[0], K), -1.0, dtype=x.dtype).scatter_reduce(0, index, message, "amax", include_self=False)


TYPED: dict[str, Callable[[], nn.Module]] = {
    "FastRGCNConv": lambda: pyg.FastRGCNConv(F, K, R),
    "FastRGCNConv, bases": lambda: pyg.FastRGCNConv(F, K, R, num_bases=2),
    "RGATConv": lambda: pyg.RGATConv(F, 2, R, heads=2),
    "made up": Spelled,
}
FEATURED: dict[str, Callable[[], nn.Module]] = {
    "NNConv": lambda: pyg.NNConv(F, K, nn.Sequential(nn.Linear(H, H), nn.ReLU(), nn.Linear(H, F * K))),
    "NNConv, mean": lambda: pyg.NNConv(F, K, nn.Linear(H, F * K), aggr="mean"),
    "NNConv, max": lambda: pyg.NNConv(F, K, nn.Linear(H, F * K, bias=False), aggr="max"),
}


def inputs_of(graph: RandomGraph, kind: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(graph.num_nodes, F, generator=generator).requires_grad_()
    if kind == "typed":  # the last type never occurs
        return x, graph.edge_index, torch.randint(R - 1, (graph.num_edges,), generator=generator)
    return x, graph.edge_index, torch.randn(graph.num_edges, H, generator=generator).requires_grad_()


CASES = [(name, "typed", make) for name, make in TYPED.items()] + [(name, "features", make) for name, make in FEATURED.items()]


EVERY_TIME = cases(CASES, later=[case for case in CASES if case[0] in ("FastRGCNConv, bases", "NNConv, mean")])


@pytest.mark.parametrize(("name", "kind", "make"), EVERY_TIME, ids=[case[0] for case in EVERY_TIME])
def test_same_numbers_without_matrices(name: str, kind: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    with captures() as records:
        for graph in GRAPHS:
            model, inputs = in_double(make(), inputs_of(AWKWARD[graph], kind))
            assert_matches_eager(model, *inputs, compile=compiled)

    assert not any("bmm" in note for record in records for note in record.notes)
    assert any("matrix per edge" in line for record in records for line in map(str, record.moved))


@pytest.mark.parametrize(("name", "kind", "make"), CASES[:1] + CASES[-3:-2], ids=["typed", "features"])
def test_single_precision_and_tiny_graphs(name: str, kind: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    for graph in ("random", *TINY):
        assert_matches_eager(make(), *inputs_of(AWKWARD[graph], kind), compile=compiled)


def test_order_of_types_does_not_matter() -> None:
    torch.manual_seed(0)
    model = pyg.FastRGCNConv(F, K, R)
    x, edge_index, types = inputs_of(AWKWARD["random"], "typed")
    for order in (types.argsort(), types.argsort(descending=True), torch.arange(len(types))):
        assert_matches_eager(model, x, edge_index[:, order], types[order], compile=compiled)


def test_a_type_out_of_range_is_an_error() -> None:
    x, edge_index, types = inputs_of(AWKWARD["random"], "typed")

    with pytest.raises(IndexError):
        compiled(pyg.FastRGCNConv(F, K, R))(x, edge_index, types + R)


def test_bits_do_not_depend_on_how_often_or_on_threads() -> None:
    torch.manual_seed(0)
    model = compiled(pyg.FastRGCNConv(F, K, R))
    x, edge_index, types = inputs_of(AWKWARD["huge_in_degree"], "typed")

    def step() -> tuple[Tensor, Tensor]:
        x.grad = None
        out = model(x, edge_index, types)
        out.sum().backward()
        assert x.grad is not None
        return out.detach(), x.grad

    threads = torch.get_num_threads()
    first = step()
    try:
        torch.set_num_threads(threads + 1)
        second = step()
    finally:
        torch.set_num_threads(threads)

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
