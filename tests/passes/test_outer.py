"""A matrix per edge that is a linear image of an edge vector: a product of outer products with one weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from plait.passes.edit import aten, is_call, is_tensor, value
from plait.passes.reorganise import move_behind_sums, move_outer_products, move_products
from tests.passes.tracing import E, N, assert_same_law, ends, num_edge_products, numbers, rewritten

C, K, H = 3, 4, 2
SRC, DST = ends()
X, T = numbers(N, C), numbers(E, H, seed=3)
WEIGHT, BIAS = numbers(H, C * K, seed=1), numbers(C * K, seed=2)


def without_matrices(function: Callable[..., Any], *inputs: Any) -> tuple[GraphModule, list[str]]:
    graph_module, moved = rewritten((move_outer_products,), function, *inputs)
    return graph_module, moved


def has_matrix_per_edge(graph_module: GraphModule) -> bool:
    sizes = [[int(size) for size in value(node).shape] for node in graph_module.graph.nodes if is_tensor(node)]
    return any(shape[0] == E and torch.Size(shape).numel() >= E * C * K for shape in sizes if shape)


SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bmm": lambda x, w: torch.bmm(x.unsqueeze(1), w.view(-1, C, K)).squeeze(1),
    "matmul": lambda x, w: torch.matmul(x.unsqueeze(1), w.view(-1, C, K)).squeeze(1),
    "matrix first": lambda x, w: (w.view(-1, K, C) @ x.unsqueeze(-1)).squeeze(-1),
    "transposed": lambda x, w: torch.bmm(x.unsqueeze(1), w.view(-1, K, C).transpose(1, 2)).squeeze(1),
    "einsum": lambda x, w: torch.einsum("ei,eio->eo", x, w.view(-1, C, K)),
    "einsum, other order": lambda x, w: torch.einsum("eoi,ei->eo", w.view(-1, K, C), x),
    "sum of products": lambda x, w: (x.unsqueeze(-1) * w.view(-1, C, K)).sum(1),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_no_spelling_has_a_matrix_per_edge(name: str) -> None:
    def function(x: Tensor, t: Tensor, weight: Tensor, bias: Tensor, src: Tensor) -> Tensor:
        return SPELLINGS[name](x.index_select(0, src), torch.addmm(bias, t, weight))

    inputs = (X, T, WEIGHT, BIAS, SRC)
    graph_module, moved = without_matrices(function, *inputs)

    assert len(moved) == 1
    assert not has_matrix_per_edge(graph_module)
    assert_same_law(graph_module, function, inputs)


def test_the_product_goes_behind_a_sum_and_the_bias_to_the_nodes() -> None:
    def function(x: Tensor, t: Tensor, weight: Tensor, bias: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        matrix = torch.addmm(bias, torch.relu(t), weight).view(-1, C, K)
        message = torch.bmm(x.index_select(0, src).unsqueeze(1), matrix).squeeze(1)
        return torch.zeros(N, K).index_add(0, dst, message)

    inputs = (X, T, WEIGHT, BIAS, SRC, DST)
    graph_module, _ = rewritten((move_outer_products, move_products, move_behind_sums), function, *inputs)

    assert num_edge_products(graph_module, E) == 0
    assert_same_law(graph_module, function, inputs)


def test_rows_of_any_function_of_both_ends() -> None:
    def function(x: Tensor, t: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        rows = torch.tanh(x.index_select(0, src) - x.index_select(0, dst))
        return torch.bmm(rows.unsqueeze(1), (t @ weight).view(-1, C, K)).squeeze(1)

    inputs = (X.double(), T.double(), WEIGHT.double(), SRC, DST)
    graph_module, moved = without_matrices(function, *inputs)

    assert len(moved) == 1
    assert_same_law(graph_module, function, inputs)


STAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "a function of the matrix": lambda x, t, w: torch.bmm(x.unsqueeze(1), torch.relu(t @ w).view(-1, C, K)),
    "a wider outer product": lambda x, t, w: torch.bmm(x.unsqueeze(1), (torch.cat([t] * 3, 1) @ w.repeat(3, 1)).view(-1, C, K)),
    "a weight per edge": lambda x, t, w: torch.bmm(
        x.unsqueeze(1), torch.bmm(t.unsqueeze(1), w.expand(E, H, C * K)).view(-1, C, K)
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays(name: str) -> None:
    def function(x: Tensor, t: Tensor, weight: Tensor, src: Tensor) -> Tensor:
        return STAYS[name](x.index_select(0, src), t, weight)

    graph_module, moved = without_matrices(function, X, T, WEIGHT, SRC)

    assert moved == []
    assert any(is_call(node, aten.bmm.default) for node in graph_module.graph.nodes)
