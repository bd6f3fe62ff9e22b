"""Values per entry of a neighbour matrix, [N, K, ...], become edges: same numbers, same gradients, one axis less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call
from torch.fx import GraphModule

from plait.passes.canonicalize import canonicalize, materialize_fills
from plait.passes.edit import value
from plait.passes.neighbours import flatten_neighbours
from tests.neighbour_layers import C, layers, random_layer
from tests.passes.tracing import assert_same_law, numbers, text, traced

N, K = 7, 4
X = numbers(N, C)
NBR = torch.randint(0, N, (N, K), generator=torch.Generator().manual_seed(0))


def flattened(function: Callable[..., Any], *inputs: Any, has_gradients: bool = True) -> GraphModule:
    graph_module = traced(function, *inputs)
    materialize_fills(graph_module.graph)
    canonicalize(graph_module.graph)
    flatten_neighbours(graph_module.graph, has_gradients=has_gradients)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def entry_values(graph_module: GraphModule) -> list[str]:
    """Floats that still have both axes of the matrix."""
    return [
        node.name
        for node in graph_module.graph.nodes
        if isinstance(value(node), Tensor)
        and value(node).dtype.is_floating_point
        and tuple(map(int, value(node).shape[:2])) == (N, K)
    ]


def test_text_of_a_sum() -> None:
    graph_module = flattened(lambda x, nbr: (x[nbr] - x[:, None]).sum(1), X, NBR)

    assert text(graph_module.graph) == (
        "matrix_rows = plait.matrix_rows(nbr)\n"
        "reshape = aten.reshape(nbr, [-1])\n"
        "gather = plait.gather(x, reshape, True)\n"
        "gather_1 = plait.gather(x, matrix_rows)\n"
        "sub = aten.sub.Tensor(gather, gather_1)\n"
        "segment_reduce = plait.segment_reduce(sub, matrix_rows, size, sum, 0.0)\n"
        "return segment_reduce"
    )


@pytest.mark.parametrize("name", layers())
def test_layers_keep_their_numbers_and_lose_an_axis(name: str) -> None:
    layer = layers()[name]
    names, weights = zip(*layer.named_parameters(), strict=True) if list(layer.parameters()) else ((), ())
    inputs = (X, NBR, *(item.detach() for item in weights))

    def run(x: Tensor, nbr: Tensor, *weights: Tensor) -> Any:
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x, nbr))

    graph_module = flattened(run, *inputs)

    assert_same_law(graph_module, run, inputs)
    left = 2 if name == "weights returned" else 0  # read by what reverses the axis
    assert len(entry_values(graph_module)) == left, entry_values(graph_module)


def extremes(x: Tensor, nbr: Tensor) -> Tensor:
    return x[nbr].max(1)[0] - 2 * x[nbr].min(1)[0]


def test_a_maximum_gives_its_gradient_to_the_first_of_equal_entries() -> None:
    x = torch.tensor([[1.0], [2.0], [2.0], [float("nan")]])
    nbr = torch.tensor([[2, 1, 1, 0], [0, 0, 0, 0], [1, 3, 0, 3], [-1, 0, 1, 2]])

    assert_same_law(flattened(extremes, numbers(4, 1), nbr), extremes, (x, nbr))


def test_without_gradients_a_maximum_is_one_reduction() -> None:
    graph_module = flattened(lambda x, nbr: x[nbr].max(1)[0], X, NBR, has_gradients=False)

    assert text(graph_module.graph).count("segment_reduce(") == 1
    assert torch.equal(graph_module(X, NBR), X[NBR].max(1)[0])


def test_who_asks_where_the_maximum_is_gets_pytorch() -> None:
    graph_module = flattened(lambda x, nbr: x[nbr].max(1)[1], X, NBR)

    assert torch.equal(graph_module(X, NBR), X[NBR].max(1)[1])
    assert "segment_reduce" not in text(graph_module.graph)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (5, 1), (N, N), (N, 9)])
def test_all_sizes(shape: tuple[int, int]) -> None:
    nbr = torch.arange(shape[0] * shape[1]).view(shape) * 5 % N - 2  # some count from the end
    x = numbers(shape[0], C)
    near = numbers(N, C, seed=1)

    def layer(x: Tensor, near: Tensor, nbr: Tensor) -> Tensor:
        return ((near[nbr] * x[:, None]).sum(-1, keepdim=True).softmax(1) * near[nbr]).sum(1)

    assert_same_law(flattened(layer, x, near, nbr), layer, (x, near, nbr))


@given(st.integers(0, 10_000))
@example(0)
def test_random_functions_keep_their_numbers(seed: int) -> None:
    inputs = (X, NBR, numbers(N, K, C, seed=2), numbers(C, C, seed=3))
    layer = random_layer(seed)

    graph_module = flattened(layer, *inputs)

    assert_same_law(graph_module, layer, inputs)
