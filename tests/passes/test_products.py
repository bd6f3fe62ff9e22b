"""Products of edge rows with a weight become products of node rows, where the law holds and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from plait.passes.edit import aten, value
from plait.passes.reorganise import move_products
from tests.passes.tracing import E, N, assert_same_law, ends, num_edge_products, numbers, rewritten, text

C, K = 3, 2
SRC, DST = ends()
X, Z = numbers(N, C), numbers(N, C, seed=3)
WEIGHT, BIAS = numbers(C, K, seed=1), numbers(K, seed=2)
WIDE = numbers(2 * C, K, seed=4)


def moved_products(function: Callable[..., Any], *inputs: Any) -> tuple[GraphModule, list[str]]:
    return rewritten((move_products,), function, *inputs)


def gathered(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index)


def test_product_of_a_gather_is_a_gather_of_a_product() -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor) -> Tensor:
        return gathered(x, src) @ weight

    graph_module, moved = moved_products(function, X, WEIGHT, SRC)

    assert text(graph_module.graph) == ("mm = aten.mm(x, weight)\ngather_1 = plait.gather(mm, src)\nreturn gather_1")
    assert len(moved) == 1
    assert_same_law(graph_module, function, (X, WEIGHT, SRC))


def test_edge_convs_linear_layer_is_two_products_of_node_rows() -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        own, other = gathered(x, dst), gathered(x, src)
        return torch.addmm(bias, torch.cat([own, other - own], -1), weight)

    inputs = (X, WIDE, BIAS, SRC, DST)
    graph_module, moved = moved_products(function, *inputs)

    assert len(moved) == 1
    assert "2 products of node rows" in moved[0]
    assert num_edge_products(graph_module, E) == 0
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
    graph_module, moved = moved_products(function, *inputs)

    assert len(moved) == 1
    assert num_edge_products(graph_module, E) == 0
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
    graph_module, moved = moved_products(function, *inputs)

    assert len(moved) == 1
    assert num_edge_products(graph_module, E) == 0
    assert_same_law(graph_module, function, inputs)


def test_indices_that_count_from_the_end_keep_doing_so() -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor) -> Tensor:
        return (x[src] - x[src - 1]) @ weight

    inputs = (X, WEIGHT, SRC)
    graph_module, moved = moved_products(function, *inputs)

    assert len(moved) == 1
    assert_same_law(graph_module, function, inputs)


MOVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "a function of an end": lambda a, b, edge: torch.tanh(a),
    "a function of two values of one end": lambda a, b, edge: torch.tanh(a) * torch.relu(a + 1.0),
    "a constant beside an end": lambda a, b, edge: 1.0 - a,
    "functions of the ends, beside each other": lambda a, b, edge: torch.sin(torch.cat([a[:, :2], b[:, :1]], -1)),
    "scaled per edge": lambda a, b, edge: a * edge[:, :1],
    "both ends scaled per edge": lambda a, b, edge: (a - b) * edge[:, :1] * edge[:, 1:2],
    "narrow edge features in a column": lambda a, b, edge: torch.cat([a[:, :2] + b[:, :2], edge[:, :1]], -1),
    "a slice of a concatenation": lambda a, b, edge: torch.cat([a, b[:, :2]], -1)[:, 1:4],
    "averaged": lambda a, b, edge: torch.cat([a.unsqueeze(1), (a - b).unsqueeze(1)], 1).mean(1),
    "normalised inside a row": lambda a, b, edge: torch.softmax(a, -1) - b,
}


@pytest.mark.parametrize("name", MOVES)
def test_what_separates_by_end_moves(name: str) -> None:
    def function(x: Tensor, z: Tensor, edge: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return MOVES[name](gathered(x, src), gathered(z, dst), edge) @ weight

    inputs = (X, Z, numbers(E, C, seed=5), WEIGHT, SRC, DST)
    graph_module, moved = moved_products(function, *inputs)

    assert len(moved) == 1
    assert num_edge_products(graph_module, E) == int("narrow edge features" in name)
    assert_same_law(graph_module, function, inputs)


def test_edge_features_keep_a_product_of_their_own_columns() -> None:
    def function(x: Tensor, edge: Tensor, weight: Tensor, bias: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.addmm(bias, torch.cat([gathered(x, dst), gathered(x, src), edge], -1), weight)

    inputs = (X, numbers(E, 2, seed=5), numbers(2 * C + 2, K, seed=6), BIAS, SRC, DST)
    graph_module, _ = moved_products(function, *inputs)

    assert text(graph_module.graph) == (
        "slice = aten.slice.Tensor(weight, 0, 0, 3)\n"
        "addmm = aten.addmm(bias, x, slice)\n"
        "gather_2 = plait.gather(addmm, dst)\n"
        "slice_1 = aten.slice.Tensor(weight, 0, 3, 6)\n"
        "mm = aten.mm(x, slice_1)\n"
        "gather_3 = plait.gather(mm, src)\n"
        "add = aten.add.Tensor(gather_2, gather_3)\n"
        "slice_2 = aten.slice.Tensor(weight, 0, 6, 8)\n"
        "mm_1 = aten.mm(edge, slice_2)\n"
        "add_1 = aten.add.Tensor(add, mm_1)\n"
        "return add_1"
    )
    assert_same_law(graph_module, function, inputs)


def test_both_ends_share_one_product() -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.tanh(gathered(x, src) @ weight) * torch.tanh(gathered(x, dst) @ weight)

    inputs = (X, WEIGHT, SRC, DST)
    graph_module, moved = moved_products(function, *inputs)

    assert len(moved) == 2
    assert text(graph_module.graph).count("aten.mm") == 1
    assert_same_law(graph_module, function, inputs)


H = 2
HEADS = numbers(N, H, C, seed=6)

SHAPES: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "the same weight for every head": (lambda a, b, w: torch.cat([a, b], -1) @ w, (2 * C, K)),
    "heads flattened": (lambda a, b, w: torch.cat([a.flatten(1), b.flatten(1)], -1) @ w, (2 * H * C, K)),
    "heads flattened behind a concatenation": (lambda a, b, w: torch.cat([a, b], -1).flatten(1) @ w, (2 * H * C, K)),
    "heads flattened behind a stack of heads": (lambda a, b, w: torch.cat([a, b], 1).flatten(1) @ w, (2 * H * C, K)),
    "a vector": (lambda a, b, w: (a - b).flatten(1) @ w, (H * C,)),
    "a weight for each head": (lambda a, b, w: torch.einsum("ehc,hcd->ehd", torch.cat([a, b], -1), w), (H, 2 * C, K)),
    "a vector for each head": (lambda a, b, w: torch.einsum("ehc,hc->eh", torch.cat([a, b], -1), w), (H, 2 * C)),
    "the weight first": (lambda a, b, w: torch.einsum("hc,ehc->eh", w, torch.cat([a, b], -1)), (H, 2 * C)),
    "heads of both ends": (lambda a, b, w: torch.einsum("ehc,hcd->ehd", torch.cat([a, b], 1), w), (2 * H, C, K)),
    "transposed": (lambda a, b, w: (w @ (a.flatten(1) - b.flatten(1)).T).T, (K, H * C)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_products_of_several_axes_move(name: str) -> None:
    product, shape = SHAPES[name]

    def function(h: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return product(gathered(h, dst), gathered(h, src), weight)

    inputs = (HEADS, numbers(*shape, seed=7), SRC, DST)
    graph_module, moved = moved_products(function, *inputs)

    assert len(moved) == 1
    assert num_edge_products(graph_module, E) == 0
    assert_same_law(graph_module, function, inputs)


STAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "a product of ends": lambda a, b, edge: a * b,
    "a function of both ends": lambda a, b, edge: torch.tanh(a + b),
    "edge features as wide as an end": lambda a, b, edge: a + edge,
    "edge features": lambda a, b, edge: edge * 2.0,
    "scaled per entry": lambda a, b, edge: a * edge,
    "a function with infinite slopes": lambda a, b, edge: a.abs().sqrt(),
    "a quotient of ends": lambda a, b, edge: a / (b + 9.0),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_really_differs_per_edge_stays(name: str) -> None:
    def function(x: Tensor, z: Tensor, edge: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        a, b = gathered(x, src), gathered(z, dst)
        return STAYS[name](a, b, edge) @ weight + (a + b).sum() * 0.0

    inputs = (X + 5.0, Z, numbers(E, C, seed=5), WEIGHT, SRC, DST)
    graph_module, moved = moved_products(function, *inputs)

    assert moved == []
    assert_same_law(graph_module, function, inputs)


def test_rows_of_two_tables_are_not_added_row_by_row() -> None:
    """One map reads two tables of which only one has rows enough for it to be all of them."""

    def function(x: Tensor, z: Tensor, weight: Tensor, src: Tensor) -> Tensor:
        return (gathered(x, src) + gathered(z, src)) @ weight

    inputs = (X, numbers(N + 2, C, seed=3), WEIGHT, SRC)
    graph_module, moved = moved_products(function, *inputs)

    assert "2 products" in moved[0]
    assert_same_law(graph_module, function, inputs)


def test_product_stays_where_the_nodes_are_more() -> None:
    """Two maps into 600 rows, read at 550 places: both products would be of more rows."""

    def function(x: Tensor, weight: Tensor, src: Tensor) -> Tensor:
        return gathered(x, src) @ weight

    src = torch.randint(600, (550,), generator=torch.Generator().manual_seed(0))
    _, moved = moved_products(function, numbers(600, C), WEIGHT, src)
    _, moved_to_fewer = moved_products(function, numbers(520, C), WEIGHT, src % 520)

    assert (len(moved), len(moved_to_fewer)) == (0, 1)


SELECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "nonzero": lambda mask: mask.nonzero().view(-1),
    "a column of nonzero": lambda mask: mask.nonzero()[:, 0],
    "numbers at a mask": lambda mask: torch.arange(N)[mask],
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_product_of_rows_chosen_by_a_mask_stays(name: str) -> None:
    """They are never more than there are rows; a layer with a weight per degree or type would multiply all rows by each."""

    def function(x: Tensor, weight: Tensor, kind: Tensor) -> Tensor:
        return gathered(x, SELECTIONS[name](kind == 1)) @ weight

    inputs = (X, WEIGHT, torch.arange(N) % 3)
    graph_module, moved = moved_products(function, *inputs)

    assert moved == []
    assert_same_law(graph_module, function, inputs)


def test_product_of_nodes_read_by_position_stays() -> None:
    """x[batch] are nodes, not edges: maps point into them too. The table has rows that nobody reads."""

    def function(table: Tensor, weight: Tensor, batch: Tensor, src: Tensor) -> Tensor:
        x = gathered(table, batch)
        return x @ weight + gathered(x, src).sum()

    batch = torch.arange(5)
    inputs = (X, WEIGHT, batch, SRC % 5)
    _, moved = moved_products(function, *inputs)

    assert moved == []


def test_rows_that_no_edge_reads_change_nothing() -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor) -> Tensor:
        return torch.tanh(gathered(x, src)) @ weight

    x = X.clone()
    x[6] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    inputs = (x, WEIGHT, SRC % 6)
    graph_module, moved = moved_products(function, *inputs)

    assert len(moved) == 1
    assert torch.equal(graph_module(*inputs), function(*inputs))


def test_gram_matrix_of_edges_keeps_its_numbers() -> None:
    """The second factor holds edges as columns: a product over the edges, not over a row's features."""

    def function(x: Tensor, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        return gathered(x, src) @ gathered(x, dst).T, gathered(x, src).T @ gathered(x, dst)

    graph_module, _ = moved_products(function, X, SRC, DST)

    assert_same_law(graph_module, function, (X, SRC, DST))


def test_scaled_addmm_stays() -> None:
    """beta and alpha would have to go with the bias and the product; no layer writes them."""

    def function(x: Tensor, weight: Tensor, bias: Tensor, src: Tensor) -> Tensor:
        return torch.addmm(bias, gathered(x, src), weight, beta=0.5, alpha=2.0)

    inputs = (X, WEIGHT, BIAS, SRC)
    graph_module, moved = moved_products(function, *inputs)

    assert moved == []
    assert_same_law(graph_module, function, inputs)


def test_add_with_a_factor_is_not_taken_for_a_sum() -> None:
    def function(x: Tensor, z: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.sub(gathered(x, src), gathered(z, dst), alpha=3) @ weight

    inputs = (X, Z, WEIGHT, SRC, DST)
    graph_module, _ = moved_products(function, *inputs)

    assert_same_law(graph_module, function, inputs)


def test_bias_is_added_once() -> None:
    def function(x: Tensor, bias: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.addmm(bias, gathered(x, src) + gathered(x, dst), weight)

    inputs = (X, BIAS, WEIGHT, SRC, DST)
    graph_module, _ = moved_products(function, *inputs)

    assert text(graph_module.graph).count("bias") == 1
    assert_same_law(graph_module, function, inputs)


def test_a_batch_of_two_products_shares_what_it_can() -> None:
    """A second layer's product of the same rows is another product: weights differ."""

    def function(x: Tensor, weight: Tensor, other: Tensor, src: Tensor) -> tuple[Tensor, Tensor]:
        rows = gathered(x, src)
        return rows @ weight, rows @ other

    inputs = (X, WEIGHT, numbers(C, 5, seed=8), SRC)
    graph_module, moved = moved_products(function, *inputs)

    assert len(moved) == 2
    assert all(
        value(node).shape[1] in (K, 5) for node in graph_module.graph.find_nodes(op="call_function", target=aten.mm.default)
    )
    assert_same_law(graph_module, function, inputs)
