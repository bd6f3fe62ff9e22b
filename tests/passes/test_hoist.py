"""Products of edge rows with a weight become products of node rows, where the law holds and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from plait.passes.domains import infer
from plait.passes.edit import aten, value
from plait.passes.hoist import hoist_products
from tests.passes.tracing import E, N, assert_same_law, canonical, ends, numbers, text

C, K = 3, 2
SRC, DST = ends()
X, Z = numbers(N, C), numbers(N, C, seed=3)
WEIGHT, BIAS = numbers(C, K, seed=1), numbers(K, seed=2)
WIDE = numbers(2 * C, K, seed=4)


def hoisted(function: Callable[..., Any], *inputs: Any) -> tuple[GraphModule, list[str]]:
    graph_module = canonical(function, *inputs)
    moved = hoist_products(graph_module.graph, infer(graph_module.graph))
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module, moved


def num_edge_products(graph_module: GraphModule) -> int:
    """Products whose rows are edges."""
    domains = infer(graph_module.graph)
    products = [node for node in graph_module.graph.nodes if node.target in (aten.mm.default, aten.addmm.default)]
    return sum(domains.is_edge(node) for node in products)


def gathered(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index)


def test_product_of_a_gather_is_a_gather_of_a_product() -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor) -> Tensor:
        return gathered(x, src) @ weight

    graph_module, moved = hoisted(function, X, WEIGHT, SRC)

    assert text(graph_module.graph) == (
        "slice = aten.slice.Tensor(weight, 0, 0, 3)\nmm = aten.mm(x, slice)\ngather_1 = plait.gather(mm, src)\nreturn gather_1"
    )
    assert len(moved) == 1
    assert_same_law(graph_module, function, (X, WEIGHT, SRC))


def test_edge_convs_linear_layer_is_two_products_of_node_rows() -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        own, other = gathered(x, dst), gathered(x, src)
        return torch.addmm(bias, torch.cat([own, other - own], -1), weight)

    inputs = (X, WIDE, BIAS, SRC, DST)
    graph_module, moved = hoisted(function, *inputs)

    assert len(moved) == 1
    assert "2 products of node rows" in moved[0]
    assert num_edge_products(graph_module) == 0
    assert_same_law(graph_module, function, inputs)


LAWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - b,
    "scaled": lambda a, b: a * 0.5 - 2.0 * b,
    "negated": lambda a, b: -a + b,
    "one end twice": lambda a, b: a + a,
    "nested": lambda a, b: (a - b) - (b - a) * 3.0,
    "nothing left": lambda a, b: a - a,
}


@pytest.mark.parametrize("name", LAWS)
def test_sums_of_ends_go_to_the_nodes(name: str) -> None:
    def function(x: Tensor, z: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return LAWS[name](gathered(x, src), gathered(z, dst)) @ weight

    inputs = (X, Z, WEIGHT, SRC, DST)
    graph_module, moved = hoisted(function, *inputs)

    assert len(moved) == 1
    assert num_edge_products(graph_module) == 0
    assert_same_law(graph_module, function, inputs)


CONCATENATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ends": lambda a, b: torch.cat([a, b], -1),
    "by axis 1": lambda a, b: torch.cat([a, b], 1),
    "difference first": lambda a, b: torch.cat([a - b, b], -1),
    "sum of concatenations": lambda a, b: torch.cat([a, b], -1) + torch.cat([b, a], -1),
}


@pytest.mark.parametrize("name", CONCATENATIONS)
def test_concatenated_ends_meet_their_own_rows_of_the_weight(name: str) -> None:
    def function(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.addmm(bias, CONCATENATIONS[name](gathered(x, src), gathered(z, dst)), weight)

    inputs = (X, Z, WIDE, BIAS, SRC, DST)
    graph_module, moved = hoisted(function, *inputs)

    assert len(moved) == 1
    assert num_edge_products(graph_module) == 0
    assert_same_law(graph_module, function, inputs)


def test_indices_that_count_from_the_end_keep_doing_so() -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor) -> Tensor:
        return (x[src] - x[src - 1]) @ weight

    inputs = (X, WEIGHT, SRC)
    graph_module, moved = hoisted(function, *inputs)

    assert len(moved) == 1
    assert_same_law(graph_module, function, inputs)


STAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "a function in between": lambda a, b, edge: torch.tanh(a),
    "a product of ends": lambda a, b, edge: a * b,
    "edge features beside an end": lambda a, b, edge: a + edge,
    "edge features": lambda a, b, edge: edge * 2.0,
    "scaled per edge": lambda a, b, edge: a * edge[:, :1],
}


@pytest.mark.parametrize("name", STAYS)
def test_what_really_differs_per_edge_stays(name: str) -> None:
    def function(x: Tensor, z: Tensor, edge: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        a, b = gathered(x, src), gathered(z, dst)
        return STAYS[name](a, b, edge) @ weight + (a + b).sum() * 0.0

    inputs = (X, Z, numbers(E, C, seed=5), WEIGHT, SRC, DST)
    graph_module, moved = hoisted(function, *inputs)

    assert moved == []
    assert_same_law(graph_module, function, inputs)


def test_gram_matrix_of_edges_keeps_its_numbers() -> None:
    """The second factor holds edges as columns: a product over the edges, not over a row's features."""

    def function(x: Tensor, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        return gathered(x, src) @ gathered(x, dst).T, gathered(x, src).T @ gathered(x, dst)

    graph_module, _ = hoisted(function, X, SRC, DST)

    assert_same_law(graph_module, function, (X, SRC, DST))


def test_scaled_addmm_stays() -> None:
    """beta and alpha would have to go with the bias and the product; no layer writes them."""

    def function(x: Tensor, weight: Tensor, bias: Tensor, src: Tensor) -> Tensor:
        return torch.addmm(bias, gathered(x, src), weight, beta=0.5, alpha=2.0)

    inputs = (X, WEIGHT, BIAS, SRC)
    graph_module, moved = hoisted(function, *inputs)

    assert moved == []
    assert_same_law(graph_module, function, inputs)


def test_add_with_a_factor_is_not_taken_for_a_sum() -> None:
    def function(x: Tensor, z: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.sub(gathered(x, src), gathered(z, dst), alpha=3) @ weight

    inputs = (X, Z, WEIGHT, SRC, DST)
    graph_module, _ = hoisted(function, *inputs)

    assert_same_law(graph_module, function, inputs)


def test_bias_is_added_once() -> None:
    def function(x: Tensor, bias: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.addmm(bias, gathered(x, src) + gathered(x, dst), weight)

    inputs = (X, BIAS, WEIGHT, SRC, DST)
    graph_module, _ = hoisted(function, *inputs)

    assert text(graph_module.graph).count("bias") == 1
    assert_same_law(graph_module, function, inputs)


def test_a_batch_of_two_products_shares_what_it_can() -> None:
    """A second layer's product of the same rows is another product: weights differ."""

    def function(x: Tensor, weight: Tensor, other: Tensor, src: Tensor) -> tuple[Tensor, Tensor]:
        rows = gathered(x, src)
        return rows @ weight, rows @ other

    inputs = (X, WEIGHT, numbers(C, 5, seed=8), SRC)
    graph_module, moved = hoisted(function, *inputs)

    assert len(moved) == 2
    assert all(
        value(node).shape[1] in (K, 5) for node in graph_module.graph.find_nodes(op="call_function", target=aten.mm.default)
    )
    assert_same_law(graph_module, function, inputs)
