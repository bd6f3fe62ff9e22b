"""Cheap work on rows of one end moves to the nodes where rows gathered get no wider, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from plait.passes.edit import value
from plait.passes.reorganise import move_narrow_work
from tests.passes.tracing import E, N, assert_same_law, ends, numbers, rewritten, targets, text

H, C = 2, 3
SRC, DST = ends()
X, HEADS = numbers(N, C), numbers(N, H, C, seed=1)
LEAKY_RELU = torch.nn.functional.leaky_relu


def narrowed(function: Callable[..., Any], *inputs: Any) -> tuple[GraphModule, list[str]]:
    return rewritten((move_narrow_work,), function, *inputs)


def gathered_widths(graph_module: GraphModule) -> list[int]:
    """Numbers per edge of every gather."""
    gathers = graph_module.graph.find_nodes(op="call_function", target=torch.ops.plait.gather.default)
    return sorted(int(value(node).shape[1:].numel()) for node in gathers)


def test_attention_scores_split_by_end() -> None:
    def function(h: Tensor, att: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        both = torch.cat([h.index_select(0, dst), h.index_select(0, src)], -1)
        return LEAKY_RELU((both * att).sum(-1), 0.2)

    inputs = (HEADS, numbers(1, H, 2 * C, seed=2), SRC, DST)
    graph_module, moved = narrowed(function, *inputs)

    assert text(graph_module.graph) == (
        "slice = aten.slice.Tensor(att, 2, 0, 3)\n"
        "mul = aten.mul.Tensor(h, slice)\n"
        "sum_dim_int_list = aten.sum.dim_IntList(mul, [2], False)\n"
        "gather_2 = plait.gather(sum_dim_int_list, dst)\n"
        "slice_1 = aten.slice.Tensor(att, 2, 3, 6)\n"
        "mul_1 = aten.mul.Tensor(h, slice_1)\n"
        "sum_dim_int_list_1 = aten.sum.dim_IntList(mul_1, [2], False)\n"
        "gather_3 = plait.gather(sum_dim_int_list_1, src)\n"
        "add = aten.add.Tensor(gather_2, gather_3)\n"
        "leaky_relu = aten.leaky_relu(add, 0.2)\n"
        "return leaky_relu"
    )
    assert moved == ["sum_1: work on rows of one end moved to 2 values of nodes"]
    assert_same_law(graph_module, function, inputs)


def test_scores_move_beside_rows_that_are_gathered_anyway() -> None:
    """One end's rows are read per edge for the message; the other's are not read any more."""

    def function(h: Tensor, att: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        own, other = h.index_select(0, dst), h.index_select(0, src)
        score = torch.tanh((torch.cat([own, other], -1) * att).sum(-1, keepdim=True))
        return torch.zeros(N, H, C).index_add(0, dst, score * other)

    inputs = (HEADS, numbers(1, H, 2 * C, seed=2), SRC, DST)
    graph_module, moved = narrowed(function, *inputs)

    assert len(moved) == 1
    assert gathered_widths(graph_module) == [H, H, H * C]
    assert_same_law(graph_module, function, inputs)


def test_two_scores_of_one_end_move_together() -> None:
    """Either alone would keep the rows gathered for the other's sake."""

    def function(x: Tensor, a: Tensor, b: Tensor, src: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.index_select(0, src)
        return torch.tanh((rows * a).sum(-1)), (rows * b).sum(-1) * 3.0

    inputs = (X, numbers(C, seed=2), numbers(C, seed=3), SRC)
    graph_module, moved = narrowed(function, *inputs)

    assert len(moved) == 2
    assert gathered_widths(graph_module) == [1, 1]
    assert_same_law(graph_module, function, inputs)


STAYS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "both the rows and a function of them": lambda a, b: (torch.tanh(a), a * b),
    "two functions as wide as the rows": lambda a, b: (torch.tanh(a), torch.sigmoid(a), a * b),
    "a function of both ends": lambda a, b: torch.tanh(a * b),
    "wider than the rows": lambda a, b: torch.tanh(a).unsqueeze(-1).expand(-1, -1, 4) * b.unsqueeze(-1) + a.unsqueeze(-1),
    "a function with infinite slopes": lambda a, b: a.sqrt() + b,
    "nothing computed": lambda a, b: a.unsqueeze(1) * b.unsqueeze(2),
    "integers": lambda a, b: ((a > 0) & (b > 0)).to(torch.int64),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_would_gather_more_stays(name: str) -> None:
    def function(x: Tensor, z: Tensor, src: Tensor, dst: Tensor) -> Any:
        return STAYS[name](x.index_select(0, src), z.index_select(0, dst))

    inputs = (X + 5.0, numbers(N, C, seed=4), SRC, DST)
    graph_module, moved = narrowed(function, *inputs)

    assert moved == []
    assert_same_law(graph_module, function, inputs)


def test_savings_elsewhere_do_not_pay_for_wider_rows() -> None:
    """The score of z saves a row; the function of x, whose rows are read as they are too, would cost one."""

    def function(x: Tensor, z: Tensor, a: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        rows = x.index_select(0, src)
        score = (z.index_select(0, dst) * a).sum(-1, keepdim=True)
        return torch.tanh(rows) * score + rows

    inputs = (X, numbers(N, C, seed=4), numbers(C, seed=5), SRC, DST)
    graph_module, moved = narrowed(function, *inputs)

    assert len(moved) == 1
    assert gathered_widths(graph_module) == [1, C]
    assert_same_law(graph_module, function, inputs)


def test_edge_dropout_stays_on_edges() -> None:
    def function(x: Tensor, a: Tensor, seed: Tensor, src: Tensor) -> Tensor:
        draws = torch.ops.plait.uniform(seed, src.shape[0], [C], torch.float32)
        return (x.index_select(0, src) * (draws >= 0.5)).sum(-1) * a

    graph_module, moved = narrowed(function, X, numbers(1, seed=2), torch.tensor(3), SRC)

    assert moved == []
    assert "plait.uniform" in targets(graph_module.graph)


def test_unread_row_gets_a_gradient_of_zero() -> None:
    """The slope of a square root is infinite in a row that no edge reads: computed there, it would make its gradient NaN."""

    def function(x: Tensor, src: Tensor) -> Tensor:
        return x.index_select(0, src).sqrt().sum(-1)

    x = torch.arange(N * C).view(N, C).float() - C  # row 1 is 0, 1, 2
    x[:2] = 0.0
    src = SRC % (N - 2) + 2
    graph_module, _ = narrowed(function, x, src)

    assert_same_law(graph_module, function, (x, src))


def test_nothing_moves_to_more_rows_than_there_are_edges() -> None:
    def function(x: Tensor, a: Tensor, src: Tensor) -> Tensor:
        return (x.index_select(0, src) * a).sum(-1)

    src = torch.randint(600, (550,), generator=torch.Generator().manual_seed(0))
    _, moved = narrowed(function, numbers(600, C), numbers(C, seed=2), src)
    _, moved_to_fewer = narrowed(function, numbers(520, C), numbers(C, seed=2), src % 520)

    assert (len(moved), len(moved_to_fewer)) == (0, 1)


def test_rows_of_edges_are_as_many_as_before() -> None:
    def function(x: Tensor, a: Tensor, src: Tensor) -> Tensor:
        return (x.index_select(0, src) * a).sum(-1)

    graph_module, _ = narrowed(function, X, numbers(C, seed=2), SRC)

    assert graph_module(X, numbers(C, seed=2), SRC).shape == (E,)
