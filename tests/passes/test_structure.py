"""What depends on index tensors alone is cut out, found again by content, and never shared with the user."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.fx import GraphModule

from plait.capture.launch import StructureCall
from plait.passes.domains import infer
from plait.passes.structure import Structure, merge_equal, own_maps, split_structure
from plait.structure_cache import STRUCTURE
from tests.awkward import random_graph
from tests.capture.compiled import captures, compiled
from tests.capture.conftest import fresh_dynamo  # noqa: F401 - a fixture for the compiled models below
from tests.check import assert_matches_eager, assert_same_numbers
from tests.models import Case, node_features, row_sum
from tests.passes.tracing import N, canonical, ends, numbers, targets, text, traced

X = numbers(N, 3)
SRC, DST = ends()
EDGE_INDEX = torch.stack([SRC, DST])


def split(function: Callable[..., Any], *inputs: Any) -> tuple[GraphModule, Structure | None]:
    """The graph with its structure cut off, which still runs."""

    @functools.wraps(function)
    def outputs(*given: Any) -> tuple[Any, ...]:
        return (function(*given),)

    graph_module = canonical(outputs, *inputs)
    own_maps(graph_module.graph, 1)
    found = split_structure(graph_module.graph, StructureCall, 1)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module, found


def input_names(structure: Structure) -> set[str]:
    """The int tensors a structure is found by."""
    return {node.name for node in structure.inputs if isinstance(node.meta["val"], Tensor)}


def normalised(x: Tensor, edge_index: Tensor, labels: Tensor) -> Tensor:
    """GCN: self-loops, degrees, normalisation, propagation; labels take part in the result."""
    num_nodes = x.shape[0]
    loops = torch.arange(num_nodes)
    src, dst = torch.cat([edge_index[0], loops]), torch.cat([edge_index[1], loops])
    degree = row_sum(torch.ones(src.shape[0]), dst, num_nodes)
    scale = degree.rsqrt().index_select(0, src) * degree.rsqrt().index_select(0, dst)
    return row_sum(x.index_select(0, src) * scale.unsqueeze(-1), dst, num_nodes) + labels.unsqueeze(-1)


LABELS = torch.arange(N) % 3


def test_self_loops_degrees_and_normalisation_are_cut_out() -> None:
    graph_module, structure = split(normalised, X, EDGE_INDEX, LABELS)

    assert structure is not None
    assert {"aten.arange", "aten.cat", "aten.rsqrt", "aten.full"} <= {
        name.split(".start")[0] for name in targets(structure.module.graph)
    }
    assert {"aten.rsqrt", "aten.cat", "aten.arange.default"}.isdisjoint(targets(graph_module.graph))
    assert targets(graph_module.graph).count("plait.segment_reduce") == 1
    assert_same_numbers(graph_module(X, EDGE_INDEX, LABELS)[0], normalised(X, EDGE_INDEX, LABELS))


def test_labels_are_not_hashed() -> None:
    """Ints that decide no map are data: a hash of them would be work, and a new structure for every batch."""
    _, structure = split(normalised, X, EDGE_INDEX, LABELS)

    assert structure is not None
    assert input_names(structure) == {"edge_index"}


def test_graph_without_maps_has_no_structure() -> None:
    def function(x: Tensor, labels: Tensor) -> Tensor:
        return torch.tanh(x) + (labels * 2).unsqueeze(-1)

    _, structure = split(function, X, LABELS)

    assert structure is None


def test_floats_are_never_structure() -> None:
    """Degrees weighted by a float tensor change with it."""

    def function(weight: Tensor, x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        degree = row_sum(weight, dst, N)
        return row_sum(x.index_select(0, src) * degree.index_select(0, src).unsqueeze(-1), dst, N)

    _, structure = split(function, numbers(SRC.numel()), X, SRC, DST)

    assert structure is not None
    assert targets(structure.module.graph) == ["aten.clone", "aten.clone"]


def test_random_masks_are_not_structure() -> None:
    def function(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        noise = torch.randint(0, 2, (src.shape[0],))
        return row_sum(x.index_select(0, (src + noise) % N), dst, N)

    _, structure = split(function, X, SRC, DST)

    assert structure is None or not any("rand" in name or "add" in name for name in targets(structure.module.graph))


def test_equal_calls_are_one_and_random_draws_are_not() -> None:
    def function(x: Tensor, src: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return x.index_select(0, src).sin(), x.index_select(0, src).sin(), torch.rand(3), torch.rand(3)

    graph_module = traced(function, X, SRC)
    merge_equal(graph_module.graph)

    assert targets(graph_module.graph) == ["aten.index_select", "aten.sin", *["aten.rand"] * 2] or (
        text(graph_module.graph).count("aten.rand") == 2 and text(graph_module.graph).count("aten.sin(") == 1
    )


def test_merging_tells_numbers_by_their_type() -> None:
    """1, 1.0 and True are equal to Python and not to an operator."""
    graph_module = traced(lambda x: (x.int() * 2, x.int() * 2.0, x.int() * 1, x.int() * True), X)
    merge_equal(graph_module.graph)

    assert [item.dtype for item in graph_module(X)] == [torch.int32, torch.float32, torch.int32, torch.int32]


def test_a_constant_does_not_make_nodes_of_edges() -> None:
    """Neither itself nor a view of it, where there are as many of both and one call made it for them."""
    square = torch.arange(N)

    def function(x: Tensor, src: Tensor) -> tuple[Tensor, Tensor]:
        ones = torch.ones(N).unsqueeze(-1).expand(-1, 3)
        return x + ones, x.index_select(0, src) + ones

    graph = canonical(function, X, square).graph

    nodes, edges = graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
    domains = infer(graph)
    assert domains.of(nodes) is not domains.of(edges)
    assert domains.is_edge(edges)
    assert not domains.is_edge(nodes)


# --- compiled --------------------------------------------------------------------------------------------------------


def test_as_many_edges_as_nodes_is_an_accident() -> None:
    """Captured where N == E, then run where they differ."""
    model = Case(lambda: pyg.GCNConv(12, 8), node_features).model()
    call = torch.compile(model, backend="plait")

    for num_nodes, num_edges in ((9, 9), (9, 20), (20, 9), (13, 13)):
        inputs = node_features(random_graph(num_nodes, num_edges, 0), 0)

        assert_same_numbers(call(*inputs), model(*inputs))


class ReturnsEdges(nn.Module):
    """Its edges with self-loops go out with the result."""

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        loops = torch.arange(x.shape[0]).expand(2, -1)
        edges = torch.cat([edge_index, loops], 1)
        return row_sum(x[edges[0]], edges[1], x.shape[0]), edges


class ReturnsItsInput(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return row_sum(x[edge_index[0]], edge_index[1], x.shape[0]), edge_index, edge_index[0]


@pytest.mark.parametrize("model", [ReturnsEdges, ReturnsItsInput])
@pytest.mark.parametrize("with_gradient", [True, False])
def test_returned_edges_may_be_overwritten(model: type[nn.Module], with_gradient: bool) -> None:
    x, edge_index = node_features(random_graph(10, 30, 0), 0)
    x = x if with_gradient else x.detach()
    call, eager = compiled(model()), model()
    for _ in range(2):
        out, edges, *others = call(x, edge_index.clone())
        want, want_edges, *_ = eager(x, edge_index)
        assert torch.equal(edges, want_edges)
        assert_same_numbers(out, want)
        edges.zero_()  # the user's own copy
        for other in others:
            other.zero_()


class Propagate(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        return row_sum(x[src], dst, x.shape[0])


@pytest.mark.parametrize("layer", [Propagate, lambda: pyg.GCNConv(12, 8)], ids=["plain", "gcn"])
@pytest.mark.parametrize("way", ["data", "numpy", "in place"])
def test_overwritten_edge_index_is_seen(layer: Callable[[], nn.Module], way: str) -> None:
    """Neither its identity nor its version changes under .data and .numpy()."""
    model = Case(layer, node_features).model()
    call = compiled(model)
    x, edge_index = node_features(random_graph(10, 30, 0), 0)
    x = x.detach().requires_grad_()
    call(x, edge_index).sum().backward()
    target = {"data": lambda: edge_index.data, "numpy": edge_index.numpy, "in place": lambda: edge_index}[way]()
    target[1] = (target[1] + 3) % 10
    x.grad = None

    out = call(x, edge_index)
    (grad,) = torch.autograd.grad(out.square().sum(), x)

    want = model(x, edge_index)
    assert_same_numbers(out, want)
    assert_same_numbers(grad, torch.autograd.grad(want.square().sum(), x)[0])


def test_edge_index_overwritten_between_forward_and_backward_is_not_read_again() -> None:
    """The backward goes by the graph of its forward (eager raises for writes it can see)."""
    model, call = Propagate(), compiled(Propagate())
    x, edge_index = node_features(random_graph(10, 30, 0), 0)
    (want,) = torch.autograd.grad(model(x, edge_index).square().sum(), x)
    out = call(x, edge_index)
    edge_index.data.zero_()

    (grad,) = torch.autograd.grad(out.square().sum(), x)

    assert_same_numbers(grad, want)


class DropEdge(nn.Module):
    """Half of the edges, chosen anew at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = pyg.GCNConv(12, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        kept = torch.rand(edge_index.shape[1]) > 0.5
        result: Tensor = self.layer(x, edge_index[:, kept])
        return result


def test_edges_dropped_at_random_are_drawn_at_every_step() -> None:
    model = Case(DropEdge, node_features).model()
    inputs = node_features(random_graph(30, 200, 3), 0)
    call = compiled(model)
    torch.manual_seed(0)
    outputs = [call(*inputs) for _ in range(3)]
    torch.manual_seed(0)

    for out in outputs:
        assert_same_numbers(out, model(*inputs))
    assert not torch.equal(outputs[0], outputs[1])


def test_edges_dropped_at_random_get_their_gradients() -> None:
    assert_matches_eager(
        Case(DropEdge, node_features).model(), *node_features(random_graph(30, 200, 3), 0), compile=compiled, num_steps=2
    )


def test_structure_is_computed_once_for_a_graph_that_does_not_change() -> None:
    model = compiled(Case(lambda: pyg.GCNConv(12, 8), node_features).model())
    x, edge_index = node_features(random_graph(31, 201, 3), 0)
    with captures() as records:
        model(x, edge_index).sum().backward()
    before = STRUCTURE.stats()
    for _ in range(3):
        model(x, edge_index.clone()).sum().backward()
    after = STRUCTURE.stats()

    assert records[0].structure
    assert after.misses == before.misses
    assert after.entries == before.entries
