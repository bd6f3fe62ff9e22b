"""A product with a weight goes before or behind a propagation, whichever costs less, with the same numbers and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from plait.costs import Costs
from plait.passes.domains import infer
from plait.passes.edit import aten
from plait.passes.order import order_products
from plait.passes.order_costs import Setting
from tests.passes.tracing import E, N, assert_same_law, canonical, ends, numbers, targets, text

NARROW, WIDE, K = 2, 64, 3
SRC, DST = ends()
BY_BYTES = Costs(  # a row costs its bytes, wherever it comes from; rows in order cost nothing
    row_bytes=(1, 1 << 20),
    table_bytes=(1, 1 << 40),
    gather_s=((1e-9, 1e-9 * (1 << 20)),) * 2,
    product_flops=1e15,
    stream_bytes=1e15,
)


def ordered(
    function: Callable[..., Any],
    *inputs: Any,
    is_training: bool = True,
    constants: tuple[str, ...] = (),
    costs: Costs = BY_BYTES,
    order: str = "auto",
    keeps_sums: bool = True,
) -> tuple[GraphModule, list[str]]:
    """The rewritten graph and what was moved. constants: inputs whose gradient nobody asks for."""
    graph_module = canonical(function, *inputs)
    graph = graph_module.graph

    def wants_grad(node: Node) -> bool:
        if node.op == "placeholder":
            return node.name not in constants and node.meta["val"].dtype.is_floating_point
        return any(map(wants_grad, node.all_input_nodes))

    setting = Setting(lambda: costs, is_training, wants_grad, order=order, keeps_sums=keeps_sums)
    moved = list(order_products(graph, infer(graph), setting).moved)
    graph.lint()
    graph_module.recompile()
    return graph_module, moved


def neighbours(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, dst, x.index_select(0, src))


def product_first(x: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    return neighbours(x @ weight, src, dst)


def product_behind(x: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    return neighbours(x, src, dst) @ weight


def rows_and_weight(width_x: int, width_y: int) -> tuple[Tensor, Tensor]:
    return numbers(N, width_x), numbers(width_x, width_y, seed=1)


FIRST = ["aten.mm", "plait.gather", "plait.segment_reduce"]
BEHIND = ["plait.gather", "plait.segment_reduce", "aten.mm"]


def order_of(graph_module: GraphModule) -> list[str]:
    return [name for name in targets(graph_module.graph) if name in FIRST]


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [product_first, product_behind])
@pytest.mark.parametrize(("widths", "expected"), [((WIDE, NARROW), FIRST), ((NARROW, WIDE), BEHIND)])
def test_the_narrower_rows_travel(function: Callable[..., Tensor], widths: tuple[int, int], expected: list[str]) -> None:
    inputs = (*rows_and_weight(*widths), SRC, DST)
    graph_module, _ = ordered(function, *inputs)

    assert order_of(graph_module) == expected
    assert_same_law(graph_module, function, inputs)


def test_what_is_equal_stays_as_the_user_wrote_it() -> None:
    inputs = (*rows_and_weight(8, 8), SRC, DST)

    assert ordered(product_behind, *inputs)[1] == []
    assert ordered(product_first, *inputs)[1] == []


def test_input_without_gradient_is_propagated_once_however_wide_it_is_up_to_twice() -> None:
    """x W first: two propagations of o columns. x first: one of f, since the gradient of W reads what was kept."""
    for width_x, expected in ((12, BEHIND), (20, FIRST)):
        inputs = (*rows_and_weight(width_x, 8), SRC, DST)
        graph_module, _ = ordered(product_first, *inputs, constants=("x",))

        assert order_of(graph_module) == expected


def test_a_step_that_cannot_keep_what_was_propagated_propagates_it_again() -> None:
    inputs = (*rows_and_weight(12, 8), SRC, DST)

    assert order_of(ordered(product_first, *inputs, constants=("x",))[0]) == BEHIND
    assert order_of(ordered(product_first, *inputs, constants=("x",), keeps_sums=False)[0]) == FIRST
    assert order_of(ordered(product_behind, *inputs, constants=("x",), keeps_sums=False)[0]) == FIRST


@pytest.mark.parametrize("function", [product_first, product_behind])
@pytest.mark.parametrize("widths", [(64, 2), (12, 8), (2, 64)])
def test_seconds_are_those_of_the_order_taken(function: Callable[..., Tensor], widths: tuple[int, int]) -> None:
    """Whatever the order was before, and whether or not the choice counts on what is kept: plans are compared by them."""
    inputs = (*rows_and_weight(*widths), SRC, DST)

    def seconds_of(order: str, *, keeps_sums: bool = True) -> float:
        graph = canonical(function, *inputs).graph
        setting = Setting(lambda: BY_BYTES, True, lambda node: node.name == "weight", order=order, keeps_sums=keeps_sums)
        return order_products(graph, infer(graph), setting).seconds

    first, behind = seconds_of("first"), seconds_of("behind")
    assert 0 < first != behind > 0
    assert seconds_of("auto") == min(first, behind)
    assert seconds_of("behind", keeps_sums=False) == behind


def test_inference_counts_the_forward_alone() -> None:
    inputs = (*rows_and_weight(12, 8), SRC, DST)

    assert order_of(ordered(product_behind, *inputs, is_training=False, constants=("x",))[0]) == FIRST


def test_the_margin_keeps_the_users_order_where_the_model_sees_little_to_win() -> None:
    inputs = (*rows_and_weight(41, 40), SRC, DST)

    assert ordered(product_behind, *inputs, is_training=False)[1] == []


def test_printed_result_names_both_widths() -> None:
    _, moved = ordered(product_first, *rows_and_weight(NARROW, WIDE), SRC, DST)
    assert moved == ["mm: product moved behind the sum over edges, which carry 2 columns, not 64"]

    graph_module, moved = ordered(product_behind, *rows_and_weight(WIDE, NARROW), SRC, DST)
    assert moved == ["mm: product moved before the sum over edges, which carry 2 columns, not 64"]
    assert text(graph_module.graph).splitlines()[-4:] == [
        "mm = aten.mm(x, weight)",
        "gather_1 = plait.gather(mm, src)",
        "segment_reduce_1 = plait.segment_reduce(gather_1, dst, size, sum, 0.0, False, False)",
        "return segment_reduce_1",
    ]


# --- what may stand between -------------------------------------------------------------------------------------------

BETWEEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weighted": lambda rows, c: rows * c,
    "weighted from the left": lambda rows, c: c * rows,
    "divided": lambda rows, c: rows / (c.abs() + 1),
    "negated and scaled": lambda rows, c: -(rows * 2.0) / 3.0 * c,
}


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("widths", [(WIDE, NARROW), (NARROW, WIDE)])
@pytest.mark.parametrize("is_first", [True, False])
def test_factors_per_edge_stay_with_the_edges(name: str, widths: tuple[int, int], is_first: bool) -> None:
    def function(x: Tensor, weight: Tensor, c: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        x = x @ weight if is_first else x
        summed = x.new_zeros(N, x.shape[1]).index_add(0, dst, BETWEEN[name](x.index_select(0, src), c))
        return summed if is_first else summed @ weight

    inputs = (*rows_and_weight(*widths), numbers(E, 1, seed=2), SRC, DST)
    graph_module, moved = ordered(function, *inputs)

    assert len(moved) == (is_first == (widths[0] < widths[1]))
    assert order_of(graph_module) == (FIRST if widths[0] > widths[1] else BEHIND)
    assert_same_law(graph_module, function, inputs)


@pytest.mark.parametrize("spread", [True, False])
def test_sum_over_kernels_is_one_product_with_a_stacked_weight(spread: bool) -> None:
    """MoNet's form: K weights per edge, and K times as wide a product."""

    def function(x: Tensor, weight: Tensor, c: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        rows = (x @ weight).index_select(0, src).view(len(src), K, -1)
        factor = c.unsqueeze(-1) if spread else c[:, :1].unsqueeze(-1)
        return x.new_zeros(N, rows.shape[2]).index_add(0, dst, (rows * factor).sum(1))

    inputs = (numbers(N, 8), numbers(8, K * 7, seed=1), numbers(E, K, seed=2), SRC, DST)
    graph_module, moved = ordered(function, *inputs, constants=("c",))

    assert ordered(function, *inputs)[1] == []  # with a gradient of c, the gradient of x would carry K * 8 columns
    assert moved == ["mm: product moved behind the sum over edges, which carry 8 columns, not 21"]
    assert order_of(graph_module) == BEHIND
    assert_same_law(graph_module, function, inputs)


def test_what_is_added_to_the_sum_is_projected_with_it() -> None:
    """GIN's form: the row itself is scaled and added, then projected; its projection is there already."""

    def function(x: Tensor, weight: Tensor, bias: Tensor, eps: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return torch.addmm(bias, neighbours(x, src, dst) + (1 + eps) * x, weight)

    inputs = (*rows_and_weight(WIDE, NARROW), numbers(NARROW, seed=3), numbers(1, seed=4), SRC, DST)
    graph_module, moved = ordered(function, *inputs)

    assert len(moved) == 1
    assert targets(graph_module.graph).count("aten.mm") == 1
    assert_same_law(graph_module, function, inputs)


def test_mean_is_divided_after_the_sum_in_either_order() -> None:
    def function(x: Tensor, weight: Tensor, z: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        count = torch.zeros(N).index_add(0, dst, torch.ones(len(dst))).clamp(min=1)
        return (neighbours(x, src, dst) / count.view(-1, 1).expand(-1, x.shape[1]) - z) @ weight

    inputs = (*rows_and_weight(WIDE, NARROW), numbers(N, WIDE, seed=5), SRC, DST)
    graph_module, moved = ordered(function, *inputs)

    assert len(moved) == 1
    assert_same_law(graph_module, function, inputs)


# --- where the law does not hold --------------------------------------------------------------------------------------


def through_relu(x: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    return neighbours(torch.relu(x @ weight), src, dst)


def per_column(x: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    rows = (x @ weight).index_select(0, src)
    return torch.zeros(N, rows.shape[1]).index_add(
        0, dst, rows * rows.index_select(1, torch.zeros(rows.shape[1], dtype=torch.long))
    )


def largest(x: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    rows = (x @ weight).index_select(0, src)
    return torch.zeros(N, rows.shape[1]).index_reduce(0, dst, rows, "amax", include_self=False)


def onto_something(x: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    return torch.relu(neighbours(x, src, dst)) @ weight


def read_elsewhere(x: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
    summed = neighbours(x, src, dst)
    return summed @ weight, summed


@pytest.mark.parametrize("function", [through_relu, per_column, largest, onto_something, read_elsewhere])
@pytest.mark.parametrize("widths", [(WIDE, NARROW), (NARROW, WIDE)])
def test_no_product_moves_through_what_is_not_linear_or_is_read_by_others(
    function: Callable[..., Any], widths: tuple[int, int]
) -> None:
    assert ordered(function, *rows_and_weight(*widths), SRC, DST)[1] == []


def test_a_second_product_for_what_is_added_is_counted() -> None:
    """Where products are dear, r W is too much to pay for narrower rows."""

    def function(x: Tensor, weight: Tensor, r: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return (neighbours(x, src, dst) + r) @ weight

    inputs = (*rows_and_weight(WIDE, NARROW), numbers(N, WIDE, seed=6), SRC, DST)
    dear = Costs(**{**{name: getattr(BY_BYTES, name) for name in BY_BYTES.__dataclass_fields__}, "product_flops": 1e3})

    assert len(ordered(function, *inputs)[1]) == 1
    assert ordered(function, *inputs, costs=dear)[1] == []


def test_one_order_is_chosen_per_layer() -> None:
    """Two layers, wide to narrow and narrow to wide: rows of the narrow width travel in both."""

    def function(x: Tensor, first: Tensor, second: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        hidden = torch.relu(neighbours(x @ first, src, dst))
        return neighbours(hidden @ second, src, dst)

    inputs = (numbers(N, WIDE), numbers(WIDE, NARROW, seed=1), numbers(NARROW, WIDE, seed=2), SRC, DST)
    graph_module, moved = ordered(function, *inputs)

    widths = [node.meta["val"].shape[1] for node in graph_module.graph.nodes if str(node.target) == "plait.gather.default"]
    assert widths == [NARROW, NARROW]
    assert len(moved) == 1
    assert aten.relu.default in {node.target for node in graph_module.graph.nodes}
    assert_same_law(graph_module, function, inputs)


@pytest.mark.parametrize(("order", "expected"), [("first", FIRST), ("behind", BEHIND), ("as_written", BEHIND)])
def test_a_fixed_order_is_kept_whatever_it_costs(order: str, expected: list[str]) -> None:
    for widths in ((WIDE, NARROW), (NARROW, WIDE)):
        inputs = (*rows_and_weight(*widths), SRC, DST)
        graph_module, _ = ordered(product_behind, *inputs, order=order)

        assert order_of(graph_module) == expected
        assert_same_law(graph_module, product_behind, inputs)
