"""A matrix per edge, gathered by type: a product per (row, type) that occurs, where the law holds and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from plait import operators
from plait.passes.edit import aten, is_call
from plait.passes.reorganise import move_typed_products
from tests.passes.tracing import E, N, assert_same_law, ends, numbers, rewritten

C, K, R = 3, 2, 4
SRC, DST = ends()
X, Z = numbers(N, C), numbers(N, C, seed=3)
WEIGHT = numbers(R, C, K, seed=1)
TYPES = torch.randint(R - 1, (E,), generator=torch.Generator().manual_seed(2))  # the last type never occurs


def typed(function: Callable[..., Any], *inputs: Any) -> tuple[GraphModule, list[str]]:
    return rewritten((move_typed_products,), function, *inputs)


def of_types(weight: Tensor, types: Tensor) -> Tensor:
    """A matrix per edge; how many there are is fixed, as of a parameter."""
    assert weight.shape[0] == R
    return weight[types]


def num_per_edge(graph_module: GraphModule) -> int:
    return sum(is_call(node, aten.bmm.default) for node in graph_module.graph.nodes)


SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bmm": lambda x, w: torch.bmm(x.unsqueeze(1), w).squeeze(1),
    "matmul": lambda x, w: torch.matmul(x.unsqueeze(-2), w).squeeze(-2),
    "matrix first": lambda x, w: (w.transpose(1, 2) @ x.unsqueeze(-1)).squeeze(-1),
    "einsum": lambda x, w: torch.einsum("ei,eio->eo", x, w),
    "einsum, matrix first": lambda x, w: torch.einsum("eio,ei->eo", w, x),
    "sum of products": lambda x, w: (x.unsqueeze(-1) * w).sum(1),
    "sum of products, other axis": lambda x, w: (w.transpose(1, 2) * x.unsqueeze(1)).sum(-1),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_a_product_per_pair(name: str) -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor, types: Tensor) -> Tensor:
        return SPELLINGS[name](x.index_select(0, src), of_types(weight, types))

    graph_module, moved = typed(function, X, WEIGHT, SRC, TYPES)

    assert len(moved) == 1
    assert num_per_edge(graph_module) == 0
    assert_same_law(graph_module, function, (X, WEIGHT, SRC, TYPES))


OPERANDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "one end": lambda a, b, e: a,
    "scaled": lambda a, b, e: e[:, :1] * a * 0.5,
    "both ends": lambda a, b, e: b - a,
    "columns": lambda a, b, e: torch.cat([a[:, :1], b[:, 1:]], -1),
    "function of an end": lambda a, b, e: torch.tanh(a) * 2.0,
    "beside an edge value": lambda a, b, e: a + e,
    "edge value": lambda a, b, e: e,
    "function of both ends": lambda a, b, e: torch.tanh(a + b),
}


@pytest.mark.parametrize("name", OPERANDS)
def test_operands_that_separate_by_end_and_others(name: str) -> None:
    def function(x: Tensor, z: Tensor, e: Tensor, weight: Tensor, src: Tensor, dst: Tensor, types: Tensor) -> Tensor:
        operand = OPERANDS[name](x.index_select(0, src), z.index_select(0, dst), e)
        message = torch.bmm(operand.unsqueeze(1), of_types(weight, types)).squeeze(1)
        return torch.zeros(N, K).index_add(0, dst, message)

    inputs = (X, Z, numbers(E, C, seed=5), WEIGHT, SRC, DST, TYPES)
    graph_module, moved = typed(function, *inputs)

    assert len(moved) == 1
    assert num_per_edge(graph_module) == 0
    assert_same_law(graph_module, function, inputs)


KINDS = {
    "one type": torch.zeros(E, dtype=torch.int64),
    "sorted": TYPES.sort().values,
    "from the end": TYPES - R,
    "only the last": torch.full((E,), R - 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_types_of_all_kinds(name: str) -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor, types: Tensor) -> Tensor:
        return torch.bmm(x[src].unsqueeze(1), of_types(weight, types)).squeeze(1)

    inputs = (X.double(), WEIGHT.double(), SRC - N, KINDS[name])
    graph_module, moved = typed(function, *inputs)

    assert len(moved) == 1
    assert_same_law(graph_module, function, inputs)


def test_a_matrix_of_the_same_end_is_a_product_per_row() -> None:
    def function(x: Tensor, weight: Tensor, types: Tensor) -> Tensor:
        matrices = of_types(weight, types)
        return torch.bmm(x[types].unsqueeze(1), matrices).squeeze(1)

    inputs = (numbers(R, C), WEIGHT, TYPES)
    graph_module, moved = typed(function, *inputs)

    assert len(moved) == 1
    assert not any(is_call(node, operators.pairs) for node in graph_module.graph.nodes)
    assert_same_law(graph_module, function, inputs)


def test_a_matrix_per_node_stays() -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.bmm(x.index_select(0, src).unsqueeze(1), weight.index_select(0, dst)).squeeze(1)

    _, moved = typed(function, X, numbers(N, C, K), SRC, DST)

    assert moved == []


def test_a_scaled_sum_of_a_matrix_is_no_product() -> None:
    def function(s: Tensor, weight: Tensor, src: Tensor, types: Tensor) -> Tensor:
        return (s.index_select(0, src).unsqueeze(-1) * of_types(weight, types)).sum(1)

    inputs = (numbers(N, 1), WEIGHT, SRC, TYPES)
    graph_module, moved = typed(function, *inputs)

    assert moved == []
    assert_same_law(graph_module, function, inputs)


def test_a_sum_of_products_that_no_edges_share_stays() -> None:
    """GMMConv: numbers of the edge times rows of a node seen as a matrix; kernels add them up in registers."""

    def function(per_edge: Tensor, weight: Tensor, types: Tensor) -> Tensor:
        return (per_edge.unsqueeze(-1) * of_types(weight, types)).sum(1)

    _, moved = typed(function, numbers(E, C), WEIGHT, TYPES)

    assert moved == []


def test_a_dot_product_is_no_matrix_product() -> None:
    def function(x: Tensor, other: Tensor, src: Tensor, types: Tensor) -> Tensor:
        assert other.shape[0] == R
        return torch.bmm(x.index_select(0, src).unsqueeze(1), other[types].unsqueeze(2)).squeeze(1)

    _, moved = typed(function, X, numbers(R, C), SRC, TYPES)

    assert moved == []


def test_a_matrix_per_edge_that_is_not_gathered_stays() -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor) -> Tensor:
        return torch.bmm(x.index_select(0, src).unsqueeze(1), weight).squeeze(1)

    _, moved = typed(function, X, numbers(E, C, K), SRC)

    assert moved == []


def test_second_derivatives() -> None:
    x, weight = X.double().requires_grad_(), WEIGHT.double().requires_grad_()
    _, row, indptr = operators.pairs(SRC, TYPES, R)

    torch.autograd.gradgradcheck(lambda x, weight: operators.grouped_mm(x, row, weight, indptr), (x, weight))
    torch.autograd.gradcheck(lambda x, weight: operators.grouped_mm(x, row, weight, indptr), (x, weight))
