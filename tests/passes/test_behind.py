"""A linear layer behind a sum over edges becomes a product of node rows, where only the sum reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from plait.passes.reorganise import move_behind_sums, move_products
from tests.passes.tracing import E, N, assert_same_law, ends, num_edge_products, numbers, rewritten, text

C, K = 3, 5
ROWS = N + 2  # the last ones have no edges
SRC, DST = ends()
EDGE, SCALE = numbers(E, C), numbers(E, 1, seed=1)
WEIGHT, BIAS = numbers(C, K, seed=2), numbers(K, seed=3)
INPUTS = (EDGE, SCALE, WEIGHT, BIAS, DST)


def behind(function: Callable[..., Any], *inputs: Any) -> tuple[GraphModule, list[str]]:
    return rewritten((move_behind_sums,), function, *inputs)


def summed(values: Tensor, index: Tensor) -> Tensor:
    return values.new_zeros(ROWS, *values.shape[1:]).index_add(0, index, values)


def test_the_sum_goes_first() -> None:
    def function(edge: Tensor, weight: Tensor, bias: Tensor, dst: Tensor) -> Tensor:
        return summed(torch.addmm(bias, torch.relu(edge), weight), dst)

    inputs = (EDGE, WEIGHT, BIAS, DST)
    graph_module, moved = behind(function, *inputs)

    assert text(graph_module.graph) == (
        "relu = aten.relu(edge)\n"
        "segment_reduce_1 = plait.segment_reduce(relu, dst, 9, sum, 0.0, False, False)\n"
        "mm = aten.mm(segment_reduce_1, weight)\n"
        "full_1 = aten.full([size, 1], 1.0, dtype=torch.float32, device=cpu)\n"
        "segment_reduce_2 = plait.segment_reduce(full_1, dst, 9, sum, 0.0, False, False)\n"
        "mul = aten.mul.Tensor(segment_reduce_2, bias)\n"
        "add = aten.add.Tensor(mm, mul)\n"
        "return add"
    )
    assert moved == ["segment_reduce_default: 1 product of edge rows moved behind the sum"]
    assert_same_law(graph_module, function, inputs)


LAWS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "without a bias": lambda e, s, w, b: e @ w,
    "scaled before": lambda e, s, w, b: torch.addmm(b, e * s, w),
    "scaled behind": lambda e, s, w, b: s * torch.addmm(b, e, w),
    "scaled twice": lambda e, s, w, b: s * (torch.addmm(b, e, w) * s) * 0.5,
    "divided": lambda e, s, w, b: torch.addmm(b, e, w) / (s.abs() + 1) / 3.0,
    "by one number for all": lambda e, s, w, b: torch.addmm(b, e, w) * b[:1].view(1, 1) / (1 + b[0].abs()),
    "spread over the columns": lambda e, s, w, b: torch.addmm(b, e, w) * s.expand(-1, K),
    "negated": lambda e, s, w, b: -(e @ w),
    "beside another value": lambda e, s, w, b: torch.tanh(e @ w) - torch.addmm(b, e, w),
    "two products": lambda e, s, w, b: torch.addmm(b, e, w) * s - torch.relu(e) @ w,
    "seen by heads": lambda e, s, w, b: torch.addmm(b, e, w).view(-1, 1, K),
    "heads scaled": lambda e, s, w, b: torch.addmm(b, e, w).view(-1, 1, K) * s.unsqueeze(-1),
    "product of a product": lambda e, s, w, b: torch.addmm(b, torch.addmm(e.new_ones(C), e, (w @ w.T).cumsum(0)), w),
}


@pytest.mark.parametrize("name", LAWS)
def test_linear_maps_follow_the_sum(name: str) -> None:
    def function(edge: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, dst: Tensor) -> Tensor:
        return summed(LAWS[name](edge, scale, weight, bias), dst)

    graph_module, moved = behind(function, *INPUTS)

    assert len(moved) == 1
    assert num_edge_products(graph_module, E) == int(name == "beside another value")
    assert_same_law(graph_module, function, INPUTS)


def test_mean_is_a_sum_and_a_division() -> None:
    def function(edge: Tensor, weight: Tensor, bias: Tensor, dst: Tensor) -> Tensor:
        count = summed(torch.ones_like(edge[:, :1]), dst).clamp(min=1)
        return summed(torch.addmm(bias, torch.relu(edge), weight), dst) / count

    inputs = (EDGE, WEIGHT, BIAS, DST)
    graph_module, moved = behind(function, *inputs)

    assert len(moved) == 1
    assert num_edge_products(graph_module, E) == 0
    assert_same_law(graph_module, function, inputs)


def test_message_mlp_has_no_product_of_edge_rows_left() -> None:
    def function(x: Tensor, first: Tensor, weight: Tensor, bias: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        rows = torch.cat([x.index_select(0, dst), x.index_select(0, src)], -1)
        return summed(torch.addmm(bias, torch.relu(rows @ first), weight), dst)

    inputs = (numbers(N, C), numbers(2 * C, C, seed=6), WEIGHT, BIAS, SRC, DST)
    graph_module, _ = rewritten((move_products, move_behind_sums), function, *inputs)

    assert num_edge_products(graph_module, E) == 0
    assert_same_law(graph_module, function, inputs)


STAYS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Any]] = {
    "read by something else": lambda e, s, w, b, dst: (summed(y := torch.addmm(b, e, w), dst), y),
    "read twice": lambda e, s, w, b, dst: summed(y := e @ w, dst) + summed(y, (dst + 1) % N),
    "a function behind": lambda e, s, w, b, dst: summed(torch.relu(e @ w), dst),
    "scaled per entry": lambda e, s, w, b, dst: summed((e @ w) * torch.cat([e, s, s], -1), dst),
    "a maximum": lambda e, s, w, b, dst: e.new_zeros(ROWS, K).scatter_reduce(
        0, dst.view(-1, 1).expand(-1, K), e @ w, "amax", include_self=False
    ),
    "added to something": lambda e, s, w, b, dst: (
        torch.ones(ROWS, K).index_add(0, dst, torch.tanh(e @ w)) + e.new_zeros(ROWS, K)
    ),
    "another bias per edge": lambda e, s, w, b, dst: summed(torch.addmm(torch.cat([e, s, s], -1), e, w, beta=0.5), dst),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_sum_of_products_stays(name: str) -> None:
    def function(edge: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, dst: Tensor) -> Any:
        return STAYS[name](edge, scale, weight, bias, dst)

    graph_module, moved = behind(function, *INPUTS)

    assert moved == []
    assert_same_law(graph_module, function, INPUTS)


def test_product_stays_where_rows_are_more_than_edges() -> None:
    def function(edge: Tensor, weight: Tensor, dst: Tensor, like: Tensor) -> Tensor:
        return torch.zeros_like(like).index_add(0, dst, torch.relu(edge) @ weight)

    dst = torch.randint(500, (550,), generator=torch.Generator().manual_seed(0))
    edge = numbers(550, C)
    _, moved = behind(function, edge, WEIGHT, dst, numbers(600, K))
    _, moved_to_fewer = behind(function, edge, WEIGHT, dst, numbers(520, K))

    assert (len(moved), len(moved_to_fewer)) == (0, 1)
